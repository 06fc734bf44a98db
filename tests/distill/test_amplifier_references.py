"""The reference numbers of RetinaNet's and Faster R-CNN's implicit streams, through the amplifiers."""

from pathlib import Path

import pytest
import torch
from torch import nn

from ds2d2_yolo.detectors.faster_rcnn import FasterRCNNDetect
from ds2d2_yolo.detectors.retinanet import RetinaNetDetect
from ds2d2_yolo.distill.amplifiers import FasterRCNNAmplifier, RetinaNetAmplifier, Step
from tests.method import test_reference as reference


class Answers(nn.Module):
    """Stands in for a network whose outputs are known."""

    def __init__(self, answer=None):
        super().__init__()
        self.answer = answer

    def forward(self, given, *_):
        return given if self.answer is None else self.answer


@pytest.mark.parametrize("name", reference.CASES, ids=lambda n: Path(n).stem)
def test_reference_numbers_of_retinanet(name):
    """The published cases from the boxes on; the generated ones have masks and counts that belong to no boxes."""
    case = reference.load(name)
    levels = list(reference.levels(case))
    classes = len(case["retina_student_cls_0"][0]) * 4 // len(case["retina_student_reg_0"][0])
    amplifier = RetinaNetAmplifier(RetinaNetDetect(classes, 8), levels, published=True)
    amplifier.head.head = Answers()
    amplifier.head.anchors = Answers([reference.tensor(case, f"retina_anchors_{i}") for i in levels])
    anchors = torch.cat(amplifier.head.anchors.answer)
    if name in reference.GENERATED:
        size, matched = (1000, 1000), assignment_of(case)  # its anchors lie anywhere
    else:
        boxes = [torch.from_numpy(b).float().reshape(-1, 4) for b in reference.boxes_by_image(case)]
        size, matched = case["image_hw"].tolist(), amplifier.head.match(anchors, [{"boxes": b} for b in boxes])
    names = {"cls_logits": ("cls", classes), "bbox_regression": ("reg", 4)}
    sides = [
        {key: flat(case, f"retina_{side}_{short}", channels) for key, (short, channels) in names.items()}
        for side in ("student", "teacher")
    ]
    step = Step({"img": torch.empty(1, 3, *size)}, {"anchors": anchors, "matched": matched})
    assert amplifier.loss(*sides, step).item() == pytest.approx(float(case["retina_implicit_total"]), rel=1e-5)


def assignment_of(case):
    """One that has the case's ignored anchors and its number of positives, at least one an image."""
    mask = torch.cat([reference.tensor(case, f"retina_label_weights_{i}") for i in reference.levels(case)], dim=1)
    matched = torch.where(mask > 0, -1, -2)
    positives = int(case["retina_avg_factor"]) - len(matched) + 1
    matched[0, (matched[0] == -1).nonzero()[:positives]] = 0
    return list(matched)


def flat(case, name, channels):
    maps = [reference.tensor(case, f"{name}_{level}") for level in reference.levels(case)]
    return torch.cat([reference.anchors_last(m, channels) for m in maps], 1)


@pytest.mark.parametrize("name", reference.CASES, ids=lambda n: Path(n).stem)
def test_reference_numbers_of_faster_rcnn(name, monkeypatch):
    case = reference.load(name)

    def torchvisions_order(_head, side, _rows):
        """The background first, with deltas of its own, which nobody must look at."""
        logits, deltas = (reference.tensor(case, f"rcnn_{side[0][0]}_{what}") for what in ("cls", "reg"))
        return logits.roll(1, 1), torch.cat([torch.full_like(deltas[:, :4], 1e6), deltas], 1)

    monkeypatch.setattr(FasterRCNNDetect, "predict", torchvisions_order)
    amplifier = FasterRCNNAmplifier(FasterRCNNDetect(2, 8, {"fc": 8}), list(range(5)), published=True)
    rows = torch.zeros(int(case["rcnn_avg_factor"]), 5)
    sides = ([(name,) * 2] * 5 for name in ("student", "teacher"))  # of two images
    found = amplifier.loss(*sides, Step({}, {"rois": rows}))
    expected = float(case["rcnn_cls_as_published"]) + float(case["rcnn_reg"])
    assert found.item() == pytest.approx(expected, rel=1e-5)
