"""The student's trainer, a step at a time; whole runs are in tests/end_to_end/."""

import shutil
import sys
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import nn
from ultralytics.cfg import DEFAULT_CFG_DICT
from ultralytics.engine import trainer as trainer_of_ultralytics
from ultralytics.nn.tasks import DetectionModel, load_checkpoint
from ultralytics.utils import SETTINGS, YAML, callbacks
from ultralytics.utils.dist import ddp_cleanup, generate_ddp_file
from ultralytics.utils.torch_utils import profile_ops

from ds2d2_yolo.datasets.demo import NAMES
from ds2d2_yolo.distill.model import DS2D2Model
from ds2d2_yolo.distill.teacher import load_teacher
from ds2d2_yolo.engine import amplifier_trainer, settings
from ds2d2_yolo.engine.amplifier_trainer import AmplifierTrainer, _fingerprint
from ds2d2_yolo.engine.trainer import DS2D2Trainer
from ds2d2_yolo.errors import UserError
from tests.helpers.checkpoints import narrow_detector, save_checkpoint
from tests.helpers.distilling import frozen_state, tiny_retinanet
from tests.helpers.steps import OWN, SIZE, begin, finish_epoch, step
from tests.helpers.training import listening

# ---- what is trained


def test_the_optimizer_holds_student_and_adapters_alone(make):
    trainer = begin(make())
    model = trainer.model
    assert type(model) is DS2D2Model
    held = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters()}
    frozen = [p for part in (model._frozen.teacher, model._frozen.full.head) for p in part.parameters()]
    assert not held & {id(p) for p in frozen}
    assert all(id(a.weight) in held for a in model.projector if isinstance(a, nn.Conv2d))
    assert any(isinstance(a, nn.Conv2d) for a in model.projector)


@pytest.mark.parametrize("optimizer", ["AdamW", "MuSGD"])
def test_every_optimizer_takes_the_pair(make, optimizer):
    trainer = make(optimizer=optimizer)
    trainer.setup_model()
    found = trainer.build_optimizer(trainer.model, name=optimizer)
    held = [id(p) for group in found.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in trainer.model.parameters())


def test_steps_move_student_adapters_and_ema_and_leave_the_teacher(make):
    trainer = begin(make(distill_warmup=0))
    frozen = frozen_state(trainer.model)
    before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    step(trainer)
    moved = {k for k, v in trainer.model.state_dict().items() if not torch.equal(v, before[k])}
    adapters = [k for k in before if k.startswith("projector")]
    assert adapters
    assert moved > {*adapters, "student_model.model.0.conv.weight"}
    assert not torch.equal(trainer.ema.ema.state_dict()[adapters[0]], before[adapters[0]])
    after = frozen_state(trainer.model)
    assert all(torch.equal(v, after[k]) for k, v in frozen.items())
    assert not any(m.training for m in trainer.model._frozen.teacher.modules())
    assert trainer.ema.ema._frozen is None


def test_frozen_layers_stay_as_they_are(make):
    trainer = begin(make(freeze=5, distill_warmup=0))
    before = {k: v.clone() for k, v in trainer.model.state_dict().items() if k.startswith("student_model.model.")}
    step(trainer, 1)
    moved = {
        int(k.split(".")[2]) for k, v in trainer.model.state_dict().items() if k in before and (v != before[k]).any()
    }
    assert moved
    assert min(moved) >= 5


def test_a_frozen_neck_leaves_nothing_to_distil(make):
    trainer = begin(make(freeze=23, distill_warmup=0))  # all but the head
    step(trainer, 1)
    assert trainer.model.balance.shares()["ex_low"] == 0


