"""Export formats: what they need, what they are told apart by, what half precision makes of an NMS."""

from types import SimpleNamespace

import pytest
import torch

from ds2d2_yolo import formats
from ds2d2_yolo.errors import UserError


@pytest.mark.parametrize("fmt", [*formats.FORMATS, *formats.ALIASES])
def test_missing_packages_are_named(monkeypatch, fmt):
    needed = formats.PACKAGES.get(formats.base_name(fmt), ())
    monkeypatch.setattr(formats, "_installed", lambda _: False)
    if not needed:
        assert formats.known_format(fmt.upper()) == fmt
        return
    with pytest.raises(UserError) as error:
        formats.known_format(fmt)
    assert str(error.value) == f"format={fmt} needs Python packages that are not installed; install {', '.join(needed)}"


def test_a_package_that_is_missed_halfway_is_named():
    try:
        raise RuntimeError("conversion failed") from ModuleNotFoundError("No module named 'x.y'", name="x.y")
    except RuntimeError as error:
        assert formats.why_failed("onnx", error).endswith("not installed; install x")
    assert formats.why_failed("onnx", ValueError("first\nsecond")) == "export to onnx failed: first second"


def test_every_format_of_ultralytics_is_sorted_into_the_tables():
    assert set(formats.PACKAGES) <= set(formats.FORMATS)
    assert set(formats.FORMATS) >= formats.EXACT | formats.MUST_RUN
    assert set(formats.ALIASES.values()) <= set(formats.FORMATS)
    assert {fmt for fmt in formats.FORMATS if formats.is_calibrated(fmt, None)} == {
        "edgetpu", "imx", "axelera", "deepx", "qnn", "hailo", "xilinx",
    }  # fmt: skip
    assert formats.is_calibrated("onnx", 8) and not formats.is_calibrated("onnx", 16)
    assert not formats.is_calibrated("coreml", 8)  # it quantizes weights only and takes no data
    assert formats.has_float32("tflite", None) and not formats.has_float32("onnx", 16)
    assert not formats.has_float32("rknn", None)


@pytest.mark.parametrize(
    ("changes", "warned"),
    [
        ({}, "with 15 classes the NMS of a half-precision ONNX file sees boxes rounded to 4.7 px"),
        ({"imgsz": (1280, 640)}, "rounded to 9.4 px"),
        ({"quantize": None}, ""),
        ({"nms": None}, ""),
        ({"agnostic_nms": True}, ""),
        ({"format": "engine"}, ""),
        ({"imgsz": (96, 128)}, ""),
    ],
)
def test_an_nms_that_half_precision_blinds_is_warned_of(changes, warned, capsys):
    plan = {"imgsz": (640, 640), "nms": True, "quantize": 16, "agnostic_nms": False, "format": "onnx", **changes}
    formats.check_half_nms(SimpleNamespace(**plan), 15)
    printed = capsys.readouterr().out
    assert warned in printed and bool(printed) == bool(warned)


def test_the_steps_are_those_of_ultralytics_nms():
    """A class's number and a place, divided by how many classes there are, in half precision."""
    place = torch.linspace(0, 1, 641)[:-1]
    seen = ((place + 14) / 15).half().double() * 15 - 14
    off = (seen - place).abs().max() * 640
    assert 4.7 / 2 - 0.3 < off < 4.7 / 2 + 0.1  # rounded to the nearest
