"""Spectral decomposition: one-level 2-D wavelet transform and the high-frequency map (DS2D2)."""

import difflib
from functools import lru_cache

import pywt
import torch
import torch.nn.functional as F
from torch import Tensor

MODES = (*pywt.Modes.modes, "replicate")  # "replicate" is torch's word for PyWavelets' "constant"
KINDS = ("bands", "residual")  # of high-frequency maps
_HAAR = ("haar", "db1")


def dwt2(x: Tensor, wavelet: str = "haar", mode: str = "zero") -> tuple[Tensor, Tensor]:
    """Split every channel into its low band and three detail bands, as `pywt.dwt2` does.

    `x` is (B, C, H, W). Returns low (B, C, h, w) and high (B, C, 3, h, w), the bands in the order LH, HL, HH
    (PyWavelets' cH, cV, cD); for Haar h = ceil(H/2). Computed in float32 (float64 stays float64), also under autocast.
    Raises ValueError for an unknown wavelet or padding mode and for maps the transform is not defined on.
    """
    wavelet, mode = _resolve(wavelet, mode)
    x = _prepare(x)
    if wavelet in _HAAR:
        return _haar(x, mode)
    return _filter_bank(x, wavelet, mode)


def high_frequency_map(x: Tensor, wavelet: str = "haar", mode: str = "zero", kind: str = "bands") -> Tensor:
    """The high frequencies of `x` (B, C, H, W), of the same shape and floating dtype.

    `kind` "bands" (DS2D2): H(F) = up2(LH + HL + HH), bilinear. "residual": `x` less what its low band alone gives back,
    all details at full resolution; with Haar a flipped map of even size then has flipped high frequencies.
    Raises ValueError as `dwt2` does.
    """
    wavelet, mode = _resolve(wavelet, mode)
    maps = _prepare(x)
    full = maps - _low_pass(maps, wavelet, mode) if kind == "residual" else _bands_map(maps, wavelet, mode)
    return full.to(x.dtype) if x.is_floating_point() else full


def _bands_map(maps: Tensor, wavelet: str, mode: str) -> Tensor:
    if wavelet in _HAAR:
        # LH + HL + HH = 2a - LL for a block (a b; c d): the three bands need not be formed.
        top, bottom = _even(_even(maps, -2, mode), -1, mode).unflatten(-2, (-1, 2)).unbind(-2)
        both = top + bottom
        details = 2 * top[..., 0::2] - 0.5 * (both[..., 0::2] + both[..., 1::2])
    else:
        details = _filter_bank(maps, wavelet, mode)[1].sum(dim=2)
    return _bilinear(details, maps.shape[-2:])


def _low_pass(maps: Tensor, wavelet: str, mode: str) -> Tensor:
    """What the inverse transform makes of the low band alone."""
    height, width = maps.shape[-2:]
    if wavelet in _HAAR:  # every cell becomes the mean of its block
        means = F.avg_pool2d(_even(_even(maps, -2, mode), -1, mode), 2)
        blocks = means[..., :, None, :, None].expand(*means.shape[:-1], 2, means.shape[-1], 2)
        return blocks.flatten(-2).flatten(-3, -2)[..., :height, :width]
    rows = _low_pass_matrix(height, wavelet, mode, maps.dtype, maps.device)
    columns = _low_pass_matrix(width, wavelet, mode, maps.dtype, maps.device)
    with torch.autocast(maps.device.type, enabled=False):
        return rows @ (maps @ columns.mT)


def _bilinear(bands: Tensor, size: tuple[int, int]) -> Tensor:
    """Bands (B, C, h, w) at another size, bilinear, without aligned corners."""
    if bands.is_cuda and torch.are_deterministic_algorithms_enabled():
        # PyTorch then takes a form that gathers every pixel's neighbours, several times slower, forwards as well
        return _by_products(bands, size)
    return F.interpolate(bands, size=size, mode="bilinear", align_corners=False)


def _by_products(bands: Tensor, size: tuple[int, int]) -> Tensor:
    """The same as two matrix products."""
    rows, columns = (
        _interpolation_matrix(n, to, bands.dtype, bands.device) for n, to in zip(bands.shape[-2:], size, strict=True)
    )
    with torch.autocast(bands.device.type, enabled=False):
        return rows @ (bands @ columns.mT)


