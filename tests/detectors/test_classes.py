"""Weights of other classes: the rows of a class go where its name is."""

import pytest
import torch

from ds2d2_yolo.detectors.registry import DetectorModel
from tests.detectors.small import KINDS, detector, layout
from tests.helpers.training import listening

THERE = {0: "ship", 1: "plane", 2: "car"}


def filled(kind, names, source, **options):
    torch.manual_seed(1)
    model = DetectorModel(layout(kind, len(names), **options), verbose=False)
    model.names = names
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with listening() as log:
        model.load(source)
    return model, before, log


def rows(kind, state, number):
    """All numbers of one class in the last layers."""
    if kind == "retinanet":
        weight, bias = (state[f"model.3.head.classification_head.cls_logits.{part}"] for part in ("weight", "bias"))
        classes = len(bias) // 9  # anchors of a cell
        return [t[anchor * classes + number] for t in (weight, bias) for anchor in range(9)]
    score, box = (f"model.3.roi_heads.box_predictor.{layer}." for layer in ("cls_score", "bbox_pred"))
    deltas = slice(4 * (number + 1), 4 * (number + 2))  # after the background
    parts = [(state[score + part][number + 1], state[box + part][deltas]) for part in ("weight", "bias")]
    return [tensor for pair in parts for tensor in pair]


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.fixture(scope="module", params=KINDS)
def source(request):
    """A detector that is only read."""
    model = detector(request.param, len(THERE))
    model.names, model.kind = THERE, request.param
    return model


@pytest.mark.parametrize(
    "names",
    [{0: "car", 1: "ship", 2: "plane"}, {0: "Plane ", 1: "ship"}, {0: "boat", 1: "car", 2: "x", 3: "ship", 4: "y"}],
    ids=["order", "fewer", "more"],
)
def test_a_class_keeps_its_rows_under_another_number(source, names):
    kind, given = source.kind, source.state_dict()
    model, before, log = filled(kind, names, source)
    state, places = model.state_dict(), {name: number for number, name in THERE.items()}
    for number, name in names.items():
        known = places.get(name.strip().lower())
        expected = rows(kind, before, number) if known is None else rows(kind, given, known)
        assert equal(rows(kind, state, number), expected)
    if kind != "retinanet":
        assert equal(rows(kind, state, -1), rows(kind, given, -1))  # the background
    common = len(set(map(str.strip, map(str.lower, names.values()))) & set(THERE.values()))
    assert f"{common} of {len(names)} classes start from the weights of the same name, and the others anew" in log
    transferred = next(line for line in log if line.startswith("Transferred"))
    assert transferred == f"Transferred {len(state)}/{len(state)} items from pretrained weights"


def test_in_whatever_order_they_lie_in_memory(source):
    model = DetectorModel(layout(source.kind, 3), verbose=False).to(memory_format=torch.channels_last)
    model.names = {0: "car", 1: "ship", 2: "plane"}
    model.load(source)
    for number, known in enumerate((2, 0, 1)):
        assert equal(rows(source.kind, model.state_dict(), number), rows(source.kind, source.state_dict(), known))


@pytest.mark.parametrize("names", [THERE, {0: "a", 1: "b", 2: "c"}, {0: "0", 1: "1", 2: "2"}], ids=str)
def test_the_same_classes_and_entirely_other_ones_are_taken_by_number(source, names):
    model, _, log = filled(source.kind, names, source)
    given = source.state_dict()
    assert all(torch.equal(value, given[key]) for key, value in model.state_dict().items())
    assert not any("of the same name" in line for line in log)


def test_other_anchors_have_other_rows():
    source = detector("retinanet", len(THERE))
    source.names = THERE
    model, before, _ = filled("retinanet", {0: "car", 1: "ship", 2: "plane"}, source, ratios=[1.0])
    for part in ("weight", "bias"):
        key = f"model.3.head.classification_head.cls_logits.{part}"
        assert torch.equal(model.state_dict()[key], before[key])
