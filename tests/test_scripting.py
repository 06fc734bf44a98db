"""TorchScript files follow their input to whatever device it is on."""

import pytest
import torch
from ultralytics.cfg import get_cfg
from ultralytics.engine.exporter import NMSModel
from ultralytics.utils.export import torchscript

from ds2d2_yolo.scripting import for_any_device
from tests.detectors.small import KINDS, detector
from tests.helpers.distilling import tiny

pytestmark = [  # of PyTorch's and Ultralytics' own making
    pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]


def devices(script):
    graph = script.inlined_graph
    return [c for c in graph.findAllNodes("prim::Constant") if c.output().type().kind() == "DeviceObjType"]


@pytest.mark.parametrize("kind", [*KINDS, "yolo with NMS"])
def test_no_device_is_written_into_the_graph(kind, tmp_path):
    model = detector(kind) if kind in KINDS else tiny()
    model = model.eval().requires_grad_(False)
    model.model[-1].export = True
    if kind not in KINDS:
        model.task = "detect"
        model = NMSModel(model, get_cfg(overrides={"task": "detect", "conf": 0.001, "iou": 0.5, "max_det": 20}))
    images = torch.rand(1, 3, 64, 64)

    def written(name):
        torchscript.torch2torchscript(model, images, tmp_path / name)
        return torch.jit.load(tmp_path / name)

    assert devices(written("plain.torchscript"))
    with for_any_device():
        script = written("any.torchscript")
    assert not devices(script)
    for seed in range(3):
        torch.manual_seed(seed)
        other = torch.rand(1, 3, 64, 64)
        found, expected = (y[0] if isinstance(y, (tuple, list)) else y for y in (script(other), model(other)))
        assert torch.equal(found, expected) and expected.any()
