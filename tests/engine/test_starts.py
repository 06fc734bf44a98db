"""What the student's trainer starts from: weights, amplifiers, files of settings, the batch that a GPU can take."""

import shutil
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from ultralytics.cfg import DEFAULT_CFG_DICT
from ultralytics.engine import trainer as trainer_of_ultralytics
from ultralytics.nn.tasks import DetectionModel, load_checkpoint
from ultralytics.utils import SETTINGS, YAML, callbacks
from ultralytics.utils.torch_utils import profile_ops

from ds2d2_yolo.datasets.demo import NAMES
from ds2d2_yolo.distill.model import DS2D2Model
from ds2d2_yolo.distill.teacher import load_teacher
from ds2d2_yolo.engine import amplifier_trainer
from ds2d2_yolo.engine.amplifier_trainer import AmplifierTrainer, _file_name, with_high_frequency
from ds2d2_yolo.engine.settings import INTERNAL, defaults
from ds2d2_yolo.engine.trainer import DS2D2Trainer
from ds2d2_yolo.errors import UserError
from tests.helpers.checkpoints import save_checkpoint
from tests.helpers.distilling import family, tiny_retinanet
from tests.helpers.steps import SIZE, begin
from tests.helpers.training import listening


def test_a_checkpoint_needs_no_backbone_weights_beside_its_own(make, tmp_path):
    """Those that its training began with may be gone by the time it is resumed, or taught."""
    student = tiny_retinanet()
    weights, given = tmp_path / "resnet.pth", {"im_high": 0, "im_full": 0}
    weights.touch()
    YAML.save(tmp_path / "student.yaml", student.yaml)
    files = save_checkpoint(tmp_path / "student.pt", student), tmp_path / "student.yaml"
    trainers = [make(model=str(file), backbone_weights=str(weights), **given) for file in files]
    weights.unlink()
    trainers[0]._check_pair()
    with pytest.raises(UserError, match=r"resnet.pth does not exist"):
        trainers[1]._check_pair()


def test_an_amplifier_of_some_classes_has_a_name_of_its_own(make, teacher_pt):
    trainer, teacher = make(), load_teacher(teacher_pt)
    name = {
        str(classes): _file_name(
            Path("t.pt"), teacher.fingerprint, trainer.data, {**vars(trainer.args), "classes": classes}
        )
        for classes in (None, 0, [0], [0, 1], [1, 0], [1])
    }
    assert name["0"] == name["[0]"] and name["[0, 1]"] == name["[1, 0]"]
    assert len(set(name.values())) == 4
    assert name["None"] == _file_name(Path("t.pt"), teacher.fingerprint, trainer.data, vars(trainer.args))
    bands = _file_name(Path("t.pt"), teacher.fingerprint, {**trainer.data, "channels": 4}, vars(trainer.args))
    assert bands not in name.values()


@pytest.mark.parametrize(
    "freeze, said",
    [
        (99, "freeze=99 leaves nothing of the student to train; freeze"),
        (5, "freeze=5 leaves the student's head alone"),
        ([0, 1, 2, 3, 4], r"freeze=\[0, .*, 4\] leaves the student's head alone to train, and a teacher acts on"),
    ],
    ids=str,
)
def test_a_student_that_nothing_can_teach_is_refused_before_its_amplifier_is_trained(make, freeze, said, monkeypatch):
    monkeypatch.setattr(amplifier_trainer, "_train", None)
    with pytest.raises(UserError, match=said):
        make(freeze=freeze, im_high=0.3).train()
    make(freeze=4)._check_pair()


def test_a_run_on_its_way_may_freeze_all_but_the_head(make):
    trainer = make(freeze=5)
    trainer.resume = True
    with listening() as log:
        trainer._check_pair()
    assert sum("freeze=5 leaves the student's head alone" in line and "changes nothing" in line for line in log) == 1


def test_the_stages_of_a_backbone_are_frozen_with_the_layers_named(make, tmp_path):
    YAML.save(tmp_path / "student.yaml", tiny_retinanet().yaml)
    trainer = make(model=str(tmp_path / "student.yaml"), backbone_weights="none", frozen_stages=2, freeze=[0, 2])
    student = trainer.get_model(str(tmp_path / "student.yaml"), False)
    assert trainer.freeze_list(student) == [0, 2, "1.body.conv1", "1.body.bn1", "1.body.layer1"]
    with pytest.raises(UserError, match=r"freeze=\[1, 2\] leaves the student's head alone"):
        make(model=str(tmp_path / "student.yaml"), backbone_weights="none", freeze=[1, 2])._check_pair()


@pytest.mark.parametrize(
    "names, fits", [(["ship"], True), (NAMES, True), (NAMES[::-1], False), ([*NAMES, "x"], False)], ids=str
)
def test_a_teacher_for_one_class_knows_one_or_those_of_the_data(make, tmp_path, names, fits):
    teacher = family("yolov8n", nc=len(names))
    teacher.names = dict(enumerate(names))
    trainer = make(teacher=str(save_checkpoint(tmp_path / "teacher.pt", teacher)), single_cls=True)
    assert trainer.data["names"] == {0: "item"}
    if fits:
        assert trainer.load_teacher().names == teacher.names
        return
    with pytest.raises(UserError, match=r"teacher.pt' \(. classes\) and data \(. classes\) differ"):
        trainer._check_pair()
    trainer.resume = True  # begun when any would do
    assert trainer.load_teacher().names == teacher.names


