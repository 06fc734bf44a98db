"""A student takes channels of its teacher that belong together."""

import pytest
import torch
from torch import nn
from ultralytics.nn.modules.block import C2f
from ultralytics.nn.tasks import DetectionModel, yaml_model_load

from ds2d2_yolo.detectors.registry import DetectorModel
from ds2d2_yolo.distill.inherit import _convolution, _parts, evenly, inherit, selection
from ds2d2_yolo.paths import find_config
from tests.detectors.small import layout
from tests.helpers.distilling import family, tiny, tiny_faster_rcnn, tiny_retinanet
from tests.helpers.quick import quick_weights

# Families with C3 and C2f, transposed convolutions, attention, area attention, one-to-one branches; in yolov8m widths
# shrink unevenly and concatenations with them, and its blocks are deeper; a head of more levels stands further back
WHOLE = "yolov5n yolov5s, yolov6n yolov6s, yolov8n yolov8m, yolo11n yolo11s, yolo12n yolo12s, yolo26n yolo26s"
WHOLE = [pair.split() for pair in f"{WHOLE}, yolov8n-p2 yolov8s-p2".split(", ")]


@torch.no_grad()
def hidden_in(narrow, wide):
    """Puts the weights of `narrow` where it would inherit from in `wide`, and nothing anywhere else."""
    own, taken = narrow.state_dict(), selection(narrow, wide)
    for name, module in wide.named_modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d)) and ".dfl." not in name:
            for parameter in module.parameters():
                parameter.zero_()
    theirs = wide.state_dict()
    for name, (source, axes) in taken.items():
        tensor = theirs[source]
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


@pytest.mark.parametrize("pair", WHOLE, ids="-".join)
def test_a_detector_hidden_in_a_wider_one_is_found_again(pair):
    """The wider one computes what the narrow one does only if channels meet those they belong to."""
    narrow, wide = (family(name, seed=seed) for seed, name in enumerate(pair))
    taken = hidden_in(narrow, wide)
    assert narrow.state_dict().keys() - taken.keys() <= {f"model.{len(narrow.model) - 1}.dfl.conv.weight"}
    expected = found(narrow)
    torch.testing.assert_close(found(wide), expected, rtol=1e-4, atol=1e-3)
    other = family(pair[0], seed=5)
    assert not torch.allclose(found(other), expected, rtol=1e-4, atol=1e-3)
    assert inherit(other, wide) == 1
    own = narrow.state_dict()
    assert all(torch.equal(value, own[key]) for key, value in other.state_dict().items())


def test_of_a_concatenation_with_an_unknown_part_nothing_is_taken():
    """yolov8l is narrower than yolov8m at the highest level: what reads that one and another has nothing to go by."""
    with quick_weights():
        student, teacher = (family(name) for name in ("yolov8m", "yolov8l"))
    taken = selection(student, teacher)
    assert "model.12.cv1.conv.weight" not in taken
    out, into = taken["model.15.cv1.conv.weight"][1]  # of parts that are both known
    assert len(into) == student.model[15].cv1.conv.in_channels and len(out) == student.model[15].cv1.conv.out_channels


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


@pytest.mark.parametrize("channels", [1, 4])
def test_channels_of_other_images_than_rgb(channels):
    student, teacher = tiny(width=8, channels=channels), tiny(width=16, channels=channels, seed=1)
    assert inherit(student, teacher) > 0.9
    assert torch.equal(student.model[0].conv.weight, teacher.model[0].conv.weight[::2])


@pytest.mark.parametrize("reg_max", [1, 8])
def test_boxes_and_classes_are_taken_whole_or_not_at_all(reg_max):
    """Every second bin of a distance would be another distance."""
    student, teacher = tiny(reg_max=reg_max), tiny(reg_max=16, width=16, seed=1)
    fixed = found(student)  # also gives the head its anchors
    taken = selection(student, teacher)
    assert not any(name.startswith((f"model.4.cv2.{i}.2.", "model.4.dfl")) for name in taken for i in range(2))
    assert any(name.startswith("model.4.cv3.0.2.") for name in taken)
    inherit(student, teacher)
    if reg_max > 1:
        assert student.model[-1].dfl.conv.weight.flatten().tolist() == list(range(reg_max))
    assert found(student).shape == fixed.shape


def test_of_other_classes_boxes_alone_are_taken():
    """A student under single_cls has one class, and its teacher may have several: evenly spaced ones mean nothing."""
    taken = selection(tiny(nc=1), tiny(width=16, seed=1))
    assert any(name.startswith("model.4.cv2.0.2.") for name in taken)
    assert not any(name.startswith(("model.4.cv3.0.2.", "model.4.cv3.1.2.")) for name in taken)
    for kind, last in (("retinanet", ("cls_logits",)), ("faster-rcnn", ("box_predictor.cls_score", "bbox_pred"))):
        student, teacher = (DetectorModel(layout(kind, nc), verbose=False) for nc in (1, 3))
        taken = [name for name in selection(student, teacher) if ".rpn." not in name]
        assert taken and not any(part in name for name in taken for part in last), kind


