"""The file of a trained amplifier where several runs share a teacher, and which of them a run goes on with."""

import os
from pathlib import Path

import pytest
import torch
from torch import nn
from ultralytics.nn.tasks import load_checkpoint

from ds2d2_yolo.distill.levels import detect_head
from ds2d2_yolo.distill.teacher import load_teacher
from ds2d2_yolo.engine.amplifier_file import amplifier_head, read_amplifier, write_amplifier
from ds2d2_yolo.engine.amplifier_trainer import AmplifierTrainer, _file_name, _sound, ensure_amplifier
from ds2d2_yolo.engine.runs import stage_folder
from ds2d2_yolo.engine.trainer import DS2D2Trainer
from ds2d2_yolo.errors import UserError
from tests.helpers.distilling import settings, tiny
from tests.helpers.steps import begin, finish_epoch, step
from tests.helpers.training import listening, same

NAME = "teacher-amplifier-0.pt"


@pytest.fixture
def write(finished_epoch, teacher_pt, tmp_path):
    """Writes a run's amplifier, the teacher's head with `by` added, beside the teacher or else in the run's folder."""

    def write(run, by):
        model = load_checkpoint(teacher_pt)[0]
        with torch.no_grad():
            next(detect_head(model).parameters()).add_(by)
        folders = [tmp_path / "teacher", tmp_path / run]
        teacher = load_teacher(teacher_pt).fingerprint
        return write_amplifier(detect_head(model), teacher, finished_epoch.args, {}, NAME, folders)

    return write


def test_of_two_runs_that_train_one_each_keeps_its_own(write, tmp_path):
    first = write("first", 1)
    content = first.read_bytes()
    assert first == tmp_path / "teacher" / NAME
    assert write("second", 2) == tmp_path / "second" / NAME
    assert first.read_bytes() == content
    assert write("again", 1) == first  # a stage that was interrupted after this
    first.write_bytes(content[:100])
    assert write("second", 2) == first  # nobody can go on with a damaged one
    assert same(*(read_amplifier(path)["head"] for path in (first, tmp_path / "second" / NAME)))


def test_two_that_write_at_the_same_moment_leave_a_whole_file(write, tmp_path, monkeypatch):
    sync = os.fsync

    def other(handle):  # before the first has put its file in place
        monkeypatch.setattr(os, "fsync", sync)
        write("second", 2)
        sync(handle)

    monkeypatch.setattr(os, "fsync", other)
    path = write("first", 1)
    assert path == tmp_path / "teacher" / NAME and read_amplifier(path)["ap50"] == 0
    assert [file.name for file in path.parent.iterdir()] == [NAME]


def test_a_resumed_run_tells_that_it_has_another_amplifier(make, write):
    path = write("first", 1)
    last = finish_epoch(step(begin(make(im_high=1.0, amplifier=str(path))))).last

    def said():
        with listening() as lines:
            DS2D2Trainer(overrides={"resume": str(last)}).setup_model()
        return any(f"amplifier '{path}' is not the one that this run was started with" in line for line in lines)

    assert not said()
    path.unlink()
    assert write("first", 2) == path
    assert said()


def test_a_run_that_moved_finds_its_own(make, write, teacher_pt, tmp_path):
    beside = write("other", 1)
    teacher = tmp_path / "teacher/teacher.pt"
    teacher.write_bytes(teacher_pt.read_bytes())
    trainer = make(im_high=1.0, amplifier=str(tmp_path / "gone" / NAME), teacher=str(teacher))
    trainer.resume = True
    assert ensure_amplifier(trainer, load_teacher(teacher)) == str(beside)
    own = stage_folder(trainer.save_dir) / "weights" / NAME
    own.parent.mkdir(parents=True)
    write("second", 2).rename(own)
    assert ensure_amplifier(trainer, load_teacher(teacher)) == str(own)


