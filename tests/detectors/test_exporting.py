"""What an export's settings mean for heads with NMS inside."""

from types import SimpleNamespace

import pytest
import torch

from ds2d2_yolo.detectors.exporting import fit_head
from ds2d2_yolo.errors import UserError
from tests.detectors.small import KINDS, detector


@pytest.mark.parametrize("kind", KINDS)
def test_thresholds_reach_the_head(kind, capsys):
    model = detector(kind).eval()
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        before = model(image)[0]
        conf = float(before[..., 4][before[..., 4] > 0].median())
        args = {"format": "onnx", "nms": True, "conf": conf, "iou": 0.3, "max_det": 7, "agnostic_nms": True}
        fit_head(model.model[-1], args, SimpleNamespace(quantize=None, format="onnx"))
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
        fit_head(detector("retinanet").model[-1], {}, SimpleNamespace(quantize=16, format="onnx"))
