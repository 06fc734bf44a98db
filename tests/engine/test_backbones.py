"""What a detector's ResNet starts from, what of it training leaves as it was, and what arguments it does not read."""

import pytest
import torch
from ultralytics.utils import YAML

from ds2d2_yolo.datasets.demo import NAMES
from ds2d2_yolo.detectors.modules import RESNETS
from ds2d2_yolo.detectors.registry import DetectorModel
from ds2d2_yolo.engine.amplifier_trainer import AmplifierTrainer
from ds2d2_yolo.errors import UserError
from tests.detectors.small import layout
from tests.helpers.checkpoints import save_checkpoint
from tests.helpers.distilling import tiny, tiny_retinanet
from tests.helpers.steps import begin, step
from tests.helpers.training import listening

FIRST = ("conv1.", "bn1.", "layer1.")
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@pytest.fixture
def resnet_file(tmp_path):
    torch.manual_seed(3)
    torch.save(RESNETS["resnet10"]().state_dict(), tmp_path / "resnet10.pth")
    return tmp_path / "resnet10.pth"


@pytest.fixture
def trained(make, tmp_path):
    """The backbone's state before and after two steps."""

    def run(kind, **changes):
        YAML.save(tmp_path / "model.yaml", layout(kind, len(NAMES), "resnet10"))
        model = {"model": str(tmp_path / "model.yaml"), "teacher": None, "warmup_epochs": 0, "lr0": 1.0}
        trainer = begin(make(**model, **changes))
        before = body(trainer.model)
        return before, body(step(trainer).model)

    return run


def body(model):
    return {name.partition(".body.")[2]: v.clone() for name, v in model.state_dict().items() if ".body." in name}


def moved(before, after):
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


@pytest.mark.parametrize("kind", ["retinanet", "faster-rcnn"])
def test_one_from_weights_keeps_its_first_stages_and_all_statistics(trained, resnet_file, kind):
    before, after = trained(kind, backbone_weights=str(resnet_file))
    given = torch.load(resnet_file)
    assert all(torch.equal(value, given[name]) for name, value in before.items())
    changed = moved(before, after)
    assert not [name for name in changed if name.startswith(FIRST) or name.endswith(STATISTICS)]
    assert {name for name in before if not name.startswith(FIRST) and not name.endswith(STATISTICS)} == changed


def test_one_from_scratch_is_trained_whole(trained):
    before, after = trained("retinanet", backbone_weights="none")
    assert moved(before, after) == set(before)


def test_what_is_frozen_can_be_said(trained, resnet_file):
    before, after = trained("retinanet", backbone_weights=str(resnet_file), frozen_stages=3, frozen_bn=False)
    changed = moved(before, after)
    assert not [name for name in changed if name.startswith((*FIRST, "layer2."))]
    assert any(name.startswith("layer3.") and name.endswith("running_mean") for name in changed)
    assert any(name.startswith("layer3.") and name.endswith("conv1.weight") for name in changed)


@pytest.mark.parametrize("kind, theirs", [("retinanet", "resnet10"), ("yolo", "no ResNet")])
def test_weights_of_another_backbone_are_refused(make, tmp_path, kind, theirs):
    """What fits by chance would lie among fresh tensors, and be frozen."""
    other = DetectorModel(layout(kind, len(NAMES), "resnet10"), verbose=False) if kind != "yolo" else tiny()
    other.names = dict(enumerate(NAMES))
    given = save_checkpoint(tmp_path / "given.pt", other)
    YAML.save(tmp_path / "model.yaml", layout("retinanet", len(NAMES), "resnet18"))
    trainer = make(model=str(tmp_path / "model.yaml"), teacher=None, pretrained=str(given))
    with pytest.raises(UserError, match=f"given.pt' brings the weights of {theirs}, and this model's .* resnet18"):
        begin(trainer)


def test_weights_of_another_backbone_are_refused_before_the_first_stage(make, tmp_path, teacher_pt):
    given = save_checkpoint(tmp_path / "given.pt", DetectorModel(layout("retinanet", 3, "resnet10"), verbose=False))
    YAML.save(tmp_path / "model.yaml", layout("retinanet", len(NAMES), "resnet18"))
    trainer = make(model=str(tmp_path / "model.yaml"), pretrained=str(given), backbone_weights="none")
    with pytest.raises(UserError, match="brings the weights of resnet10"):
        trainer._check_pair()


def test_weights_of_the_same_backbone_are_taken(make, tmp_path):
    other = DetectorModel(layout("faster-rcnn", 3, "resnet10"), verbose=False)
    given = save_checkpoint(tmp_path / "given.pt", other)
    YAML.save(tmp_path / "model.yaml", layout("retinanet", len(NAMES), "resnet10"))
    model = begin(make(model=str(tmp_path / "model.yaml"), teacher=None, pretrained=str(given))).model
    ours, theirs = body(model), body(other.half().float())
    assert ours and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_distilled_one_keeps_its_first_stages_too(make, tmp_path):
    """As its plain baseline does: else a teacher would be credited with what a free backbone gains or loses."""
    YAML.save(tmp_path / "model.yaml", layout("retinanet", len(NAMES), "resnet10"))
    settings = {"backbone_weights": "none", "frozen_stages": 2, "im_full": 0}
    student = begin(make(model=str(tmp_path / "model.yaml"), **settings)).model.student_model
    learn = {name.partition(".body.")[2]: p.requires_grad for name, p in student.named_parameters() if ".body." in name}
    first = [learns for name, learns in learn.items() if name.startswith(FIRST)]
    assert first and not any(first)
    assert all(learns for name, learns in learn.items() if not name.startswith(FIRST))


def test_gains_of_other_heads_are_named(make, tmp_path):
    YAML.save(tmp_path / "student.yaml", tiny_retinanet().yaml)
    trainer = make(model=str(tmp_path / "student.yaml"), teacher=None, backbone_weights="none", box=5.0, cls_pw=0.5)
    with listening() as log:
        trainer.setup_model()
        trainer.set_model_attributes()
    assert sum("box, cls_pw: without effect here" in line for line in log) == 1


def test_the_stage_of_such_a_teacher_is_silent_on_the_students_gains(arguments, tmp_path):
    teacher = tiny_retinanet()
    teacher.names = dict(enumerate(NAMES))
    own = {"teacher": str(save_checkpoint(tmp_path / "retinanet.pt", teacher)), "project": str(tmp_path), "box": 5.0}
    stage = AmplifierTrainer(overrides={**arguments, **own, "model": own["teacher"], "student_run": arguments})
    with listening() as log:
        stage.setup_model()
        stage.set_model_attributes()
    assert type(stage.model).__name__ == "DetectorModel"
    assert not [line for line in log if "without effect" in line]
