"""RetinaNet's and Faster R-CNN's heads as amplifiers, against what they should say, written out slowly."""

import math
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torchvision.ops import MultiScaleRoIAlign

from ds2d2_yolo.detectors.retinanet import RetinaNetDetect
from ds2d2_yolo.distill.amplifiers import FasterRCNNAmplifier, RetinaNetAmplifier, Step, YOLOAmplifier, amplifier_for
from ds2d2_yolo.distill.levels import detect_head
from ds2d2_yolo.errors import UserError
from ds2d2_yolo.method.implicit import roi_implicit_loss
from tests.helpers.distilling import NC, make_batch, tiny, tiny_faster_rcnn, tiny_retinanet
from tests.method import slow_versions as slow

WIDTH = 16
STRIDES = (8, 16, 32, 64, 128)
IMAGE = (88, 136)  # smaller than what the maps cover
COVERED = (96, 160)


def random_maps(strides, size=COVERED, images=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(images, WIDTH, math.ceil(size[0] / s), math.ceil(size[1] / s)) for s in strides]
    return [torch.randn(shape, generator=generator) for shape in shapes]


def batch_with(*boxes, size=IMAGE):
    """A batch of images with these xyxy boxes in pixels."""
    batch = make_batch([len(b) for b in boxes], size)
    if any(boxes):
        x1, y1, x2, y2 = torch.tensor([box for b in boxes for box in b], dtype=torch.float32).unbind(1)
        relative = torch.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], 1)
        batch["bboxes"] = relative / torch.tensor([size[1], size[0]] * 2)
    return batch


# ---- RetinaNet, written out


def slow_anchors(levels):
    """The paper's anchors of some levels, one by one: around every cell's corner, nine of them."""
    anchors = []
    for stride in (STRIDES[level] for level in levels):
        for y in range(math.ceil(COVERED[0] / stride)):
            for x in range(math.ceil(COVERED[1] / stride)):
                for ratio in (0.5, 1, 2):
                    for scale in (1, 2 ** (1 / 3), 2 ** (2 / 3)):
                        w = round(4 * stride * scale / math.sqrt(ratio) / 2)
                        h = round(4 * stride * scale * math.sqrt(ratio) / 2)
                        anchors.append((x * stride - w, y * stride - h, x * stride + w, y * stride + h))
    return np.array(anchors, dtype=float)


def iou(a, b):
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    overlap = max(width, 0) * max(height, 0)
    return overlap / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - overlap)


def slow_roles(anchors, boxes):
    """What each anchor is: "positive", "ignored" or "negative"; a box's best anchors are positive in any case."""
    table = [[iou(anchor, box) for box in boxes] for anchor in anchors.tolist()]
    best = [max(row, default=0) for row in table]
    roles = ["positive" if b >= 0.5 else "ignored" if b >= 0.4 else "negative" for b in best]
    for box in range(len(boxes)):
        top = max(row[box] for row in table)
        roles = ["positive" if row[box] == top else role for row, role in zip(table, roles, strict=True)]
    return roles


def slow_dense_loss(head, levels, sides, boxes, published):
    """The dense implicit loss in float64, and which anchors it left out and how many were positive."""
    anchors = slow_anchors(levels)
    roles = np.array([slow_roles(anchors, b) for b in boxes])
    centre = (anchors[:, :2] + anchors[:, 2:]) / 2
    outside = (centre[:, 0] >= IMAGE[1]) | (centre[:, 1] >= IMAGE[0])
    with torch.no_grad():
        raw = [head.head(maps) for maps in sides]
    logits = [r["cls_logits"].double().numpy() for r in raw]
    decoded = [slow.decode_deltas(anchors, r["bbox_regression"].double().numpy()) for r in raw]
    confidence = slow.sigmoid(logits[1].max(axis=2))
    u = (roles != "ignored") & ~outside
    n, v = max(confidence.sum(), len(boxes)), u * confidence
    if published:
        n, v = sum(max(1, (r == "positive").sum()) for r in roles), confidence
    loss = sum(slow.dense_implicit(logits[0], decoded[0], logits[1], decoded[1], n, u, v))
    return loss, {name: (roles == name).sum(axis=1).tolist() for name in ("ignored", "positive")}, outside.sum()


