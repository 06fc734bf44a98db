"""Pixels of other depths than 8 bits."""

import re
import tracemalloc

import cv2
import numpy as np
import pytest
from PIL import Image

from ds2d2_yolo.datasets import dota, pictures
from ds2d2_yolo.datasets.convert import convert
from ds2d2_yolo.datasets.one_image import Options
from ds2d2_yolo.datasets.pictures import decode, inspect, to_bytes
from ds2d2_yolo.datasets.source import Source
from tests.datasets.downloads import file_of, label_txt, picture, write


def test_sixteen_bits_in_three_bands_are_seen(tmp_path):
    pixels = picture(tmp_path / "a.png", 20, 10, dtype=np.uint16) % 4096
    cv2.imwrite(str(tmp_path / "a.png"), pixels)
    file = file_of(tmp_path / "a.png")
    assert (inspect(file).kind, inspect(file).plain) == ("RGB;16", False)
    np.testing.assert_array_equal(decode(file), pixels // 16)


def test_depths_are_scaled_by_the_bits_in_use():
    ramp = np.arange(4)[None, :, None].repeat(3, 2)
    assert to_bytes((ramp * 1000).astype(np.uint16))[0, :, 0].tolist() == [0, 62, 125, 187]  # 12 bits
    assert to_bytes((ramp * 60).astype(np.uint16))[0, :, 0].tolist() == [0, 60, 120, 180]
    assert to_bytes((ramp * 20000).astype(np.uint16))[0, :, 0].tolist() == [0, 78, 156, 234]
    assert to_bytes((ramp / 3).astype(np.float32))[0, :, 0].tolist() == [0, 85, 170, 255]
    some = np.r_[np.full(298, 5), np.nan, -1].astype(np.float32).reshape(1, 100, 3)  # one below is no scale
    assert to_bytes(some)[0, -2:].tolist() == [[5, 5, 5], [5, 0, 0]]
    assert to_bytes(np.zeros((0, 4, 3), np.uint16)).shape == (0, 4, 3)


def test_decibels_are_stretched_and_what_was_not_seen_is_black(tmp_path):
    """As radar scenes have them, with GDAL's value for no data."""
    values = np.linspace(-30, 5, 24 * 32, dtype=np.float32).reshape(24, 32)
    values[0], values[1, 0], values[1, 1] = -9999, np.nan, -3.4e38
    Image.fromarray(values).save(tmp_path / "a.tif", tiffinfo={42113: "-9999"})
    head = inspect(file_of(tmp_path / "a.tif"))
    assert not head.plain
    found = decode(file_of(tmp_path / "a.tif"), head)
    assert (found[0] == 0).all() and (found[1, :2] == 0).all() and (np.ptp(found, axis=2) == 0).all()
    low, top = np.percentile(values.flatten()[34:], (1, 99))
    np.testing.assert_allclose(found[2:, :, 0], ((values[2:] - low) * 255 / (top - low)).clip(0, 255), atol=3)
    assert len(np.unique(found)) > 200


@pytest.mark.parametrize("fill", [-9999, -32768, -3.4028235e38, np.nan])
@pytest.mark.parametrize("share", [0.0, 0.3])
def test_what_stands_for_nothing_does_not_set_the_scale(fill, share):
    """With no tag that says so, as other programs write it."""
    rng = np.random.default_rng(0)
    shares = rng.uniform(0, 0.3, (60, 60, 1)).astype(np.float32)
    expected, nothing = (shares * 255).astype(np.uint8), rng.random(shares.shape) < share
    shares[nothing] = fill
    shares[0, 0] = -0.001  # as surface reflectance sometimes is
    expected[nothing | (shares < 0)] = 0
    np.testing.assert_array_equal(to_bytes(shares), np.repeat(expected, 3, 2))


def test_whole_decibels_and_floats_of_eight_bits():
    rng = np.random.default_rng(0)
    decibels = rng.normal(-1200, 600, (60, 60, 1)).astype(np.int16)  # hundredths, some above 0
    assert 100 < np.median(to_bytes(decibels)) < 155 and (decibels > 0).any()
    grey = rng.normal(120, 30, (60, 60, 3)).clip(0, 255).astype(np.float32)
    np.testing.assert_array_equal(to_bytes(grey), grey.astype(np.uint8))


def test_opacity_is_seen_beside_a_no_data_value_that_is_no_number(tmp_path):
    bands = np.random.default_rng(0).integers(0, 255, (20, 30, 4), np.uint8)
    Image.fromarray(bands, "RGBA").save(tmp_path / "a.tif", tiffinfo={42113: "1.#QNAN"})
    np.testing.assert_array_equal(decode(file_of(tmp_path / "a.tif")), bands[..., 2::-1])


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.int32, np.float32])
def test_a_dead_pixel_does_not_set_the_scale(dtype):
    """Of 11 bits; the brightest are white, up to a thousandth of what is above 0."""
    image = np.random.default_rng(0).integers(100, 1500, (150, 200, 1)).astype(dtype)
    image[:, :100] = 0  # a scene's empty part does not count
    clean = image.copy()
    image[0, 100:115] = np.iinfo(np.int16).max  # of 15,000
    found = to_bytes(image)
    assert (found[0, 100:115] == 255).all()
    np.testing.assert_array_equal(found[1:], np.repeat(clean[1:] // 8, 3, 2).astype(np.uint8))
    image[0, 115] = np.iinfo(np.int16).max
    np.testing.assert_array_equal(to_bytes(image), np.repeat(image // 128, 3, 2).astype(np.uint8))


def test_a_dead_pixel_of_eight_bits_and_of_all():
    dark = np.full((50, 60, 3), 200, np.uint16)
    dark[0, 0] = 65535
    assert to_bytes(dark)[0, :2].tolist() == [[255] * 3, [200] * 3]
    dark[dark == 200] = 0
    assert to_bytes(dark)[0, :2].tolist() == [[255] * 3, [0] * 3]  # nothing else is to be seen
    floats = np.full((2, 2, 1), 255.5, np.float32)
    assert (to_bytes(floats) == 255).all()
    edges = np.array([[255, 256, 511, 512]], np.uint16)[..., None]
    assert to_bytes(edges)[0, :, 0].tolist() == [63, 64, 127, 128]


def test_many_pixels_without_data_do_not_set_the_scale():
    """65535 is what files hold there whose tags say nothing; where a sensor saturates, too."""
    image = np.random.default_rng(0).integers(100, 1500, (50, 60, 3)).astype(np.uint16)
    image[:20] = 65535
    found = to_bytes(image)
    assert (found[:20] == 255).all()
    np.testing.assert_array_equal(found[20:], (image[20:] // 8).astype(np.uint8))


def test_floats_that_are_no_shares_keep_their_contrast():
    reflectance = np.linspace(0, 1.3, 300, dtype=np.float32).reshape(1, 100, 3)
    assert np.ptp(to_bytes(reflectance)) > 250
    whole = np.arange(-300, 0, dtype=np.int16).reshape(1, 100, 3)  # hundredths of a decibel
    assert np.ptp(to_bytes(whole)) > 250
    assert not to_bytes(np.full((2, 2, 3), np.nan, np.float32)).any()
    assert not to_bytes(np.full((2, 2, 3), -7.5, np.float32), -7.5).any()


def at_once(image, nothing=None):
    """What ``to_bytes`` has to give, by the whole image at a time."""
    seen = np.abs(image) < 1e30 if image.dtype.kind == "f" else np.ones(image.shape, bool)
    for value in (-9999, -32768, -99999, -32767, *([] if nothing is None else [nothing])):
        seen &= image != value
    image = np.where(seen, image, 0).astype(np.float32)
    low, high = np.percentile(image[seen], (1, 99)).tolist() if seen.any() else (0.0, 0.0)
    if low < 0:
        image = (image - np.float32(low)) * np.float32(255 / max(high - low, 1e-6)) * seen
    elif high < 8 and (image[seen] % 1).any():
        image = image * np.float32(255 / max(high, 1))
    elif (top := np.percentile(image[image > 0], 99.9, method="inverted_cdf")) >= 256:
        image = image * np.float32(256 / 2 ** np.ceil(np.log2(float(top) + 1)))
    return np.repeat(image.clip(0, 255).astype(np.uint8), 3 if image.shape[2] == 1 else 1, 2)


@pytest.mark.parametrize("bands", [1, 3])
@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.int32, np.float32, np.float64])
def test_rows_at_a_time_give_what_the_whole_image_does(monkeypatch, dtype, bands):
    """Bit for bit: shares, decibels, 8 to 16 bits, with fills, a no-data value, and what is no number among them."""
    monkeypatch.setattr(pictures, "_BLOCK", 200)
    rng, kind = np.random.default_rng(0), np.dtype(dtype).kind
    odd = {"u": [[]], "i": [[], [-9999, -32768]], "f": [[], [-9999, -32768], [np.nan, np.inf, -3.4e38, 1e31]]}[kind]
    least = 0 if kind == "u" else -32000
    for middle, spread in ((0.5, 0.3), (-12, 6), (120, 40), (-1200, 600), (2000, 900), (2e4, 9e3)):
        for values in odd:
            image = rng.normal(middle, spread, (37, 23, bands)).clip(least, 32000).astype(dtype)
            for value in (7, *values):
                image[rng.random(image.shape) < 0.1] = value
            for nothing in (None, 7.0):
                np.testing.assert_array_equal(to_bytes(image, nothing), at_once(image, nothing))


def test_no_second_image_is_held_while_depths_are_scaled(monkeypatch):
    """But for the result, and some rows."""
    monkeypatch.setattr(pictures, "_BLOCK", 3000)
    monkeypatch.setattr(pictures, "_SAMPLE", 3000)
    for image in (np.arange(480000, dtype=np.uint16).reshape(400, 400, 3), np.zeros((400, 400, 1), np.float32) - 3):
        tracemalloc.start()
        to_bytes(image)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert 3 <= peak / 400**2 < 4  # bytes a pixel


def test_what_is_written_anew_counts_before(tmp_path, capsys):
    square = [(5, 5), (20, 5), (20, 20), (5, 20)]
    for i, split in enumerate(("train", "val")):
        picture(tmp_path / "DOTA" / split / "images" / f"P{i}.png", 300, 200, seed=i, dtype=np.uint16)
        write(tmp_path / "DOTA" / split / "labelTxt" / f"P{i}.txt", label_txt([(square, "ship", 0)]))
    source = Source(tmp_path / "DOTA")
    convert(dota.plan(source), tmp_path / "out", Options(), source.root, 2)
    told = float(re.search(r"2 images, about (\d+) kB to write", capsys.readouterr().out)[1]) * 1000
    written = sum(path.stat().st_size for path in (tmp_path / "out").rglob("*.png"))
    assert 0.5 * written < told < 2 * written
