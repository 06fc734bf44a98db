"""What a resumed run sees of an epoch is what the run that was not interrupted saw of it."""

import weakref
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from ultralytics.nn.tasks import load_checkpoint

from ds2d2_yolo.engine import amplifier_trainer
from ds2d2_yolo.engine.trainer import DS2D2Trainer
from tests.helpers.steps import begin, finish_epoch, step
from tests.helpers.training import same


def _images(trainer, epoch):
    """Every image of an epoch as training sees it: augmented, in its order."""
    trainer.epoch = epoch
    trainer._model_train()
    return torch.cat([batch["img"].clone() for batch in trainer.train_loader])


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_begins_alike_whatever_came_before(make, workers):
    """Ultralytics has loader workers on GPUs only; they hold random states and images of their own."""

    def started():
        trainer = make(teacher=None)
        trainer.args.workers = workers  # the trainer of a CPU has set 0
        return begin(trainer)

    whole, resumed = started(), started()
    assert whole.train_loader.num_workers == workers
    first, second = _images(whole, 0), _images(whole, 1)
    assert not torch.equal(first, second)
    assert torch.equal(_images(resumed, 1), second)
    with pytest.raises(StopIteration):  # nothing is read ahead that the next epoch throws away
        next(whole.train_loader.iterator)
    for trainer in (whole, resumed):
        trainer.train_loader.close()


def test_other_seeds_see_other_images(make):
    """Order and augmentation; else runs of several seeds from the same weights would be one."""
    first, second = (_images(begin(make(teacher=None, seed=seed)), 0) for seed in (0, 1))
    assert not torch.equal(first, second)


def test_what_pytorch_draws_in_an_epoch_does_not_depend_on_what_was_drawn_before(make):
    """Faster R-CNN samples its regions."""
    trainer, seen = begin(make(teacher=None)), []
    for drawn in (3, 70):
        torch.rand(drawn)
        trainer._model_train()
        seen.append(torch.rand(4))
    assert torch.equal(*seen)


@pytest.mark.parametrize("exact", [True, False])
def test_a_student_that_has_inherited_goes_on_with_what_it_has_learned(make, exact):
    trainer = make(inherit=True, exact=exact, lr0=0.1, warmup_epochs=0)
    trainer = finish_epoch(step(begin(trainer)))
    again = DS2D2Trainer(overrides={"resume": str(trainer.last)})
    again.prepare()
    found = begin(again).model.student_model.state_dict()
    if exact:
        left = trainer.model.student_model.state_dict()
    else:  # what the checkpoint holds in half precision
        left = load_checkpoint(trainer.last)[0].student_model.float().state_dict()
    assert all(torch.equal(found[key].float(), value.float()) for key, value in left.items())


def test_no_mosaic_is_of_one_image_because_its_epoch_has_just_begun(make):
    """Ultralytics' mosaic draws from the images last read, of which a new epoch knows none."""
    trainer = begin(make(teacher=None))
    dataset = trainer.train_loader.dataset
    for _ in range(2):
        assert len(set(dataset.buffer)) == len(dataset.buffer) == dataset.max_buffer_length - 1 == dataset.ni - 1
        before = list(dataset.buffer)
        for _ in trainer.train_loader:
            assert len(set(dataset.buffer)) == len(dataset.buffer) == dataset.max_buffer_length - 1
        trainer.epoch += 1
        trainer._model_train()
        assert dataset.buffer != before
        assert sum(image is not None for image in dataset.ims) == 0  # as in a run that is resumed here
    held = begin(make(teacher=None, cache="ram")).train_loader.dataset
    assert all(image is not None for image in held.ims) and not held.buffer  # it draws from all


def test_gradients_that_wait_for_their_step_follow_device_and_loss_scale(make):
    trainer = begin(make(teacher=None, batch=4, nbs=12))
    step_of = trainer.optimizer_step
    trainer.optimizer_step = lambda: None  # two of three batches
    step(trainer)
    trainer.optimizer_step = step_of
    finish_epoch(trainer)
    state = torch.load(trainer.wdir / "state-0.pt", weights_only=True)
    assert state["loss_scale"] == 1
    waiting = {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}
    assert same(state["gradients"], waiting)
    torch.save({**state, "loss_scale": 4.0}, trainer.wdir / "state-0.pt")  # of a run in mixed precision
    resumed = begin(DS2D2Trainer(overrides={"resume": str(trainer.last)}))
    assert same({n: p.grad for n, p in resumed.model.named_parameters() if n in waiting}, _scaled(waiting, 1 / 4))
    resumed.model.to("meta")  # stands in for a GPU
    resumed._restored, resumed._rescale = waiting, 1.0
    resumed._model_train()
    assert all(resumed.model.get_parameter(name).grad.is_meta for name in waiting)


