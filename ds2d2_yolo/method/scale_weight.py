"""Density-Independent Scale Weight (DISW): every object counts the same, whatever its size (DS2D2)."""

import torch
from torch import Tensor

# Weights are summed as integers of 2^-40: exact in any order, so no box leaves a trace outside itself, results do not
# depend on the device's order of additions, and no float64 is needed. Room for 8 million boxes on a cell.
_UNIT = 1 << 40


def density_independent_scale_weight(
    boxes: Tensor,
    batch_index: Tensor,
    batch_size: int,
    image_hw: tuple[int, int],
    map_hw: tuple[int, int],
) -> Tensor:
    """Weight map (batch_size, 1, h, w) float32: 1 + the sum over the boxes that cover a cell of 1/(cells of that box).

    `boxes` (N, 4) are xyxy in pixels of the padded batch image of size `image_hw`, `batch_index` (N,) says whose they
    are, `map_hw` is the size of the low band. A box covers the cells floor(x1 w/W) .. ceil(x2 w/W), both included,
    likewise y, clamped to the map: a box without extent covers at least one cell, a box outside the image the border
    cells nearest to it, so each adds a mass of 1. A box with a NaN adds nothing. Carries no gradient.
    """
    (height, width), (h, w) = image_hw, map_hw
    if min(height, width, h, w) < 1:
        raise ValueError(f"scale weight needs sizes of at least 1, got image {height}x{width} and map {h}x{w}")
    if batch_index.dim() != 1 or boxes.shape != (*batch_index.shape, 4):
        raise ValueError(
            f"scale weight needs boxes (N, 4) and batch_index (N,), got {tuple(boxes.shape)} and "
            f"{tuple(batch_index.shape)}"
        )
    boxes = boxes.to(torch.promote_types(boxes.dtype, torch.float32))
    x0, x1 = _cell_range(boxes[:, 0], boxes[:, 2], width, w)
    y0, y1 = _cell_range(boxes[:, 1], boxes[:, 3], height, h)
    mass = _UNIT // ((x1 - x0) * (y1 - y0))
    mass = mass * ~boxes.isnan().any(dim=1)

    # Corner differences: two cumulative sums turn four marks a box into its filled rectangle.
    rows = batch_index.to(boxes.device, torch.long) * (h + 1)
    top, bottom = (rows + y0) * (w + 1), (rows + y1) * (w + 1)
    marks = torch.zeros(batch_size * (h + 1) * (w + 1), dtype=torch.long, device=boxes.device)
    corners = torch.cat((top + x0, top + x1, bottom + x0, bottom + x1))
    marks.index_add_(0, corners, torch.cat((mass, -mass, -mass, mass)))
    marks = marks.view(batch_size, h + 1, w + 1)
    added = marks.cumsum(1).cumsum(2)[:, None, :h, :w]
    return 1 + added.to(torch.float32) / _UNIT


def _cell_range(low: Tensor, high: Tensor, pixels: int, cells: int) -> tuple[Tensor, Tensor]:
    """First cell and the one after the last cell (integers) between two pixel coordinates."""
    # Multiplied before divided: a whole number of cells stays whole in floating point.
    first = (low * cells / pixels).floor().nan_to_num(0).clamp(0, cells - 1).long()
    last = (high * cells / pixels).ceil().nan_to_num(0).clamp(0, cells - 1).long()
    return first, torch.maximum(first, last) + 1
