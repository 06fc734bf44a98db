"""Explicit stream: wavelet bands of student and teacher features compared cell by cell (DS2D2)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ds2d2_yolo.method.shared import moments, processes
from ds2d2_yolo.method.wavelet import dwt2

NORMALIZE = ("none", "channel", "teacher")
_EPS = 1e-5  # of a variance, as in BatchNorm


def explicit_loss(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    weights: Sequence[Tensor] | None = None,
    wavelet: str = "haar",
    mode: str = "zero",
    normalize: str = "none",
) -> dict[str, Tensor]:
    """sum_l mean(weight_l (W(F^s_l) - W(F^t_l))^2) over the low band, `ex_low`, and the three detail bands, `ex_high`.

    `student` (adapted) and `teacher` hold one (B, C, H, W) per level, `weights` one (B, 1, h, w) per level of the size
    of the bands; None means ones. The teacher carries no gradient. `normalize` is what happens to the features first:
    "none" (the paper), "channel" (each side standardised per channel over batch and space) or "teacher" (both sides
    divided by the teacher's standard deviation per channel). Scalars in float32 (float64 stays).
    Raises ValueError, naming the level, where shapes disagree.
    """
    if normalize not in NORMALIZE:
        raise ValueError(f"unknown normalize {normalize!r}: use {', '.join(NORMALIZE)}")
    counts = {len(student), len(teacher), len(student) if weights is None else len(weights)}
    if counts == {0} or len(counts) > 1:
        raise ValueError(
            f"explicit loss needs the same number of levels, at least one: student {len(student)}, "
            f"teacher {len(teacher)}, weights {'none' if weights is None else len(weights)}"
        )
    low_terms, high_terms = [], []
    for level, (s, t) in enumerate(zip(student, teacher, strict=True)):
        if s.shape != t.shape:
            raise ValueError(f"level {level}: student {tuple(s.shape)} and teacher {tuple(t.shape)} differ in shape")
        # The transform is linear: one of the difference replaces one of each side.
        low, high = dwt2(_difference(s, t.detach(), normalize), wavelet, mode)
        low_error = low.square().mean(dim=1, keepdim=True)
        high_error = high.square().mean(dim=(1, 2)).unsqueeze(1)
        if weights is not None:
            weight = weights[level].detach()
            if weight.shape != low_error.shape:
                raise ValueError(
                    f"level {level}: weight {tuple(weight.shape)} is not of the bands' shape {tuple(low_error.shape)}"
                )
            low_error, high_error = weight * low_error, weight * high_error
        low_terms.append(low_error.mean())
        high_terms.append(high_error.mean())
    return {"ex_low": torch.stack(low_terms).sum(), "ex_high": torch.stack(high_terms).sum()}


def _difference(student: Tensor, teacher: Tensor, normalize: str) -> Tensor:
    """F^s - F^t in float32 or better, on the scale `normalize` asks for."""
    student, teacher = (f.to(torch.promote_types(f.dtype, torch.float32)) for f in (student, teacher))
    if normalize == "channel":
        return standardized(student) - standardized(teacher)
    if normalize == "teacher":
        return (student - teacher) / channel_scale(teacher)
    return student - teacher


def standardized(x: Tensor) -> Tensor:
    """Zero mean and unit variance per channel; a constant channel becomes zeros with a finite gradient."""
    if processes() == 1:
        return torch.batch_norm(x, None, None, None, None, True, 0.0, _EPS, True)
    mean, variance = moments(x)
    return (x - mean) / (variance + _EPS).sqrt()


def channel_scale(x: Tensor) -> Tensor:
    """Standard deviation per channel, (1, C, 1, 1).

    A nearly constant channel would turn any error into an explosion: none counts as less than a tenth of the level's
    RMS deviation, and a level that is constant altogether is left at its own scale.
    """
    variance = moments(x)[1]
    variance = torch.maximum(variance, 0.01 * variance.mean())
    return torch.where(variance > _EPS, variance, torch.ones_like(variance)).sqrt()
