"""What a model YAML can get wrong."""

import dataclasses

import pytest
import torch

from ds2d2_yolo.detectors.faster_rcnn import FasterRCNNOptions
from ds2d2_yolo.detectors.options import read
from ds2d2_yolo.detectors.registry import DetectorModel
from ds2d2_yolo.detectors.retinanet import RetinaNetOptions
from ds2d2_yolo.errors import UserError
from tests.detectors.small import KINDS, detector, layout

OPTIONS = {"RetinaNetDetect": RetinaNetOptions, "FasterRCNNDetect": FasterRCNNOptions}
EVERY = [(head, f.name, f.default) for head, kind in OPTIONS.items() for f in dataclasses.fields(kind)]
# Settings that go beyond their types: each with a value of its own, which the head must show
SHARES = ("iou", "positives", "score")


@pytest.fixture(params=EVERY, ids=lambda e: f"{e[0]}-{e[1]}")
def option(request):
    return request.param


def test_defaults_are_valid(option):
    head, name, default = option
    given = list(default) if isinstance(default, tuple) else default
    assert getattr(read(OPTIONS[head], {name: given}, head), name) == default
    assert read(OPTIONS[head], None, head) == OPTIONS[head]()


@pytest.mark.parametrize(
    "value", ["many", None, True, float("nan"), float("inf"), -1, [], [1, "two"], {"a": 1}], ids=str
)
def test_a_wrong_value_names_the_option(option, value):
    head, name, default = option
    for given in (value, [value] * len(default)) if isinstance(default, tuple) else (value, [default]):
        with pytest.raises(UserError, match=f"^{head}: option {name}=.* in the model's YAML must be "):
            read(OPTIONS[head], {name: given}, head)


def test_zero_and_more_than_all_where_they_make_no_sense(option):
    head, name, default = option
    zero = [0] * len(default) if isinstance(default, tuple) else 0
    if name.endswith((*SHARES, "gain")) or name in ("roi_sampling", "norm_groups", "box_convs"):
        if name not in ("positive_iou", "rpn_positive_iou"):  # these are not below negative_iou
            assert getattr(read(OPTIONS[head], {name: 0}, head), name) == 0
    else:
        with pytest.raises(UserError, match=f"option {name}=.* must be greater than 0"):
            read(OPTIONS[head], {name: zero}, head)
    if name.endswith(SHARES):
        with pytest.raises(UserError, match=f"option {name}=1.5 .* must be between 0 and 1"):
            read(OPTIONS[head], {name: 1.5}, head)


def test_whole_numbers(option):
    head, name, default = option
    if isinstance(default, int):
        with pytest.raises(UserError, match=f"option {name}=2.5 .* must be a whole number"):
            read(OPTIONS[head], {name: 2.5}, head)
        assert type(getattr(read(OPTIONS[head], {name: 2.0}, head), name)) is int


@pytest.mark.parametrize("kind", KINDS)
def test_an_unknown_option_names_the_nearest(kind):
    with pytest.raises(UserError, match="Detect has no option 'max_dets' .* did you mean max_det"):
        detector(kind, max_dets=5)
    with pytest.raises(UserError, match="Detect has no option 'zzz' .* strides, .* max_det"):
        detector(kind, zzz=5)


def test_options_without_names():
    layers = layout("retinanet")
    layers["head"][-1][-1][-1] = [0.5, 0.05]
    with pytest.raises(UserError, match=r"RetinaNetDetect's options .* must be names with values, not \[0.5, 0.05\]"):
        DetectorModel(layers, verbose=False)


