"""A batch's objects: whether there are any, and what they weigh at each cell."""

from __future__ import annotations

import torch
from torch import Tensor

from ds2d2_yolo.detectors.boxes import pixel_boxes
from ds2d2_yolo.method.scale_weight import density_independent_scale_weight
from ds2d2_yolo.method.shared import shared
from ds2d2_yolo.method.wavelet import band_shape


def has_objects(batch: dict) -> bool:
    """Whether any process's images hold an object."""
    return bool(shared(torch.tensor(float(len(batch["bboxes"])), device=batch["img"].device)) > 0)


def scale_weights(batch: dict, maps: list[Tensor], wavelet: str, padding: str) -> list[Tensor]:
    """Return DISW for every level's bands (DS2D2), from the batch's boxes.

    Args:
        batch: Ultralytics' batch.
        maps: A feature map ``(B, C, H, W)`` a level.
        wavelet: The basis that the maps are decomposed with.
        padding: Its padding.
    """
    size = tuple(batch["img"].shape[2:])
    boxes = pixel_boxes(batch["bboxes"].to(maps[0].device).float().reshape(-1, 4), *size)
    images = batch["batch_idx"].to(boxes.device).long().flatten()
    return [
        density_independent_scale_weight(boxes, images, len(m), size, band_shape(m.shape[2:], wavelet, padding))
        for m in maps
    ]