def test_one_class_of_a_split_alone(make, data, tmp_path):
    """Also where the data file names no images to validate on that are there."""
    YAML.save(
        tmp_path / "test.yaml", {**YAML.load(data), "path": str(data.parent), "val": "none", "test": "images/val"}
    )
    assert make(data=str(tmp_path / "test.yaml"), split="test", single_cls=True).load_teacher()


def test_the_weight_of_ultralytics_distillation_is_named_beside_a_teacher(make):
    for changes, warned in (({"dis": 3.0}, 1), ({}, 0), ({"dis": 3.0, "teacher": None}, 0)):
        with listening() as log:
            make(**changes).prepare()
        assert sum("dis= goes with distill_model= alone" in line for line in log) == warned


def test_settings_of_distillation_without_a_teacher_are_named(make):
    usual = {key: value for key, value in defaults().items() if key not in INTERNAL}
    for changes, warned in (({"wavelet": "db2", "amplifier": "nowhere.pt"}, 1), ({}, 0)):
        with listening() as log:
            make(**{**usual, **changes}).prepare()
        said = [line for line in log if "without teacher= this changes nothing" in line]
        assert len(said) == warned and all("amplifier=nowhere.pt, wavelet=db2: without" in line for line in said)


def test_a_student_does_not_begin_with_what_an_amplifiers_stage_has_left(make, tmp_path, monkeypatch):
    stage = with_high_frequency(family("yolov8n", nc=2), "haar", "zero", "bands")
    stage.args = {"teacher": "big.pt"}
    torch.save({"model": stage, "train_args": {"teacher": "big.pt"}}, tmp_path / "best.pt")
    left = str(tmp_path / "best.pt")
    for key, changes in (("model", {"teacher": None}), ("model", {"im_high": 0.3}), ("pretrained", {"im_high": 0.3})):
        monkeypatch.setattr(amplifier_trainer, "_train", None)  # no stage is trained before
        with pytest.raises(UserError, match=rf"^{key} '.*best.pt' is of a high-frequency amplifier's .* is 'big.pt'"):
            make(**{key: left, **changes}).train()


def test_what_stops_early_is_kept(make):
    assert make(save=False).args.save is False
    assert make(save=False, time=1).args.save is True and make(save=False, patience=2).args.save is True
    for never in ({"patience": 0}, {"patience": 2, "val": False}):
        assert make(save=False, **never).args.save is False


def test_a_mistake_leaves_no_deterministic_mode_behind(make):
    torch.use_deterministic_algorithms(False)  # as tests before this one may not have left it
    trainer = make(im_high=1, amplifier="nowhere.pt")
    assert torch.are_deterministic_algorithms_enabled()
    with pytest.raises(UserError, match=r"nowhere.pt"):
        trainer.train()
    assert not torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)  # by whoever calls
    try:
        with pytest.raises(UserError, match=r"nowhere.pt"):
            make(im_high=1, amplifier="nowhere.pt").train()
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_the_amplifier_learns_without_its_teachers_class_weights():
    teacher = family("yolov8n", nc=2)
    teacher.class_weights = torch.tensor([1.0, 9.0])
    assert not hasattr(with_high_frequency(teacher, "haar", "zero", "bands"), "class_weights")


def test_an_amplifier_that_has_moved_with_its_run_is_found(make, finished_epoch, tmp_path, monkeypatch):
    trainer = make(im_high=0.3, amplifier="away/teacher-amplifier-0.pt")
    trainer.resume, seen = True, []
    monkeypatch.setattr(amplifier_trainer, "amplifier_head", lambda path, *_: seen.append(path))
    kept = tmp_path / "run-amplifier" / "weights" / "teacher-amplifier-0.pt"
    kept.parent.mkdir(parents=True)
    kept.touch()
    assert amplifier_trainer.ensure_amplifier(trainer, trainer.load_teacher()) == str(kept) and seen == [kept]