@pytest.fixture(scope="module")
def retinanet():
    return detect_head(tiny_retinanet(WIDTH)).eval()


BOXES = [[(2, 3, 40, 41), (30, 20, 100, 60), (70, 30, 100, 70)], [(50, 10, 90, 80)]]


@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize("boxes", [BOXES, [BOXES[0], []], [[], []]], ids=["both", "one", "none"])
@pytest.mark.parametrize("levels", [[0, 1, 2, 3, 4], [1, 2], [4]], ids=str)
def test_retinanets_loss_is_the_formula(retinanet, levels, boxes, published):
    sides = [random_maps([STRIDES[i] for i in levels], seed=seed) for seed in (0, 1)]
    step = Step(batch_with(*boxes))
    found = RetinaNetAmplifier(retinanet, levels, published=published).loss(*sides, step)
    expected, roles, outside = slow_dense_loss(retinanet, levels, sides, boxes, published)
    if len(levels) == 5:  # the case has all that the masks are about
        assert [bool(n) for n in roles["ignored"]] == [bool(n) for n in roles["positive"]] == [bool(b) for b in boxes]
        assert outside > 0
    assert found.item() == pytest.approx(expected, rel=2e-4)
    assert expected > 0.01


@pytest.mark.parametrize("levels", [[0, 1, 2, 3, 4], [1, 2], [4]], ids=str)
def test_retinanets_boxes_are_pixels(retinanet, levels):
    """The loss itself would not notice: GIoU is the same at every scale."""
    maps = random_maps([STRIDES[i] for i in levels])
    with torch.no_grad():
        found, raw = RetinaNetAmplifier(retinanet, levels)(maps), retinanet.head(maps)
    expected = slow.decode_deltas(slow_anchors(levels), raw["bbox_regression"].double().numpy())
    np.testing.assert_allclose(found.boxes.numpy(), expected, rtol=1e-4, atol=1e-2)
    assert torch.equal(found.logits, raw["cls_logits"])


def test_what_is_published_differs_where_there_is_nothing(retinanet):
    """On images without objects the published loss grows with the number of anchors; ours is bounded."""
    sides = [random_maps(STRIDES, seed=seed) for seed in (0, 1)]
    ours, theirs = (
        RetinaNetAmplifier(retinanet, [0, 1, 2, 3, 4], published=published).loss(*sides, Step(batch_with([], [])))
        for published in (False, True)
    )
    assert ours < 10
    assert theirs > 100


def test_gradients_reach_the_students_maps_alone(retinanet):
    amplifier = RetinaNetAmplifier(retinanet, [0, 1, 2, 3, 4])
    student, teacher = ([m.requires_grad_() for m in random_maps(STRIDES, seed=seed)] for seed in (0, 1))
    amplifier.loss(student, teacher, Step(batch_with(*BOXES))).backward()
    assert all(m.grad.isfinite().all() and m.grad.abs().sum() > 0 for m in student)
    assert all(m.grad is None for m in teacher)
    assert all(p.grad is None and not p.requires_grad for p in amplifier.head.parameters())


def test_the_students_assignment_is_taken_where_anchors_are_the_same(retinanet):
    sides = [random_maps(STRIDES, seed=seed) for seed in (0, 1)]
    amplifier = RetinaNetAmplifier(retinanet, [0, 1, 2, 3, 4], published=True)
    anchors = torch.cat(retinanet.anchors(sides[0]))
    every = [torch.zeros(len(anchors), dtype=torch.long)] * 2  # all positive

    def loss(**preds):
        return amplifier.loss(*sides, Step(batch_with(*BOXES), preds)).item()

    own = loss()
    assert loss(anchors=anchors, matched=every) < own / 10  # N is the number of positives
    assert loss(anchors=anchors + 1, matched=every) == own
    assert loss(anchors=anchors[:-9], matched=[m[:-9] for m in every]) == own


