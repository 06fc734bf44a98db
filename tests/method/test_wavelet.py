import numpy as np
import pytest
import pywt
import torch

from ds2d2_yolo.method import wavelet as module
from ds2d2_yolo.method.wavelet import KINDS, MODES, band_shape, dwt2, high_frequency_map
from tests.method import slow_versions as slow

WAVELETS = ("haar", "db1", "db2", "db4", "sym4", "coif1", "bior1.1", "bior2.2", "rbio3.1", "dmey")
SIZES = ((1, 1), (1, 2), (2, 1), (2, 2), (2, 3), (3, 2), (3, 3), (1, 5), (4, 6), (5, 8), (13, 7), (24, 24))


def maps(height, width, dtype=torch.float64, seed=0):
    return torch.randn(2, 3, height, width, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def assert_bands_are_those_of_pywt(x, wavelet, mode, atol=1e-10):
    low, high = dwt2(x, wavelet, mode)
    expected = slow.pywt_bands(x, wavelet, mode)
    np.testing.assert_allclose(torch.cat((low.unsqueeze(2), high), dim=2).numpy(), expected, rtol=0, atol=atol)


@pytest.mark.parametrize("mode", pywt.Modes.modes)
@pytest.mark.parametrize("wavelet", WAVELETS)
def test_bands_and_borders_are_those_of_pywt_at_every_size(wavelet, mode):
    for height, width in SIZES:
        if "reflect" in mode and min(height, width) == 1:  # PyWavelets refuses it, where NumPy goes on with the cell
            modes = tuple("constant" if length == 1 else mode for length in (height, width))
            low, high = dwt2(maps(height, width), wavelet, mode)
            expected = slow.pywt_bands(maps(height, width), wavelet, modes)
            np.testing.assert_allclose(torch.cat((low.unsqueeze(2), high), dim=2).numpy(), expected, rtol=0, atol=1e-10)
        else:
            assert_bands_are_those_of_pywt(maps(height, width), wavelet, mode)


def test_every_discrete_basis_of_pywt_works():
    for wavelet in pywt.wavelist(kind="discrete"):
        assert_bands_are_those_of_pywt(maps(5, 8), wavelet, "zero", atol=1e-8)
        assert_bands_are_those_of_pywt(maps(6, 3), wavelet, "symmetric", atol=1e-8)


def test_haar_of_one_block():
    low, high = dwt2(torch.tensor([[1.0, 2.0], [4.0, 9.0]])[None, None])
    assert low.item() == 8  # (1 + 2 + 4 + 9) / 2
    assert high.flatten().tolist() == [-5, -3, 2]  # rows differ, columns differ, diagonals differ


def test_haar_of_odd_maps_by_blocks():
    low, high = dwt2(maps(7, 5))
    np.testing.assert_allclose(torch.cat((low.unsqueeze(2), high), dim=2), slow.haar_bands(maps(7, 5)), atol=1e-12)


def test_haar_keeps_the_energy_of_even_maps():
    x = maps(12, 8)
    low, high = dwt2(x)
    assert low.square().sum() + high.square().sum() == pytest.approx(x.square().sum().item(), rel=1e-12)


def test_replicate_is_constant():
    for name, other in zip(dwt2(maps(5, 7), "db2", "replicate"), dwt2(maps(5, 7), "db2", "constant"), strict=True):
        assert torch.equal(name, other)


@pytest.mark.parametrize("wavelet", ["haar", "db2", "bior2.2"])
@pytest.mark.parametrize("mode", ["zero", "symmetric", "reflect", "periodic", "smooth", "antisymmetric"])
def test_high_frequency_map_is_the_slow_one(wavelet, mode):
    for size in ((2, 2), (5, 8), (8, 5), (13, 7), (12, 12)):
        x = maps(*size)
        expected = slow.high_frequency_map(x, wavelet, mode)
        np.testing.assert_allclose(high_frequency_map(x, wavelet, mode), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("wavelet", ["haar", "db2", "bior2.2"])
@pytest.mark.parametrize("mode", MODES)
def test_the_residual_is_what_pywt_does_not_give_back(wavelet, mode):
    for size in ((2, 2), (5, 8), (8, 5), (13, 7), (12, 12)):
        x = maps(*size)
        expected = slow.residual_map(x, wavelet, mode)
        found = high_frequency_map(x, wavelet, mode, "residual")
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-8 if mode == "smooth" else 1e-12)


def test_the_residual_of_one_block():
    found = high_frequency_map(torch.tensor([[1.0, 2.0], [4.0, 9.0]])[None, None], kind="residual")
    assert found.flatten().tolist() == [-3, -2, 0, 5]  # less their mean


@pytest.mark.parametrize("axes", [(2,), (3,), (2, 3)])
def test_a_flipped_map_has_flipped_residuals(axes):
    """Not so the sum of signed bands: it is made from one cell of four."""
    x = maps(8, 6)
    flipped = high_frequency_map(x.flip(axes), kind="residual")
    torch.testing.assert_close(flipped, high_frequency_map(x, kind="residual").flip(axes), rtol=0, atol=1e-12)
    bands = high_frequency_map(x).flip(axes)
    assert (high_frequency_map(x.flip(axes)) - bands).abs().mean() > 0.5 * bands.abs().mean()


def test_deterministic_gpus_interpolate_by_products(monkeypatch):
    """What they take instead of PyTorch's slow form gives the same, and so do its gradients."""
    for bands, size in (((1, 1), (2, 2)), ((1, 2), (1, 3)), ((3, 4), (5, 8)), ((7, 4), (13, 7)), ((9, 8), (13, 11))):
        x = maps(*bands).requires_grad_()
        expected = torch.nn.functional.interpolate(x, size, mode="bilinear", align_corners=False)
        torch.testing.assert_close(module._by_products(x, size), expected, rtol=0, atol=1e-12)
        weights = torch.randn_like(expected)
        (gradient,) = torch.autograd.grad((expected * weights).sum(), x)
        (found,) = torch.autograd.grad((module._by_products(x, size) * weights).sum(), x)
        torch.testing.assert_close(found, gradient, rtol=0, atol=1e-12)
    monkeypatch.setattr(module, "_bilinear", module._by_products)
    test_high_frequency_map_is_the_slow_one("haar", "zero")
    test_gradients("db2", "symmetric", (5, 3))
    test_autocast_does_not_lower_the_precision("haar")


def test_high_frequency_map_sees_no_edge_in_a_constant_map_unless_zeros_pad_it():
    constant = torch.full((1, 2, 7, 9), 3.0)
    assert high_frequency_map(constant, mode="replicate").abs().max() == 0
    assert high_frequency_map(constant, mode="zero").abs().max() > 1
    assert high_frequency_map(constant[..., :6, :8], mode="zero").abs().max() == 0


@pytest.mark.parametrize("wavelet", ["haar", "db2"])
@pytest.mark.parametrize("mode", ["zero", "symmetric", "reflect", "smooth"])
@pytest.mark.parametrize("size", [(4, 6), (5, 3)])
def test_gradients(wavelet, mode, size):
    x = maps(*size)[:1, :2].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: dwt2(x, wavelet, mode), x)
    for kind in KINDS:
        assert torch.autograd.gradcheck(lambda x, kind=kind: high_frequency_map(x, wavelet, mode, kind), x)