def test_a_stage_leaves_the_students_loggers_alone(arguments, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(callbacks, "add_integration_callbacks", lambda trainer: asked.append(type(trainer).__name__))
    given = {**arguments, "project": str(tmp_path), "model": arguments["teacher"]}
    AmplifierTrainer(overrides={**given, "student_run": given})
    assert asked == []
    DS2D2Trainer(overrides={**given, "name": "student"})
    assert asked == ["DS2D2Trainer"]


def test_a_stage_has_its_own_epochs_and_all_of_them(make, monkeypatch):
    """`time=` and `patience=` are the student's."""

    def stage(overrides):
        raise InterruptedError(overrides)

    monkeypatch.setattr(amplifier_trainer, "AmplifierTrainer", stage)
    trainer = make(im_high=0.3, amplifier_epochs=7, time=0.1, patience=2, epochs=50, close_mosaic=5, resume=False)
    with pytest.raises(InterruptedError) as caught:
        amplifier_trainer.ensure_amplifier(trainer, trainer.load_teacher())
    (given,) = caught.value.args
    assert (given["epochs"], given["patience"], given["close_mosaic"]) == (7, 7, 3) and "time" not in given
    assert given["student_run"]["epochs"] == 50 and given["student_run"]["time"] == 0.1


# ---- what it starts from


def test_an_unfinished_student_gives_its_weights(make, finished_epoch):
    trainer = make(pretrained=str(finished_epoch.last), teacher=None)
    trainer.prepare()
    trainer.setup_model()
    saved = load_checkpoint(finished_epoch.last)[0].student_model.state_dict()
    found = trainer.model.state_dict()
    assert type(trainer.model) is DetectionModel
    assert all(torch.allclose(found[name].float(), value.float(), rtol=1e-2) for name, value in saved.items())


def test_pretrained_goes_before_the_weights_of_an_unfinished_student(make, finished_epoch):
    saved = load_checkpoint(finished_epoch.last)[0].student_model.state_dict()["model.0.conv.weight"]
    for pretrained, same in ((True, True), (False, False)):
        trainer = make(model=str(finished_epoch.last), pretrained=pretrained)
        trainer.setup_model()
        assert type(trainer.model) is DS2D2Model
        found = trainer.model.student_model.state_dict()["model.0.conv.weight"]
        assert torch.allclose(found.float(), saved.float(), rtol=1e-2) == same


def test_weights_are_never_fetched(make):
    with pytest.raises(UserError, match="pretrained 'yolo26n.pt' does not exist; weights are never fetched"):
        make(pretrained="yolo26n.pt")  # before YOLO(...).train() looks for it


def test_weights_may_lie_where_ultralytics_keeps_them(make, finished_epoch, tmp_path, monkeypatch):
    (tmp_path / "kept").mkdir()
    shutil.copy(finished_epoch.last, tmp_path / "kept" / "yolo26n.pt")
    kept = {**SETTINGS, "weights_dir": str(tmp_path / "kept")}  # setting it in SETTINGS would write the user's file
    monkeypatch.setattr("ds2d2_yolo.engine.starts.SETTINGS", kept)
    trainer = make(pretrained="yolo26n.pt", teacher=None)
    trainer.prepare()
    assert trainer.args.pretrained == str(tmp_path / "kept" / "yolo26n.pt")


@pytest.mark.parametrize("place", ["cfg", "overrides"])
def test_no_file_brings_trust_from_python_either(arguments, tmp_path, place):
    arguments = {**arguments, "project": str(tmp_path)}
    DS2D2Trainer(overrides={**arguments, "name": "1", "cfg": "gone.yaml"})  # Ultralytics has read it long ago
    DS2D2Trainer(overrides={**arguments, "name": "2", "cfg": "default.yaml"})  # its own
    YAML.save(tmp_path / "given.yaml", {**DEFAULT_CFG_DICT, "trust": True})
    given = {"cfg": str(tmp_path / "given.yaml")}
    with pytest.raises(UserError, match="given.yaml' says trust=True, which no file can"):
        DS2D2Trainer(**given, overrides=arguments) if place == "cfg" else DS2D2Trainer(
            overrides={**arguments, **given, "trust": True}  # as YOLO(...).train(cfg=...) merges them
        )


@pytest.mark.parametrize("quantize", [8, "8", "int8", "W8A8"])
def test_training_for_quantization_is_refused_under_every_name(make, quantize):
    with pytest.raises(UserError, match=f"quantize={quantize}: training for quantization is not supported"):
        make(quantize=quantize)


# ---- the batch that a GPU can take


@pytest.mark.parametrize("alongside", [False, True])
def test_whole_steps_are_measured(make, alongside, monkeypatch):
    """Ultralytics measures passes forward and back: of these a distilled student's is the least part."""
    changes = {"amplifier": "alongside", "im_high": 0.3} if alongside else {}
    trainer, seen = begin(make(**changes)), []
    monkeypatch.setattr(trainer_of_ultralytics, "check_train_batch_size", lambda model, **_: seen.append(model) or 7)
    model = trainer.model
    before, balance = {k: v.clone() for k, v in model.state_dict().items()}, model.balance.state()
    assert trainer.auto_batch() == 7 and trainer.model is model
    whole = deepcopy(seen[0]).train()
    passes = []
    model._frozen.teacher.register_forward_hook(lambda *_: passes.append(1))
    results = profile_ops([torch.empty(b, 3, SIZE, SIZE) for b in (1, 2)], whole, n=1, device="cpu", max_num_obj=9)
    assert None not in results and len(passes) >= 2
    assert all(p.grad is not None for p in whole.model.student_model.model[0].parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert model.balance.state() == balance and all(p.grad is None for p in model.parameters())
