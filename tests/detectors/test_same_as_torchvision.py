"""With the same weights, torchvision's own RetinaNet and Faster R-CNN find and learn the same."""

from functools import partial

import pytest
import torch
from torch import nn
from torchvision.models import resnet18
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops.feature_pyramid_network import LastLevelP6P7
from ultralytics.utils import YAML

from ds2d2_yolo.detectors.boxes import targets_of
from ds2d2_yolo.detectors.registry import DetectorModel
from ds2d2_yolo.paths import CFG
from tests.detectors.small import KINDS, batch_of, lively, still
from tests.helpers.quick import quick_weights

SIZE, NC, FC = 128, 5, 128  # at 128 px torchvision's anchors have the maps' true strides, up to one of 128
ROIS, PROPOSALS = 32, 60
RATIOS = ((0.5, 1.0, 2.0),) * 5
LOSSES = {
    "retinanet": {"box_loss": "bbox_regression", "cls_loss": "classification"},
    "faster-rcnn": {
        "rpn_cls_loss": "loss_objectness",
        "rpn_box_loss": "loss_rpn_box_reg",
        "cls_loss": "loss_classifier",
        "box_loss": "loss_box_reg",
    },
}


def port(kind, version):
    """Our detector as shipped; Faster R-CNN with a narrower box head on fewer regions, to be quick.

    Of the second version all but the backbone, which is too large a one.
    """
    layers = YAML.load(CFG / "models" / f"{kind}-r18.yaml")
    if version == "v2":
        large = YAML.load(CFG / "models" / f"{kind}-r50-v2.yaml")
        layers["head"][0][-1][2:] = large["head"][0][-1][2:]
        layers["head"][1] = large["head"][1]
    if kind == "faster-rcnn":
        layers["head"][-1][-1][-1] |= {"fc": FC, "roi_samples": ROIS, "test_proposals": PROPOSALS}
    model = DetectorModel(layers, nc=NC, verbose=False)
    for m in model.modules():
        if isinstance(m, torch.nn.BatchNorm2d):  # statistics that are not those of a fresh layer
            m.running_mean.normal_(0, 0.1)
            m.running_var.uniform_(0.5, 1.5)
    return lively(model, SIZE)


def reference(kind, version):
    """torchvision's detector with the same settings, put together as its builders do."""
    if kind == "retinanet":
        new = version == "v2"
        sizes = tuple(tuple(4 * s * 2 ** (i / 3) for i in range(3)) for s in (8, 16, 32, 64, 128))
        body = _resnet_fpn_extractor(resnet18(), 5, [2, 3, 4], LastLevelP6P7(512 if new else 256, 256))
        head = RetinaNetHead(256, 9, NC, norm_layer=partial(nn.GroupNorm, 32)) if new else None
        more = {"anchor_generator": AnchorGenerator(sizes, RATIOS), "detections_per_img": 100, "head": head}
        return RetinaNet(body, NC, SIZE, SIZE, **more)
    anchors = AnchorGenerator(tuple((8 * s,) for s in (4, 8, 16, 32, 64)), RATIOS)
    head = {"box_head": TwoMLPHead(256 * 49, FC), "box_predictor": FastRCNNPredictor(FC, NC + 1)}
    norm = {}
    if version == "v2":
        norm = {"norm_layer": nn.BatchNorm2d}
        head["box_head"] = FastRCNNConvFCHead((256, 7, 7), [256] * 4, [FC], **norm)
        head["rpn_head"] = RPNHead(256, 3, conv_depth=2)
    sizes = {"min_size": SIZE, "max_size": SIZE, "rpn_post_nms_top_n_train": 1000, "rpn_post_nms_top_n_test": PROPOSALS}
    body = _resnet_fpn_extractor(resnet18(), 5, **norm)
    return FasterRCNN(body, rpn_anchor_generator=anchors, box_batch_size_per_image=ROIS, **sizes, **head)


@pytest.fixture(scope="module", params=[(kind, version) for kind in KINDS for version in ("v1", "v2")], ids="-".join)
def pair(request):
    kind, version = request.param
    torch.manual_seed(0)
    with quick_weights():
        ours, theirs = port(kind, version), reference(kind, version)
    parts = [(*name.split(".", 2)[1:], value) for name, value in ours.state_dict().items()]
    theirs.load_state_dict({("" if place == "3" else "backbone.") + name: value for place, name, value in parts})
    theirs.transform.torch_choice = lambda sizes: sizes[0]  # draws no random number, which the samplers would miss
    return kind, ours, theirs


def test_same_detections(pair):
    kind, ours, theirs = pair
    images = batch_of([0, 0], (SIZE, SIZE))["img"]
    with torch.no_grad():
        found, _ = ours.eval()(images)
        expected = theirs.eval()(list(images))
    for rows, one in zip(found, expected, strict=True):
        n = len(one["boxes"])
        assert 20 < n < 101 and one["labels"].unique().numel() > 2  # there is something to compare
        assert int((rows[:, 4] > 0).sum()) == n
        torch.testing.assert_close(rows[:n, :4], one["boxes"], atol=1e-4, rtol=0)
        torch.testing.assert_close(rows[:n, 4], one["scores"], atol=1e-4, rtol=0)
        assert rows[:n, 5].tolist() == (one["labels"] - int(kind == "faster-rcnn")).tolist()
        assert not rows[n:].any()


def both_losses(ours, theirs, kind, counts):
    """Of a training step on a batch with so many boxes: our total, ours by name, torchvision's by its names."""
    batch = batch_of(counts, (SIZE, SIZE), NC)
    batch["bboxes"][::3, 2:] /= 8  # smaller than any anchor, which their best one learns all the same
    torch.manual_seed(1)
    total, losses = ours.loss(batch)
    torch.manual_seed(1)
    expected = theirs(list(batch["img"]), targets_of(batch, int(kind == "faster-rcnn")))
    assert losses.keys() == LOSSES[kind].keys() and len(expected) == len(losses)
    for name, value in losses.items():
        torch.testing.assert_close(value, expected[LOSSES[kind][name]].detach(), atol=1e-4, rtol=0)
        assert value > 0 or not sum(counts)
    return total, expected


@pytest.mark.parametrize("counts", [[7, 0], [0, 0]], ids=str)
def test_same_losses(pair, counts):
    kind, ours, theirs = pair
    with torch.no_grad():
        both_losses(still(ours), still(theirs), kind, counts)


def test_same_losses_and_gradients(pair):
    kind, ours, theirs = pair
    ours, theirs = still(ours), still(theirs)
    total, losses = both_losses(ours, theirs, kind, [6, 6])
    total.sum().backward()
    sum(losses.values()).backward()
    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        _, place, name = name.split(".", 2)
        wanted = expected[("" if place == "3" else "backbone.") + name].grad * (2 / 64)
        torch.testing.assert_close(parameter.grad, wanted, atol=1e-4, rtol=1e-3)