def test_both_amplifiers_share_an_assignment(retinanet, monkeypatch):
    asked = []
    match = RetinaNetDetect.match
    monkeypatch.setattr(RetinaNetDetect, "match", lambda self, *a: asked.append(1) or match(self, *a))
    sides = [random_maps(STRIDES, seed=seed) for seed in (0, 1)]
    step = Step(batch_with(*BOXES))
    for _ in ("full", "high"):
        RetinaNetAmplifier(retinanet, [0, 1, 2, 3, 4]).loss(*sides, step)
    assert len(asked) == 1


# ---- Faster R-CNN

ROI_STRIDES = (4, 8, 16, 32, 64)
REGIONS = torch.tensor(  # of all four levels that regions are pooled from
    [[0, 5, 9, 60, 70], [1, 100, 30, 240, 200], [1, 3, 20, 300, 310], [0, 0, 0, 500, 490], [1, 40, 40, 48, 52.5]]
)


@pytest.fixture(scope="module")
def faster_rcnn():
    return detect_head(tiny_faster_rcnn(WIDTH)).eval()


def torchvisions(head, maps, rows):
    """Logits and deltas of torchvision's own modules, the background made last and taken out."""
    named = OrderedDict((str(i), m) for i, m in enumerate(maps[:4]))
    images = [rows[rows[:, 0] == i, 1:] for i in range(2)]
    with torch.no_grad():
        pooled = MultiScaleRoIAlign(list("0123"), 7, 2)(named, images, [(512, 512)] * 2)
        logits, deltas = head.roi_heads.box_predictor(head.roi_heads.box_head(pooled))
    order = torch.cat([(rows[:, 0] == i).nonzero()[:, 0] for i in range(2)]).argsort()
    logits, deltas = logits[order], deltas[order]
    return torch.stack([*logits.unbind(1)[1:], logits[:, 0]], 1), deltas.reshape(-1, NC + 1, 4)[:, 1:].flatten(1)


@pytest.mark.parametrize("levels", [[0, 1, 2, 3, 4], [0, 1, 2, 3], [3, 1, 0, 2]], ids=str)
def test_regions_are_asked_about_as_torchvision_does(faster_rcnn, levels):
    maps = random_maps(ROI_STRIDES, (512, 512))
    found = FasterRCNNAmplifier(faster_rcnn, levels)([maps[i] for i in levels], REGIONS)
    for part, expected in zip(found, torchvisions(faster_rcnn, maps, REGIONS), strict=True):
        torch.testing.assert_close(part, expected, rtol=1e-4, atol=1e-4)
    assert found[0].shape == (5, NC + 1) and found[1].shape == (5, 4 * NC)
    assert found[0].std(0).min() > 1e-3  # regions differ


@pytest.mark.parametrize("published", [False, True])
def test_faster_rcnns_loss_is_the_formula(faster_rcnn, published):
    sides = [random_maps(ROI_STRIDES, (512, 512), seed=seed) for seed in (0, 1)]
    student, teacher = (torchvisions(faster_rcnn, maps, REGIONS) for maps in sides)
    amplifier = FasterRCNNAmplifier(faster_rcnn, [0, 1, 2, 3, 4], published=published)
    found = amplifier.loss(*sides, Step({}, {"rois": REGIONS})).item()
    cls, box = slow.roi_implicit(*(side.double().numpy() for side in (student[0], teacher[0], student[1], teacher[1])))
    assert found == pytest.approx((cls * len(REGIONS) if published else cls) + box, rel=1e-4)
    assert found == pytest.approx(
        sum(f * x.item() for f, x in zip((5 if published else 1, 1), roi_parts(amplifier, sides), strict=True))
    )
    assert min(cls, box) > 1e-3


