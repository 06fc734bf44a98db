"""A student takes channels of its teacher that belong together."""

import pytest
import torch
from torch import nn

from ds2d2_yolo.distill.inherit import evenly, inherit, selection
from tests.helpers.distilling import family, tiny, tiny_faster_rcnn, tiny_retinanet

# Families with C3 and C2f, attention, area attention, one-to-one branches; in yolov8m widths shrink unevenly and
# concatenations with them, and its blocks are deeper
WHOLE = ("yolov5n yolov5s", "yolov8n yolov8m", "yolo11n yolo11s", "yolo12n yolo12s", "yolo26n yolo26s")


@torch.no_grad()
def hidden_in(narrow, wide):
    """Puts the weights of `narrow` where it would inherit from in `wide`, and nothing anywhere else."""
    own, taken = narrow.state_dict(), selection(narrow, wide)
    for module in wide.modules():
        if isinstance(module, (nn.Conv2d, nn.BatchNorm2d)):
            for parameter in module.parameters():
                parameter.zero_()
    for name, tensor in wide.state_dict().items():
        if name not in taken:
            continue
        axes = taken[name]
        if not axes:
            tensor.copy_(own[name])
        elif len(axes) == 1:
            tensor[axes[0]] = own[name]
        else:
            tensor[axes[0][:, None], axes[1][None]] = own[name]
    return taken


def found(model, size=128):
    with torch.no_grad():
        output = model.eval()(torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0)))
    return output[0] if isinstance(output, tuple) else output


@pytest.mark.parametrize("pair", WHOLE)
def test_a_detector_hidden_in_a_wider_one_is_found_again(pair):
    """The wider one computes what the narrow one does only if channels meet those they belong to."""
    narrow, wide = (family(name, seed=seed) for seed, name in enumerate(pair.split()))
    taken = hidden_in(narrow, wide)
    assert taken.keys() == narrow.state_dict().keys()
    expected = found(narrow)
    torch.testing.assert_close(found(wide), expected, rtol=1e-4, atol=1e-3)
    other = family(pair.split()[0], seed=5)
    assert not torch.allclose(found(other), expected, rtol=1e-4, atol=1e-3)
    assert inherit(other, wide) == 1
    assert all(torch.equal(value, narrow.state_dict()[key]) for key, value in other.state_dict().items())


def test_blocks_of_another_kind_stay_as_they_are():
    """yolo26m has deeper blocks where yolo26n has bottlenecks; all around them is taken."""
    student, teacher = family("yolo26n"), family("yolo26m", seed=1)
    before = {key: value.clone() for key, value in student.state_dict().items()}
    part = inherit(student, teacher)
    assert 0.9 < part < 1
    kept = before.keys() - selection(student, teacher).keys()
    assert kept and all(torch.equal(student.state_dict()[key], before[key]) for key in kept)
    assert {".".join(key.split(".")[:3]) for key in kept} == {"model.2.m", "model.4.m"}


def test_evenly():
    assert evenly(8, 4).tolist() == [0, 2, 4, 6]
    assert evenly(5, 5).tolist() == [0, 1, 2, 3, 4]
    assert evenly(5, 3).tolist() == [0, 1, 3]


def test_channels_of_a_first_layer():
    student, teacher = tiny(width=8), tiny(width=16, seed=1)
    inherit(student, teacher)
    ours, theirs = (m.model[0].conv.weight for m in (student, teacher))
    assert torch.equal(ours, theirs[::2])
    assert torch.equal(student.model[0].bn.running_var, teacher.model[0].bn.running_var[::2])


def test_boxes_and_classes_are_taken_whole_or_not_at_all():
    student, teacher = tiny(reg_max=1), tiny(reg_max=16, width=16, seed=1)
    taken = selection(student, teacher)
    assert not any(name.startswith(f"model.4.cv2.{i}.2.") for name in taken for i in range(2))
    assert any(name.startswith("model.4.cv3.0.2.") for name in taken)


@pytest.mark.parametrize("build", [tiny_retinanet, tiny_faster_rcnn])
def test_detectors_of_the_paper(build):
    """Backbones are alike; a wider neck gives its channels, and hidden units where they are as many."""
    student, teacher = build(16), build(32, seed=1)
    assert inherit(student, teacher) > 0.5
    for name, tensor in student.model[1].state_dict().items():
        assert torch.equal(tensor, teacher.model[1].state_dict()[name]), name
    same = build(16, seed=2)
    assert inherit(same, student) == 1
    assert all(torch.equal(value, student.state_dict()[key]) for key, value in same.state_dict().items())


def test_a_narrower_teacher_gives_what_is_as_wide():
    """The branches of YOLO's head have a least width."""
    student, teacher = tiny(width=16), tiny(width=8, seed=1)
    before = student.model[0].conv.weight.clone()
    assert 0 < inherit(student, teacher) < 1
    assert torch.equal(student.model[0].conv.weight, before)


def test_families_that_differ_share_little_and_break_nothing():
    student, teacher = family("yolo11n"), family("yolov8s", seed=1)
    assert 0 < inherit(student, teacher) < 1
    assert found(student).isfinite().all()