def test_a_batch_that_was_too_large_begins_the_resumed_epoch_again(make, monkeypatch):
    """Ultralytics halves it and builds its pipeline anew, from how many batches it has counted to a step."""
    trainer = finish_epoch(step(begin(make(teacher=None, batch=4, nbs=4, epochs=2, warmup_epochs=0))))
    resumed = DS2D2Trainer(overrides={"resume": str(trainer.last)})
    prepare, take, steps = resumed.preprocess_batch, resumed.optimizer_step, []

    def full(batch):
        monkeypatch.setattr(resumed, "preprocess_batch", prepare)
        raise RuntimeError("CUDA out of memory")

    def counted():
        steps.append(resumed._batch)
        take()

    monkeypatch.setattr(resumed, "preprocess_batch", full)
    monkeypatch.setattr(resumed, "optimizer_step", counted)
    resumed.train()
    assert resumed.batch_size == 2 and resumed._last_step == 7
    assert steps == [5, 7]  # of the second epoch's batches 4 to 7, two a step
    decays = {group["weight_decay"] for group in resumed.optimizer.param_groups}
    assert decays == {0.0, resumed.args.weight_decay}


def test_the_optimizer_works_as_this_device_can(finished_epoch, monkeypatch):
    """A GPU's AdamW steps in one kernel and takes the loss scale; a CPU's checkpoint must not talk it out of that."""
    build = DS2D2Trainer.build_optimizer

    def fused(self, *args, **kwargs):
        optimizer = build(self, *args, **kwargs)
        for group in optimizer.param_groups:
            group["fused"] = True
        return optimizer

    monkeypatch.setattr(DS2D2Trainer, "build_optimizer", fused)
    resumed = begin(DS2D2Trainer(overrides={"resume": str(finished_epoch.last)}))
    assert {group["fused"] for group in resumed.optimizer.param_groups} == {True}


def test_the_optimizers_state_lies_in_memory_as_the_parameters_do(make, monkeypatch):
    """Ultralytics has channels last on GPUs alone, and the one kernel for AdamW takes no other layout."""
    trainer = finish_epoch(step(begin(make(teacher=None, optimizer="AdamW"))))
    build = DS2D2Trainer.build_optimizer

    def built(self, model, *args, **kwargs):
        return build(self, model.to(memory_format=torch.channels_last), *args, **kwargs)

    monkeypatch.setattr(DS2D2Trainer, "build_optimizer", built)
    resumed = begin(DS2D2Trainer(overrides={"resume": str(trainer.last)}))
    pairs = [(p, v) for p, s in resumed.optimizer.state.items() for v in s.values() if v.shape == p.shape]
    assert any(not p.is_contiguous() for p, _ in pairs)
    assert all(value.stride() == p.stride() for p, value in pairs)
    before = [v for s in trainer.optimizer.state_dict()["state"].values() for v in s.values()]
    after = [v for s in resumed.optimizer.state_dict()["state"].values() for v in s.values()]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_the_amplifiers_stage_leaves_no_trainer_behind(monkeypatch, tmp_path):
    alive = []

    class Stage:
        wdir, kept = tmp_path, None

        def __init__(self, overrides):
            self.schedule = lambda epoch: self  # a circle, as Ultralytics' trainers stand in
            alive.append(weakref.ref(self))

        def train(self):
            assert alive[0]() is self

    monkeypatch.setattr(amplifier_trainer, "AmplifierTrainer", Stage)
    monkeypatch.setattr(amplifier_trainer, "finish", lambda stage: tmp_path / stage.named)
    args = SimpleNamespace(close_mosaic=10, amplifier_epochs=2, teacher="teacher.pt", epochs=3)
    student = SimpleNamespace(loaded=False, args=args, save_dir=tmp_path / "student")
    assert amplifier_trainer._train(student, "head.pt") == tmp_path / "head.pt"
    assert alive[0]() is None


def _scaled(tensors, factor):
    return {name: value * factor for name, value in tensors.items()}


def test_every_process_draws_numbers_of_its_own(make, monkeypatch):
    """Else all would augment alike."""
    trainer, seen = begin(make(teacher=None)), []
    for rank in (0, 1):
        monkeypatch.setattr("ds2d2_yolo.engine.exact.RANK", rank)
        trainer._model_train()
        seen.append(torch.rand(4))
    assert not torch.equal(*seen)


def test_the_state_of_the_epoch_before_goes(make):
    trainer = finish_epoch(step(begin(make(teacher=None))))
    trainer.epoch = 1
    trainer._model_train()
    finish_epoch(step(trainer))
    assert [path.name for path in Path(trainer.wdir).glob("state-*")] == ["state-1.pt"]


def test_after_a_step_batches_are_counted_from_it(make):
    trainer = finish_epoch(step(begin(make(teacher=None))))

    resumed = begin(DS2D2Trainer(overrides={"resume": str(trainer.last)}))
    assert resumed._last_step == 1 and resumed.accumulate == resumed._accumulate + 2
    step(resumed, 1)
    assert resumed._last_step == 2 and resumed.accumulate == resumed._accumulate