@pytest.mark.parametrize(
    "kind, options, message",
    [
        ("retinanet", {"positive_iou": 0.3}, "RetinaNetDetect: negative_iou is above positive_iou"),
        ("faster-rcnn", {"rpn_negative_iou": 0.8}, "rpn_negative_iou is above rpn_positive_iou"),
        ("faster-rcnn", {"roi_levels": 6}, "roi_levels=6 of 5 strides"),
        ("faster-rcnn", {"strides": [4, 8, 16, 48, 96]}, r"strides=\[4, 8, 16, 48\] of the pooled maps must double"),
        ("faster-rcnn", {"strides": [3, 6, 12, 24, 48]}, r"strides=\[3, 6, 12, 24\] of the pooled maps must double"),
        ("faster-rcnn", {"box_weights": [10, 10, 5]}, r"box_weights=\[10.0, 10.0, 5.0\] must be four numbers"),
    ],
)
def test_options_that_do_not_go_together(kind, options, message):
    with pytest.raises(UserError, match=message):
        detector(kind, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_the_heads_row_leaves_the_number_of_classes_to_the_data(kind):
    layers = layout(kind)
    layers["head"][1][-1][0] = 3
    with pytest.raises(UserError, match="the head's row of the model's YAML says 3 classes; write nc there, .* 5"):
        DetectorModel(layers, nc=5, verbose=False)


@pytest.mark.parametrize("kind, first", [("retinanet", 8), ("faster-rcnn", 4)])
def test_levels_and_maps(kind, first):
    strides = [first * 2**i for i in range(5)]
    for wrong in (strides[:4], [*strides, first * 32]):
        with pytest.raises(UserError, match=f"anchors for {len(wrong)} levels, and the FPN gives it 5 maps"):
            detector(kind, strides=wrong)
    for wrong in ([2 * s for s in strides], [*strides[:4], strides[4] * 2]):
        with pytest.raises(UserError, match=r"strides=\[.*\] in the model's YAML are not those of the maps"):
            detector(kind, strides=wrong)


@pytest.mark.parametrize("kind", KINDS)
def test_channels_of_head_and_fpn_disagree(kind):
    layers = layout(kind)
    layers["head"][-1][-1][1] = 24
    with pytest.raises(UserError, match="the parts of the model's YAML do not fit together: .*24") as raised:
        DetectorModel(layers, verbose=False)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("kind", KINDS)
def test_channels_of_backbone_and_fpn_disagree(kind):
    layers = layout(kind)
    layers["head"][0][-1][0][-1] = 2048
    with pytest.raises(UserError, match=r"maps of \[.*, 2048\] channels, its backbone has \[.*, 512\]"):
        DetectorModel(layers, verbose=False)


def test_options_reach_the_anchors():
    assert detector("retinanet", scales_per_octave=2, ratios=[1.0]).model[-1].anchors.per_cell == 2
    boxes = detector("faster-rcnn", anchor_scale=2, ratios=[1]).model[-1].anchors([torch.zeros(1, 1, 1, 1)], [1])[0]
    assert boxes.tolist() == [[-8, -8, 8, 8]]


@pytest.mark.parametrize("kind", KINDS)
def test_options_reach_the_detections(kind):
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        rows = detector(kind).eval()(image)[0]
        bar = rows[0, :, 4].sort(descending=True).values[5].item()
        some = detector(kind, score=bar, max_det=50).eval()(image)[0]
        few = detector(kind, max_det=3).eval()(image)[0]
        apart = detector(kind, nms_iou=0.0).eval()(image)[0]
    assert some.shape[1] == 50 and torch.equal(some[:, :5], rows[:, :5]) and not some[:, 5:].any()
    assert torch.equal(few, rows[:, :3])
    assert (apart[..., 4] > 0).sum() < (rows[..., 4] > 0).sum()


def test_fewer_proposals_in_validation_than_in_training(monkeypatch):
    head = detector("faster-rcnn", test_proposals_before_nms=5, proposals_before_nms=90).eval()
    propose, seen = head.model[-1].propose, []
    monkeypatch.setattr(
        head.model[-1], "propose", lambda raw, before, after: seen.append(before) or propose(raw, before, after)
    )
    with torch.no_grad():
        head(torch.rand(1, 3, 64, 64))
    assert seen == [5]


def test_the_papers_defaults():
    r, f = RetinaNetOptions(), FasterRCNNOptions()
    assert (r.octave_scale, r.scales_per_octave, r.nms_iou, r.score, r.max_det) == (4.0, 3, 0.5, 0.05, 100)
    assert (r.candidates, r.negative_iou, r.positive_iou) == (1000, 0.4, 0.5)
    assert (f.proposals_before_nms, f.proposals, f.rpn_samples, f.rpn_nms_iou) == (2000, 1000, 256, 0.7)
    assert (f.roi_samples, f.nms_iou, f.test_proposals_before_nms, f.test_proposals) == (512, 0.5, 1000, 1000)