@pytest.mark.parametrize("wavelet", ["haar", "db2"])
def test_autocast_does_not_lower_the_precision(wavelet):
    x = maps(9, 8, torch.float32)
    expected = (*dwt2(x, wavelet), high_frequency_map(x, wavelet))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = (*dwt2(x, wavelet), high_frequency_map(x, wavelet))
    for value, reference in zip(found, expected, strict=True):
        assert value.dtype == torch.float32
        assert torch.equal(value, reference)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("wavelet", ["haar", "db2"])
def test_half_precision_maps_are_transformed_in_float32(wavelet, dtype):
    x = maps(9, 8, dtype)
    for value, reference in zip(dwt2(x, wavelet), dwt2(x.float(), wavelet), strict=True):
        assert value.dtype == torch.float32
        assert torch.equal(value, reference)
    # The map goes where the features went: into a head of their precision.
    assert torch.equal(high_frequency_map(x, wavelet), high_frequency_map(x.float(), wavelet).to(dtype))


def test_a_basis_first_used_in_inference_mode_can_be_trained_through():
    with torch.inference_mode():
        dwt2(maps(17, 19), "coif1", "smooth")
    x = maps(17, 19).requires_grad_()
    low, high = dwt2(x, "coif1", "smooth")
    (low.sum() + high.sum()).backward()
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_nor_do_high_frequencies_or_products_first_used_there_stand_in_the_way(kind):
    def run(x):
        return high_frequency_map(x, "coif2", "smooth", kind).sum() + module._by_products(x, (38, 42)).sum()

    for matrix in (module._low_pass_matrix, module._interpolation_matrix):
        matrix.cache_clear()
    with torch.inference_mode():
        run(maps(19, 21))
    x = maps(19, 21).requires_grad_()
    run(x).backward()
    assert x.grad.abs().sum() > 0


def test_memory_layout_does_not_matter():
    x = maps(7, 6)
    for value, reference in zip(dwt2(x.contiguous(memory_format=torch.channels_last)), dwt2(x), strict=True):
        assert torch.equal(value, reference)
    transposed = x.transpose(2, 3)
    torch.testing.assert_close(high_frequency_map(transposed), high_frequency_map(x).transpose(2, 3))


@pytest.mark.parametrize("function", [dwt2, high_frequency_map])
def test_errors_name_the_thing_and_what_is_near(function):
    with pytest.raises(ValueError, match="unknown wavelet 'harr'.*haar"):
        function(maps(4, 4), "harr")
    with pytest.raises(ValueError, match="unknown wavelet 'morl'"):  # continuous: no filter bank
        function(maps(4, 4), "morl")
    with pytest.raises(ValueError, match="padding mode 'symetric'.*symmetric"):
        function(maps(4, 4), "haar", "symetric")
    with pytest.raises(ValueError, match=r"\(B, C, H, W\), got shape \(3, 4, 4\)"):
        function(maps(4, 4)[0])
    with pytest.raises(ValueError, match="0x4 map is too small"):
        function(maps(4, 4)[:, :, :0])


@pytest.mark.parametrize("wavelet", WAVELETS)
@pytest.mark.parametrize("mode", ("zero", "periodization", "replicate"))
@pytest.mark.parametrize("size", ((4, 7), (13, 24)))
def test_band_shape_is_the_bands_shape(wavelet, mode, size):
    assert band_shape(size, wavelet, mode) == tuple(dwt2(maps(*size), wavelet, mode)[0].shape[-2:])