def test_heads_meet_by_stride():
    """Wherever they stand, and however many levels each has; layers that stand at other strides are other layers."""
    student, teacher = family("yolov8n"), family("yolov8s-p2", seed=1)
    taken = selection(student, teacher)
    ours, theirs = (f"model.{len(m.model) - 1}" for m in (student, teacher))
    assert ours != theirs
    for level in range(3):  # strides 8, 16, 32 of 4, 8, 16, 32
        source, _ = taken[f"{ours}.cv3.{level}.2.bias"]
        assert source == f"{theirs}.cv3.{level + 1}.2.bias"
    assert "model.18.cv1.conv.weight" not in taken  # stride 16 here, 4 there
    back = selection(family("yolov8n-p2"), family("yolov8s", seed=1))
    assert f"{theirs}.cv3.0.2.bias" not in back and back[f"{theirs}.cv3.1.2.bias"][0] == f"{ours}.cv3.0.2.bias"


def scaled(name, scale, depth, width, seed=0):
    """The model of an Ultralytics YAML file at a depth and width of our own."""
    torch.manual_seed(seed)
    layout = {**yaml_model_load(f"{name}.yaml"), "scale": scale, "scales": {scale: [depth, width, 1024]}}
    return DetectionModel(layout, nc=3, verbose=False)


def test_a_deeper_student_keeps_its_own_where_the_teacher_has_no_blocks():
    """What joins the blocks is then another layer, though its channels would fit."""
    student, teacher = scaled("yolov8n", "n", 0.67, 0.25), scaled("yolov8n", "n", 0.33, 0.5, seed=1)
    assert len(student.model[4].m) > len(teacher.model[4].m)
    ours, theirs = (m.model[4].cv2.conv.in_channels for m in (student, teacher))
    assert ours < theirs
    taken = selection(student, teacher)
    assert "model.4.cv1.conv.weight" in taken and "model.4.m.0.cv1.conv.weight" in taken
    assert not any(name.startswith("model.4.cv2.") for name in taken)


def test_a_teacher_that_is_deeper_and_no_wider_gives_all():
    student, teacher = (scaled("yolov8n", "n", depth, 0.25, seed) for seed, depth in enumerate((0.33, 0.67)))
    assert inherit(student, teacher) == 1


def test_what_a_block_scales_its_maps_with_is_taken_with_them():
    student, teacher = (scaled("yolo12n", "l", 0.5, width, seed) for seed, width in enumerate((0.25, 0.5)))
    torch.nn.init.uniform_(teacher.model[6].gamma)
    inherit(student, teacher)
    assert torch.equal(student.model[6].gamma, teacher.model[6].gamma[::2])


@pytest.mark.parametrize("build", [tiny_retinanet, tiny_faster_rcnn])
def test_detectors_of_the_paper(build):
    """Backbones are alike; a wider neck gives its channels, and hidden units where they are as many."""
    student, teacher = build(16), build(32, seed=1)
    assert inherit(student, teacher) > 0.5
    theirs = teacher.model[1].state_dict()
    for name, tensor in student.model[1].state_dict().items():
        assert torch.equal(tensor, theirs[name]), name
    same, own = build(16, seed=2), student.state_dict()
    assert inherit(same, student) == 1
    assert all(torch.equal(value, own[key]) for key, value in same.state_dict().items())


def test_a_backbone_of_other_blocks_keeps_its_own_start():
    """A few layers of ResNet-50's amid ImageNet's for ResNet-18 would be worse, and stay so where they are frozen."""
    with quick_weights():
        student, teacher, whole = (
            DetectorModel(find_config(f"retinanet-{r}.yaml", "model"), verbose=False) for r in ("r18", "r50", "r34")
        )
    taken = selection(student, teacher)
    assert not any(name.startswith("model.1.") or ".inner_blocks." in name for name in taken)
    head = {name.removeprefix("model.3.") for name in taken if name.startswith("model.3.")}
    assert head == set(student.model[3].state_dict())
    assert selection(student, whole).keys() == student.state_dict().keys()  # its first blocks


def test_what_reads_the_maps_of_another_backbone_stays():
    """P6 of the backbone's last map: the student's is not the one that the teacher's filters are for."""

    def built(backbone):
        grammar = layout("retinanet", 3, backbone)
        maps, width, _ = grammar["head"][0][-1]
        grammar["head"][0][-1] = [maps, width, "p6p7_c5"]
        return DetectorModel(grammar, verbose=False)

    taken = selection(built("resnet18"), built("resnet50"))
    assert any(".extra_blocks.p7." in name for name in taken)
    assert not any(".extra_blocks.p6." in name for name in taken)


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


def chain(width, stride=2, origin=-1):
    """A detector whose last layers but the head have this stride, and this layer before them."""
    backbone = [[-1, 1, "Conv", [width, 3, 2]]] * 3
    backbone += [[origin, 1, "Conv", [width, 3, 1]], [-1, 1, "Conv", [width, 3, stride]]]
    head = [[[2, 4], 1, "Detect", ["nc"]]]
    return DetectionModel({"nc": 3, "backbone": backbone, "head": head}, verbose=False)


def test_a_layer_of_another_stride_is_not_inherited():
    name = "model.4.conv.weight"
    assert name in selection(chain(16), chain(32))
    assert name not in selection(chain(16), chain(32, stride=1))


def test_grouped_convolutions_of_one_size_are_inherited_and_dilated_ones_by_their_like():
    grouped = _convolution(*(nn.Conv2d(8, 8, 3, groups=4) for _ in range(2)), None, None, None)
    assert grouped["weight"][0].tolist() == list(range(8))
    narrow, wide = nn.Conv2d(4, 4, 3, dilation=1), nn.Conv2d(8, 8, 3, dilation=2)
    assert _convolution(narrow, wide, None, None, None) is None


def test_no_channel_is_taken_twice():
    assert len(_parts(C2f(64, 64, 1), C2f(40, 40, 3))) == 0  # deeper and narrower