def roi_parts(amplifier, sides):
    (cls_s, box_s), (cls_t, box_t) = (amplifier(maps, REGIONS) for maps in sides)
    return roi_implicit_loss(cls_s, cls_t, box_s, box_t)


def test_region_gradients_reach_the_students_pooled_maps_alone(faster_rcnn):
    amplifier = FasterRCNNAmplifier(faster_rcnn, [0, 1, 2, 3, 4])
    student, teacher = ([m.requires_grad_() for m in random_maps(ROI_STRIDES, (512, 512), seed=s)] for s in (0, 1))
    amplifier.loss(student, teacher, Step({}, {"rois": REGIONS})).backward()
    assert all(m.grad.isfinite().all() and m.grad.abs().sum() > 0 for m in student[:4])
    assert student[4].grad is None  # no region comes from there
    assert all(m.grad is None for m in teacher)
    assert all(p.grad is None and not p.requires_grad for p in amplifier.head.parameters())


def test_no_regions_are_no_loss(faster_rcnn):
    maps = [m.requires_grad_() for m in random_maps(ROI_STRIDES, (64, 64))]
    for published in (False, True):
        amplifier = FasterRCNNAmplifier(faster_rcnn, [0, 1, 2, 3, 4], published=published)
        assert amplifier.loss(maps, maps, Step({}, {"rois": torch.zeros(0, 5)})).item() == 0


@pytest.mark.parametrize("levels, strides", [([1, 2, 3], "stride 4,"), ([2, 4], "stride 4, 8, 32,")])
def test_the_maps_that_regions_are_pooled_from_must_be_there(faster_rcnn, levels, strides):
    with pytest.raises(UserError, match=f"the student has no maps of {strides}"):
        FasterRCNNAmplifier(faster_rcnn, levels)


# ---- both


def test_every_head_has_its_amplifier(retinanet, faster_rcnn):
    kinds = {RetinaNetAmplifier: retinanet, FasterRCNNAmplifier: faster_rcnn, YOLOAmplifier: detect_head(tiny())}
    for kind, head in kinds.items():
        amplifier = amplifier_for(head, list(range(head.nl)), "one2many", True)
        assert type(amplifier) is kind
        assert amplifier.published
        assert amplifier.head is not head
        assert not any(m.training for m in amplifier.head.modules())


@pytest.mark.parametrize("make", [tiny_retinanet, tiny_faster_rcnn])
def test_moves_reach_every_tensor(make):
    amplifier = amplifier_for(detect_head(make()), [0, 1, 2, 3, 4])
    amplifier.to(lambda t: t.to("meta"))
    tensors = [*amplifier.head.parameters(), *amplifier.head.buffers(), amplifier.head.stride]
    assert {t.device.type for t in tensors} == {"meta"}


def test_half_precision_stays_close(retinanet, faster_rcnn):
    regions = {"rois": REGIONS * torch.tensor([1, 0.1875, 0.1875, 0.1875, 0.1875])}  # 512 to 96 px
    for head, strides, preds in ((retinanet, STRIDES, {}), (faster_rcnn, ROI_STRIDES, regions)):
        sides = [random_maps(strides, (96, 96), seed=seed) for seed in (0, 1)]
        amplifier = amplifier_for(head, [0, 1, 2, 3, 4])
        exact = amplifier.loss(*sides, Step(batch_with(*BOXES), dict(preds)))
        with torch.autocast("cpu", torch.bfloat16):
            rough = amplifier.loss(*([m.bfloat16() for m in maps] for maps in sides), Step(batch_with(*BOXES), preds))
        assert rough.dtype == torch.float32
        assert rough.item() == pytest.approx(exact.item(), rel=0.05)