def test_the_schedule_follows_epoch_and_step(make):
    trainer = begin(make(distill_warmup=2, distill_final=0.5, epochs=4))
    factors = []
    for trainer.epoch in (0, 1, 3):
        trainer._model_train()
        for batch in trainer.train_loader:
            trainer.preprocess_batch(batch)
            factors.append(trainer.model.balance.factor)
    cosine = [0.75 + 0.25 * torch.cos(torch.tensor(torch.pi * e / 4)).item() for e in (0, 0.5, 1, 1.5, 3, 3.5)]
    rise = [0, 0.25, 0.5, 0.75, 1, 1]
    assert factors == pytest.approx([c * r for c, r in zip(cosine, rise, strict=True)], abs=1e-6)


@pytest.mark.parametrize("balance, expected", [("gradient", [0, 2, 4]), ("fixed", [0])])
def test_gradients_are_measured_at_intervals(make, monkeypatch, balance, expected):
    trainer = begin(make(balance=balance, batch=2, nbs=2, balance_interval=2))
    assert raised(trainer, "measure_next") == expected


def raised(trainer, flag):
    """Before which of five batches a flag of the model's is raised, which its step would lower again."""
    numbers, model = [], trainer.model
    for number, batch in enumerate([*trainer.train_loader, next(iter(trainer.train_loader))]):
        trainer.preprocess_batch(batch)
        if getattr(model, flag):
            numbers.append(number)
            setattr(model, flag, False)
    return numbers


@pytest.mark.parametrize("balance", ["gradient", "fixed"])
def test_an_amplifier_that_learns_is_asked_anew_at_intervals(make, balance):
    trainer = begin(make(balance=balance, batch=2, nbs=2, balance_interval=2, amplifier="alongside", im_high=0.3))
    assert raised(trainer, "renew_next") == [0, 2, 4]
    held = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in trainer.model.parameters()} and trainer.model.amplifier is not None


@pytest.mark.parametrize("interval", [2, 3, 50])
def test_two_implicit_terms_work_as_often(make, interval):
    """A step that measures has both; it takes neither's turn."""
    own = {"amplifier": "alongside", "im_high": 0.3, "implicit": "turns", "balance": "gradient"}
    trainer, worked = begin(make(**own, batch=1, nbs=1, balance_interval=interval)), []
    for trainer.epoch in range(2):
        trainer._model_train()
        for batch in trainer.train_loader:
            trainer.preprocess_batch(batch)
            worked.append("+".join(n for n in trainer.model._on_turn() if n.startswith("im_")))
            trainer.model.measure_next = False
    assert len(worked) == 16 and set(worked) == {"im_full", "im_high", "im_full+im_high"}
    assert worked.count("im_full") == worked.count("im_high")


