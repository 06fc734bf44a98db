"""What a teacher of these classes and layers can give this student."""

import pytest
from ultralytics.utils import YAML

from ds2d2_yolo.datasets.demo import NAMES
from ds2d2_yolo.errors import UserError
from tests.detectors.small import layout
from tests.helpers.checkpoints import save_checkpoint
from tests.helpers.distilling import tiny
from tests.helpers.steps import begin, step


@pytest.mark.parametrize(("names", "asked"), [(NAMES, [1]), (["item"], None)])
def test_of_classes_that_count_as_one_the_teacher_is_asked_about_those_that_are_trained(make, tmp_path, names, asked):
    """Its own head knows them by the data's numbers; an amplifier has learned to call them all 0."""
    teacher = tiny((8, 16, 32), width=16, nc=len(names), seed=1)
    teacher.names = dict(enumerate(names))
    file = save_checkpoint(tmp_path / "teacher.pt", teacher)
    trainer = make(teacher=str(file), single_cls=True, classes=[1], im_high=0.3, amplifier="alongside")
    model = begin(trainer).model
    assert model._frozen.full.classes == asked
    step(trainer, 1)
    assert model._frozen.high.classes is None


def test_a_pair_that_shares_no_layer_inherits_nothing(make, tmp_path):
    """Said before the amplifier's stage."""
    YAML.save(tmp_path / "model.yaml", layout("retinanet", len(NAMES), "resnet10"))
    trainer = make(model=str(tmp_path / "model.yaml"), inherit=True, backbone_weights="none")
    with pytest.raises(UserError, match="have no layer in common"):
        trainer._check_pair()