@lru_cache(maxsize=512)
def _interpolation_matrix(length: int, to: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The (to, length) matrix of linear interpolation: its columns are the responses to the unit vectors."""
    with torch.inference_mode(False):
        units = torch.eye(length, dtype=torch.float64)[None]
        return F.interpolate(units, size=to, mode="linear", align_corners=False)[0].mT.to(device, dtype)


def band_shape(map_hw: tuple[int, int], wavelet: str = "haar", mode: str = "zero") -> tuple[int, int]:
    """Height and width of the bands that `dwt2` makes of a map of `map_hw` cells."""
    wavelet, mode = _resolve(wavelet, mode)
    taps = pywt.Wavelet(wavelet).dec_len
    return tuple(pywt.dwt_coeff_len(n, taps, mode) for n in map_hw)


def _haar(x: Tensor, mode: str) -> tuple[Tensor, Tensor]:
    """Haar without filters: sums and differences of neighbours, first of rows, then of columns."""
    top, bottom = (0.5 * _even(_even(x, -2, mode), -1, mode)).unflatten(-2, (-1, 2)).unbind(-2)
    rows_sum, rows_diff = top + bottom, top - bottom
    a, b = rows_sum[..., 0::2], rows_sum[..., 1::2]
    c, d = rows_diff[..., 0::2], rows_diff[..., 1::2]
    return a + b, torch.stack((c + d, a - b, c - d), dim=2)


def _even(x: Tensor, dim: int, mode: str) -> Tensor:
    """Continue an axis of odd length by one sample, the way `mode` says; an even axis is returned as it is."""
    length = x.shape[dim]
    if length % 2 == 0:
        return x
    last = x.narrow(dim, length - 1, 1)
    before = x.narrow(dim, max(length - 2, 0), 1)
    if mode == "zero":
        sample = torch.zeros_like(last)
    elif mode in ("constant", "symmetric", "periodization"):
        sample = last
    elif mode == "antisymmetric":
        sample = -last
    elif mode == "periodic":
        sample = x.narrow(dim, 0, 1)
    elif mode == "reflect":
        sample = before
    else:  # smooth and antireflect: a straight line on from the last two samples
        sample = 2 * last - before
    return torch.cat((x, sample), dim=dim)


def _filter_bank(x: Tensor, wavelet: str, mode: str) -> tuple[Tensor, Tensor]:
    """Any basis: one matrix per axis, low-pass rows above high-pass rows."""
    rows = _analysis_matrix(x.shape[-2], wavelet, mode, x.dtype, x.device)
    columns = _analysis_matrix(x.shape[-1], wavelet, mode, x.dtype, x.device)
    with torch.autocast(x.device.type, enabled=False):  # autocast would run the products in half precision
        y = rows @ (x @ columns.mT)
    h, w = rows.shape[0] // 2, columns.shape[0] // 2
    return y[..., :h, :w], torch.stack((y[..., h:, :w], y[..., :h, w:], y[..., h:, w:]), dim=2)


@lru_cache(maxsize=512)
def _analysis_matrix(length: int, wavelet: str, mode: str, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The (2 * bands, length) matrix of the 1-D transform.

    The transform is linear in the signal in every padding mode, so its responses to the unit vectors, taken from
    PyWavelets itself, are its columns: borders are right for every basis, also where a map is shorter than the filter.
    """
    with torch.inference_mode(False):  # a matrix first used in validation must still serve training
        units = torch.eye(length, dtype=torch.float64).numpy()
        bands = pywt.dwt(units, wavelet, _possible(length, mode), axis=0)
        low, high = (torch.from_numpy(band) for band in bands)
        return torch.cat((low, high)).to(device, dtype)


@lru_cache(maxsize=512)
def _low_pass_matrix(length: int, wavelet: str, mode: str, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The (length, length) matrix of the 1-D transform and its inverse without the details; columns as above."""
    with torch.inference_mode(False):
        units = torch.eye(length, dtype=torch.float64).numpy()
        mode = _possible(length, mode)
        low, _ = pywt.dwt(units, wavelet, mode, axis=0)
        return torch.from_numpy(pywt.idwt(low, None, wavelet, mode, axis=0)[:length].copy()).to(device, dtype)


def _possible(length: int, mode: str) -> str:
    """The padding mode of an axis: one cell has no other to reflect, and goes on as it is, as in NumPy."""
    return "constant" if length == 1 and mode in ("reflect", "antireflect") else mode


def _prepare(x: Tensor) -> Tensor:
    if x.dim() != 4:
        raise ValueError(f"the wavelet transform takes maps (B, C, H, W), got shape {tuple(x.shape)}")
    height, width = x.shape[-2:]
    if min(height, width) < 1:
        raise ValueError(f"a {height}x{width} map is too small for a wavelet transform")
    return x.to(torch.promote_types(x.dtype, torch.float32))


@lru_cache(maxsize=64)
def _resolve(wavelet: str, mode: str) -> tuple[str, str]:
    """PyWavelets' names of wavelet and padding mode."""
    known = pywt.wavelist(kind="discrete")
    if wavelet not in known:
        near = difflib.get_close_matches(str(wavelet), known, n=3) or ["haar", "db2", "sym4", "coif1", "bior2.2"]
        raise ValueError(f"unknown wavelet {wavelet!r}: did you mean {', '.join(near)}?")
    if mode not in MODES:
        near = difflib.get_close_matches(str(mode), MODES, n=3) or MODES
        raise ValueError(f"unknown wavelet padding mode {mode!r}: did you mean {', '.join(near)}?")
    return wavelet, "constant" if mode == "replicate" else mode
