"""Weights of a ResNet of another depth."""

from copy import deepcopy

import pytest
import torch
from torchvision.models import resnet18, resnet34

from ds2d2_yolo.detectors.registry import DetectorModel
from ds2d2_yolo.detectors.weights import check_backbone, load_weights
from ds2d2_yolo.errors import UserError
from tests.detectors.small import layout
from tests.detectors.test_weights import body_of, saved, small, trained


def test_a_deeper_resnets_file_is_not_cut_off(tmp_path):
    """A ResNet-34 has all tensors of a ResNet-18, which are not one."""
    model = small()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with torch.device("meta"):
        deeper = resnet34()
    path = saved(tmp_path, trained(deeper), "resnet34.pth")
    with pytest.raises(UserError, match="resnet34.pth is of another backbone than resnet18, .* first .*layer1.2.bn1"):
        load_weights(model, path)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    with pytest.raises(UserError, match="'best.pt' brings the weights of resnet34, and this .* is resnet18"):
        check_backbone(model, small(backbone="resnet34"), "best.pt")
    check_backbone(model, deepcopy(model), "best.pt")


def test_a_stage_that_the_model_lacks_may_be_in_the_file(tmp_path):
    state = trained(resnet18())
    layers = layout("faster-rcnn", 3, "resnet18", strides=[4, 8, 16, 32])
    layers["backbone"][1][-1][-1] = [1, 2, 3]
    layers["head"][0][-1][0] = [64, 128, 256]
    model = DetectorModel(layers, verbose=False)
    load_weights(model, saved(tmp_path, state))
    assert torch.equal(body_of(model)["layer3.0.conv1.weight"], state["layer3.0.conv1.weight"])