@pytest.mark.parametrize(
    "nbs, epochs, expected",
    [(4, 4, [1, 1, 1, 1, 1, 1, 1, 1]), (4, 8, [1, 0, 1, 0, 1, 0, 1, 0]), (4, 16, [1, 0, 0, 0, 1, 0, 0, 0])]
    + [(8, 8, [1, 1, 0, 0, 1, 1, 0, 0])],
)
def test_an_amplifier_learns_in_as_many_steps_as_its_stage_has(make, nbs, epochs, expected):
    """Of the optimizer: all batches of one, or none."""
    trainer = begin(make(amplifier="alongside", im_high=0.3, amplifier_epochs=4, epochs=epochs, nbs=nbs, batch=4))
    learns = []
    for trainer.epoch in range(4):
        trainer._model_train()
        for batch in trainer.train_loader:
            trainer.preprocess_batch(batch)
            learns.append(trainer.model.learn_next)
            if len(learns) % (nbs // 4) == 0:
                trainer.optimizer_step()
        assert trainer.model.amplifier.epoch == trainer.epoch
    assert learns == expected


def test_an_amplifier_that_learns_is_clipped_by_itself(make, monkeypatch):
    trainer, norms = begin(make(amplifier="alongside", im_high=0.3)), []
    clip = torch.nn.utils.clip_grad_norm_

    def note(parameters, max_norm, **kwargs):
        parameters = list(parameters)
        norms.append({id(p) for p in parameters})
        return clip(parameters, max_norm, **kwargs)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", note)
    step(trainer, 1)
    learner = {id(p) for p in trainer.model.amplifier.parameters()}
    assert norms == [learner, {id(p) for p in trainer.model.parameters()} - learner]


def test_recovery_reaches_an_amplifier_that_learns(make):
    trainer = finish_epoch(step(begin(make(amplifier="alongside", im_high=0.3, epochs=4))))
    trainer.epoch = 1
    step(trainer, 1)
    with torch.no_grad():
        next(trainer.model.amplifier.parameters()).fill_(float("nan"))
    trainer.loss = torch.tensor(float("nan"))
    assert trainer._handle_nan_recovery(1)
    saved = load_checkpoint(trainer.last)[0].amplifier.state_dict()
    found = trainer.model.amplifier.state_dict()
    assert all(torch.allclose(found[k].float(), v.float(), rtol=1e-2, atol=1e-3) for k, v in saved.items())


def test_without_a_teacher_it_is_plain_training(make):
    trainer = begin(make(teacher=None))
    assert type(trainer.model) is DetectionModel
    finish_epoch(step(trainer))
    assert type(load_checkpoint(trainer.last)[0]) is DetectionModel
    header = trainer.csv.read_text().splitlines()[0]
    assert not any(name in header for name in settings.TERMS)


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
        str(classes): _fingerprint(teacher, trainer.data, {**vars(trainer.args), "classes": classes})
        for classes in (None, 0, [0], [0, 1], [1, 0], [1])
    }
    assert name["0"] == name["[0]"] and name["[0, 1]"] == name["[1, 0]"]
    assert len(set(name.values())) == 4
    assert name["None"] == _fingerprint(teacher, trainer.data, vars(trainer.args))


def test_an_amplifier_that_has_moved_with_its_run_is_found(make, finished_epoch, tmp_path, monkeypatch):
    trainer = make(im_high=0.3, amplifier="away/teacher-amplifier-0.pt")
    trainer.resume, seen = True, []
    monkeypatch.setattr(amplifier_trainer, "amplifier_head", lambda path, *_: seen.append(path))
    kept = tmp_path / "run-amplifier" / "weights" / "teacher-amplifier-0.pt"
    kept.parent.mkdir(parents=True)
    kept.touch()
    assert amplifier_trainer.ensure_amplifier(trainer) == str(kept) and seen == [kept]


