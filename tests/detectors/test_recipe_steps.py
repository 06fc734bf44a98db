"""Published configurations build what they name and take a step with their own settings."""

from pathlib import Path

import pytest
import torch
from ultralytics.cfg import get_cfg
from ultralytics.utils import YAML

from ds2d2_yolo.detectors.faster_rcnn import FasterRCNNDetect
from ds2d2_yolo.detectors.registry import DetectorModel
from ds2d2_yolo.distill.levels import detect_head
from ds2d2_yolo.distill.model import DS2D2Model
from ds2d2_yolo.engine import settings
from ds2d2_yolo.paths import CFG, find_config
from tests.helpers.distilling import make_batch
from tests.helpers.quick import quick_weights

CLASSES = {"dior": 20, "dota": 15}
# Every model, number of classes and weight; what each of the 32 files says is compared elsewhere
RECIPES = [
    f"{data}-{detector}-{models}"
    for detector in ("faster-rcnn", "retinanet")
    for data, models in (("dior", "r101"), ("dior", "r101-r18"), ("dior", "x101-r34"), ("dota", "x101-r50"))
]
BACKBONES = {"r18": "resnet18", "r34": "resnet34", "r50": "resnet50", "r101": "resnet101", "x101": "resnext101_64x4d"}


def taken_apart(name):
    """Data set, detector, and the backbones of teacher and student; none of a student in a teacher's recipe."""
    data, rest = name.split("-", 1)
    detector = next(d for d in ("retinanet", "faster-rcnn") if rest.startswith(d))
    teacher, _, student = rest.removeprefix(f"{detector}-").partition("-")
    return data, detector, teacher, student or None


def build(file, classes):
    """A model of `cfg/models` with fresh weights, whatever the recipe starts from."""
    torch.manual_seed(0)
    with quick_weights(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(DetectorModel, "_dry_run", lambda *_: None)  # each file has it in a test of its own
        model = DetectorModel(find_config(file, "model"), nc=classes, verbose=False)
    if isinstance(detect_head(model), FasterRCNNDetect):
        sampler = detect_head(model).roi_heads.fg_bg_sampler
        assert sampler.batch_size_per_image == 512
        sampler.batch_size_per_image = 32  # the test's time goes there, and its images are small
    return model


def test_all_that_is_in_the_recipes_is_among_those_that_take_a_step():
    def parts(names):
        return {part for name in names for part in zip(range(4), taken_apart(name), strict=True)} | {
            taken_apart(name)[:2] for name in names
        }

    assert parts(RECIPES) == parts([path.stem for path in (CFG / "recipes").iterdir()])


def arguments(name):
    """The recipe as the trainer has it."""
    known = {**vars(get_cfg()), **settings.defaults()}
    return get_cfg(known, settings.check(YAML.load(CFG / "recipes" / f"{name}.yaml")))


def assert_backbone(model, backbone):
    assert [m.name for m in model.modules() if hasattr(m, "frozen_statistics")] == [BACKBONES[backbone]]


def with_teacher(student, teacher, own):
    """Put together as the trainer does; the teacher's head stands in for the trained amplifier."""
    return DS2D2Model(student, teacher, detect_head(teacher), own)


def take_step(model, args, batch):
    """One step of the recipe's optimizer, its rate past the warm-up; the loss of the same batch before it."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, args.lr0, args.momentum, 0, args.weight_decay, nesterov=args.nesterov)
    loss, items = model.train()(batch)
    loss.sum().backward()
    torch.nn.utils.clip_grad_norm_(parameters, 10.0)  # as Ultralytics does
    before = [p.detach().clone() for p in parameters]
    optimizer.step()
    assert all(p.isfinite().all() for p in parameters)
    return loss, items, sum(not torch.equal(p, b) for p, b in zip(parameters, before, strict=True)) / len(before)


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_a_step_of_a_recipe(name):
    data, detector, teacher, student = taken_apart(name)
    args, batch = arguments(name), make_batch((3, 1), 64)
    if student is None:
        assert Path(find_config(args.model, "model")).stem == f"{detector}-{teacher}"
    model = build(args.model, CLASSES[data])
    model.args = args
    assert_backbone(model, student or teacher)
    assert detect_head(model).nc == CLASSES[data]
    terms = dict.fromkeys(settings.TERMS, 0.0)
    if student:
        terms = {term: getattr(args, term) for term in settings.TERMS}
        model = with_teacher(model, build(f"{detector}-{teacher}.yaml", CLASSES[data]), settings.of(args))
        assert all(terms.values())
    loss, items, moved = take_step(model, args, batch)
    assert loss.isfinite().all()
    assert all(value.isfinite() for value in items.values()), items
    detection = sum(value for term, value in items.items() if term not in terms)
    distillation = sum(weight * items[term] for term, weight in terms.items() if weight)
    torch.testing.assert_close(loss.sum(), (detection + distillation) * 2 / 16)  # two images of the paper's sixteen
    assert detection > 0 and all(items[term] > 0 for term, weight in terms.items() if weight)
    assert moved > 0.95
