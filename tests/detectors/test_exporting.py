"""What an export's settings mean for heads with NMS inside."""

from types import SimpleNamespace

import pytest
import torch

from ds2d2_yolo import exporting
from ds2d2_yolo.datasets.exported import Fixed, fixed_by_export
from ds2d2_yolo.detectors.exporting import fit_head
from ds2d2_yolo.errors import UserError
from ds2d2_yolo.report.notes import notes_on
from tests.detectors.small import KINDS, detector
from tests.helpers.checkpoints import save_checkpoint


def yolo_of(model):
    """As Ultralytics' YOLO, as far as it is asked here."""
    callbacks = []
    return SimpleNamespace(model=model, callbacks=callbacks, add_callback=lambda *event: callbacks.append(event))


@pytest.mark.parametrize("kind", KINDS)
def test_thresholds_reach_the_head(kind, capsys):
    model = detector(kind).eval()
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        before = model(image)[0]
        conf = float(before[..., 4][before[..., 4] > 0].median())
        args = {"format": "onnx", "nms": True, "conf": conf, "iou": 0.3, "max_det": 7, "agnostic_nms": True}
        fit_head(yolo_of(model), args, SimpleNamespace(quantize=None, format="onnx"))
        after = model(image)[0]
        model.model[-1].max_det = 100
        every = model(image)[0]
    assert f"scores from {conf:g} on, at IoU 0.3" in capsys.readouterr().out
    assert args == {"format": "onnx", "max_det": 7, "agnostic_nms": True}
    assert after.shape[1] == 7 and (after[..., 4] > 0).any()
    used = every[every[..., 4] > 0]
    assert (used[:, 4] >= conf).all() and 0 < len(used) < int((before[..., 4] > 0).sum())


def test_half_precision_in_onnx_is_refused():
    with pytest.raises(UserError, match="cannot be written to ONNX in half precision: leave half=True"):
        fit_head(yolo_of(detector("retinanet")), {}, SimpleNamespace(quantize=16, format="onnx"))


def test_a_file_tells_the_rules_of_the_nms_inside(tmp_path):
    checkpoint = save_checkpoint(tmp_path / "best.pt", detector("retinanet"))
    file = exporting.run(
        {
            "model": checkpoint,
            "imgsz": 64,
            "format": "torchscript",
            "conf": 0.2,
            "iou": 0.4,
            "check": False,
            "device": "cpu",
        }
    )
    fixed = fixed_by_export(file)
    assert (fixed.head, fixed.score, fixed.overlap) == ("RetinaNetDetect", 0.2, 0.4)
    seen = {
        name: SimpleNamespace(
            imgsz=(64, 64),
            floor=floor,
            overlap=floor and 0.4,
            found=SimpleNamespace(image=torch.zeros(0).int().numpy()),
            truth=SimpleNamespace(images=("a",)),
            max_det=300,
            rect=False,
            doubt=None,
        )
        for name, floor in (("checkpoint", 0.2), ("file", None))
    }
    names = {"checkpoint": str(checkpoint), "file": str(file)}
    assert notes_on(names, seen, None) == []  # both alike, and nothing was asked
    (line,) = notes_on(names, seen, 0.01)
    assert line.startswith("checkpoint, file: the head drops scores up to 0.2 and does NMS itself, at IoU 0.4")


def test_what_an_nms_inside_does_not_hear():
    told = Fixed(final=True, head="RetinaNetDetect", score=0.05, overlap=0.5)
    assert told.unheard({"conf": 0.3, "iou": None}) is told.unheard({"conf": None, "iou": 0.5}) is None
    line = told.unheard({"conf": 0.001, "iou": 0.9})
    assert "with conf=0.05 iou=0.5: conf=0.001 iou=0.9 cannot bring back" in line and line.endswith(
        "export it anew with conf=0.001 iou=0.9"
    )
    everything = Fixed(final=True, head="RetinaNetDetect", score=0.0, overlap=0.5)
    assert everything.unheard({"conf": 0.25, "iou": None}) is None
    older = Fixed(final=True, head="RetinaNetDetect")
    assert "with the conf and iou of its export: iou=0.9 cannot" in older.unheard({"conf": None, "iou": 0.9})