def test_a_trainer_of_ones_own_hears_that_the_first_stage_is_not_it(make, monkeypatch):
    class Mine(DS2D2Trainer):
        pass

    def stages(trainer):
        with listening() as lines, pytest.raises(InterruptedError):
            trainer.prepare()
        return any("stage 1 knows nothing of what Mine overrides" in line for line in lines)

    def stop(*_):
        raise InterruptedError

    monkeypatch.setattr(AmplifierTrainer, "train", stop)
    trainer = make(im_high=1.0)
    assert not stages(trainer)
    trainer.__class__ = Mine
    assert stages(trainer)


@pytest.mark.parametrize("ap50, blind", [(0.0, True), (0.009, True), (0.4, False)])
def test_an_amplifier_that_finds_nothing_is_warned_of(finished_epoch, teacher_pt, tmp_path, ap50, blind):
    model, teacher = load_checkpoint(teacher_pt)[0], load_teacher(teacher_pt).fingerprint
    metrics = {"metrics/mAP50(B)": ap50, "metrics/mAP50-95(B)": ap50 / 2}
    with listening() as log:
        write_amplifier(detect_head(model), teacher, finished_epoch.args, metrics, NAME, [tmp_path])
        assert [f"AP50 {ap50:.3f}) and will teach as little" in line for line in log] == [False] + [True] * blind
        assert _sound((tmp_path / NAME,)) == str(tmp_path / NAME)  # also where it is kept from before
    assert len([line for line in log if "im_high=0" in line]) == 2 * blind


def test_values_that_mean_the_same_name_the_same_amplifier(make, teacher_pt):
    trainer, teacher = make(), load_teacher(teacher_pt)

    def named(**changes):
        return _file_name(Path("t.pt"), teacher.fingerprint, trainer.data, {**vars(trainer.args), **changes})

    assert len({named(fraction=f) for f in (1.0, 1, [1.0, 0.5], (1,))} | {named()}) == 1
    assert len({named(imgsz=size) for size in (96, "96", [96])}) == 1
    assert len({named(), named(fraction=0.5), named(fraction=4), named(imgsz=128), named(imgsz=[96, 128])}) == 5
    assert named(high_frequency="residual") != named()


def test_an_amplifier_of_another_teacher_or_other_high_frequencies_is_refused(tmp_path):
    teacher, args = tiny(), settings(wavelet="haar", wavelet_padding="zero", high_frequency="residual")
    teacher.fingerprint = "ours"
    file = write_amplifier(detect_head(teacher), "ours", args, None, "a.pt", [tmp_path])
    assert {p.dtype for p in amplifier_head(file, teacher, "haar", "zero", "residual").parameters()} == {torch.float32}
    for wrong in (("db2", "zero", "residual"), ("haar", "symmetric", "residual"), ("haar", "zero", "bands")):
        with pytest.raises(UserError, match="was trained with wavelet=haar"):
            amplifier_head(file, teacher, *wrong)
    teacher.fingerprint = "theirs"
    with pytest.raises(UserError, match="was trained for another teacher"):
        amplifier_head(file, teacher, "haar", "zero", "residual")


def test_the_rating_of_an_amplifier_is_kept_as_it_was_found(tmp_path):
    found = {"metrics/mAP50(B)": 0.5, "metrics/mAP50-95(B)": 0.25}
    path = write_amplifier(nn.Linear(2, 2), "abc", settings(), found, "a.pt", [tmp_path])
    data = read_amplifier(path)
    assert (data["ap50"], data["ap"], data["teacher"]) == (0.5, 0.25, "abc")


def test_in_the_runs_own_folder_an_amplifier_takes_the_place_of_another(tmp_path):
    """An earlier run's of the same name, in a folder that is used again."""
    one, other = nn.Linear(2, 2), nn.Linear(2, 2)
    for head in (one, other):
        path = write_amplifier(head, "abc", settings(), None, "a.pt", [tmp_path])
    assert torch.equal(read_amplifier(path)["head"]["weight"], other.weight.half())