def test_a_stage_leaves_the_students_loggers_alone(arguments, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(callbacks, "add_integration_callbacks", lambda trainer: asked.append(type(trainer).__name__))
    given = {**arguments, "project": str(tmp_path), "model": arguments["teacher"]}
    AmplifierTrainer(overrides={**given, "student_run": given})
    assert asked == []
    DS2D2Trainer(overrides={**given, "name": "student"})
    assert asked == ["DS2D2Trainer"]


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
    monkeypatch.setitem(SETTINGS, "weights_dir", str(tmp_path / "kept"))
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


def test_gains_of_other_heads_are_named(make, tmp_path):
    YAML.save(tmp_path / "student.yaml", tiny_retinanet().yaml)
    trainer = make(model=str(tmp_path / "student.yaml"), teacher=None, backbone_weights="none", box=5.0, cls_pw=0.5)
    with listening() as log:
        trainer.setup_model()
        trainer.set_model_attributes()
    assert sum("box, cls_pw: without effect here" in line for line in log) == 1


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


# ---- columns


def test_terms_and_shares_are_columns_of_training_alone(finished_epoch):
    header = finished_epoch.csv.read_text().splitlines()[0].split(",")
    for name in settings.TERMS:
        assert f"train/{name}" in header
        assert f"share/{name}" in header
        assert f"val/{name}" not in header
    assert "val/cls_loss" in header
    row = dict(zip(header, map(float, finished_epoch.csv.read_text().splitlines()[1].split(",")), strict=True))
    shares = [row[f"share/{name}"] for name in ("detection", *settings.TERMS)]
    assert sum(shares) == pytest.approx(1, abs=1e-3)
    assert row["share/im_full"] > row["share/ex_low"] > row["share/im_high"] == row["train/im_high"] == 0
    assert row["train/im_full"] > 0


def test_validation_gets_ultralytics_arguments(finished_epoch):
    validator = finished_epoch.validator
    assert not set(vars(validator.args)) & set(settings.defaults())
    assert validator.args.imgsz == SIZE
    assert finished_epoch.args.ex_low == 0.3  # the trainer keeps its own


# ---- settings on their way


def test_settings_are_in_args_yaml(make):
    trainer = make()
    saved = YAML.load(trainer.save_dir / "args.yaml")
    assert {k: saved[k] for k in OWN} == OWN
    assert saved["teacher"] == trainer.args.teacher


def test_settings_may_come_as_cfg(data, layout, tmp_path):
    cfg = {**DEFAULT_CFG_DICT, "data": str(data), "model": str(layout), "project": str(tmp_path), "device": "cpu"}
    trainer = DS2D2Trainer(cfg={**cfg, "ex_low": 0.7, "im_full": 0.9}, overrides={"im_full": 1})
    assert (trainer.args.ex_low, trainer.args.im_full) == (0.7, 1.0)
    assert trainer.args.ex_high == settings.defaults()["ex_high"]
    with pytest.raises(UserError, match="wavelet"):
        DS2D2Trainer(cfg={**cfg, "wavelet": "nonsense"})


@pytest.mark.parametrize("wrong", [{"ex_low": -1}, {"wavelet": "nonsense"}, {"im_ful": 1}, {"adapter": "sometimes"}])
def test_wrong_settings_leave_no_run_behind(make, tmp_path, wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        make(**wrong)
    assert list(tmp_path.iterdir()) == []


def test_settings_survive_ultralytics_multi_gpu_child(make, monkeypatch):
    trainer = make()
    monkeypatch.setattr(sys, "path", list(sys.path))
    file = generate_ddp_file(trainer)
    try:
        script = Path(file).read_text(encoding="utf-8")
        rebuild, train, rest = script.rpartition("trainer.train()")
        assert train
        assert not rest.strip()
        child = {"__name__": "__main__"}
        exec(compile(rebuild, file, "exec"), child)
    finally:
        ddp_cleanup(trainer, file)
    rebuilt = child["trainer"]
    assert type(rebuilt) is DS2D2Trainer
    assert vars(settings.of(rebuilt.args)) == vars(settings.of(trainer.args))
    assert vars(rebuilt.args) == vars(trainer.args)
    rebuilt.setup_model()
    assert type(rebuilt.model) is DS2D2Model
    assert vars(rebuilt.model.settings) == vars(settings.of(trainer.args))


def test_compile_is_switched_off_for_pairs_alone(make):
    assert make(compile=True).args.compile is False
    assert make(compile=True, teacher=None).args.compile is True


# ---- teachers that cannot teach


@pytest.mark.parametrize("what", ["missing", "classes", "strides"])
def test_a_teacher_that_does_not_fit(make, folder, what):
    names = dict(enumerate(NAMES))
    teacher = narrow_detector("yolov8", nc=len(NAMES) - (what == "classes"))
    teacher.names = {k: v for k, v in names.items() if k < teacher.model[-1].nc}
    path = save_checkpoint(folder / f"{what}.pt", teacher)
    if what == "missing":
        path.unlink()
    said = {"missing": "does not exist", "classes": f"only the data has {NAMES[-1]}", "strides": "no stride in common"}
    trainer = make(teacher=str(path))
    if what == "strides":
        trainer.model = _finest_only(len(NAMES))
    with pytest.raises(UserError, match=said[what]):
        trainer.setup_model()


def _finest_only(nc):
    layout = [[[1], 1, "Detect", ["nc"]]]
    backbone = [[-1, 1, "Conv", [8, 3, 2]], [-1, 1, "Conv", [8, 3, 2]]]
    return DetectionModel({"nc": nc, "backbone": backbone, "head": layout}, verbose=False)
