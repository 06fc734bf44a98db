import pytest
import torch
from torch import nn
from ultralytics.nn import tasks

from ds2d2_yolo.distill.levels import Level, detect_head, neck_channels, shared_levels, tapped
from ds2d2_yolo.errors import UserError
from tests.helpers.distilling import family, tiny


@pytest.mark.parametrize(
    "student, teacher, expected",
    [
        ((8, 16, 32), (8, 16, 32), [(8, 0, 0), (16, 1, 1), (32, 2, 2)]),
        ((8, 16, 32), (4, 8, 16, 32), [(8, 0, 1), (16, 1, 2), (32, 2, 3)]),  # P2 teacher
        ((4, 8, 16, 32), (8, 16, 32, 64), [(8, 1, 0), (16, 2, 1), (32, 3, 2)]),  # P2 student, P6 teacher
        ((8, 16, 32, 64), (16, 32), [(16, 1, 0), (32, 2, 1)]),  # as in yolov3-tiny
        ((16,), (4, 8, 16), [(16, 0, 2)]),
        ((32, 16, 8), (8, 16), [(8, 2, 0), (16, 1, 1)]),  # a head may list its levels in any order
    ],
)
def test_levels_meet_at_equal_strides(student, teacher, expected):
    assert shared_levels(tiny(student), tiny(teacher, width=16)) == [Level(*e) for e in expected]


def test_the_shared_levels_of_two_families_have_maps_of_one_size():
    student, teacher = family("yolo26n").eval(), family("yolov8n-p2").eval()
    image = torch.zeros(1, 3, 64, 96)
    with torch.no_grad(), tapped(detect_head(student)) as ours, tapped(detect_head(teacher)) as theirs:
        student(image)
        teacher(image)
    levels = shared_levels(student, teacher)
    assert [level.stride for level in levels] == [8, 16, 32]
    for level in levels:
        size = (64 // level.stride, 96 // level.stride)
        assert ours[level.student].shape[2:] == theirs[level.teacher].shape[2:] == size


def test_no_stride_in_common_names_both():
    with pytest.raises(UserError, match=r"student \(strides \[4, 8\]\) and teacher \(strides \[16, 32\]\)"):
        shared_levels(tiny((4, 8)), tiny((16, 32)))


@pytest.mark.parametrize(
    "kind, name",
    [
        (tasks.SegmentationModel, "yolo11n-seg"),
        (tasks.OBBModel, "yolo11n-obb"),
        (tasks.PoseModel, "yolo11n-pose"),
        (tasks.ClassificationModel, "yolo11n-cls"),
        (tasks.WorldModel, "yolov8n-worldv2"),  # its head needs a text
        (tasks.YOLOEModel, "yoloe-11n"),
        (tasks.RTDETRDetectionModel, "rtdetr-resnet50"),
    ],
)
def test_other_tasks_are_refused_by_name(kind, name):
    model = kind(f"{name}.yaml", verbose=False)
    with pytest.raises(UserError, match="the student is no detector .*head " + type(model.model[-1]).__name__):
        detect_head(model, "the student")
    with pytest.raises(UserError, match="the teacher is no detector"):
        shared_levels(tiny(), model)


def test_what_is_no_ultralytics_model_is_refused():
    with pytest.raises(UserError, match="Linear"):
        detect_head(nn.Linear(2, 2))
    model = nn.Module()
    model.model = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(UserError, match="no detector"):
        detect_head(model)


def test_a_head_without_its_one_to_many_branch_is_refused():
    model = tiny(end2end=True, reg_max=1).eval()
    model.end2end = True
    with pytest.raises(UserError, match="fused"):
        detect_head(model.fuse(verbose=False))
    assert detect_head(tiny().eval().fuse(verbose=False)).cv2 is not None  # others lose nothing by it


def test_tapped_hands_out_what_the_head_receives():
    model = tiny().eval()
    with tapped(detect_head(model)) as maps:
        assert maps == []
        model(torch.zeros(1, 3, 64, 64))
        model(torch.zeros(2, 3, 32, 32))  # the last pass counts
    assert [tuple(m.shape) for m in maps] == [(2, 8, 4, 4), (2, 16, 2, 2)]
    assert all(m.requires_grad for m in maps)


def test_tapped_leaves_no_hook():
    head = detect_head(tiny().eval())
    with tapped(head), tapped(head):
        assert len(head._forward_pre_hooks) == 2
    with pytest.raises(ZeroDivisionError), tapped(head):
        raise ZeroDivisionError
    assert not head._forward_pre_hooks
    assert not head._forward_hooks


@pytest.mark.parametrize("strides", [(8, 16), (4, 8, 64)])
def test_neck_channels(strides):
    model = tiny(strides, width=16, channels=4)
    assert neck_channels(model, 4) == [m[0].conv.in_channels for m in detect_head(model).cv2]


def test_neck_channels_leaves_the_model_alone():
    model = tiny().train()
    model.model[1].eval()  # as a frozen layer would be
    modes = [m.training for m in model.modules()]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    neck_channels(model, 3)
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    with pytest.raises(RuntimeError):
        neck_channels(model, 5)  # the first layer does not take five channels
    assert [m.training for m in model.modules()] == modes
    assert not detect_head(model)._forward_pre_hooks
