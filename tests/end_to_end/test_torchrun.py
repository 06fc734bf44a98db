"""Trainings that users start with torchrun, on one machine and on two."""

import json
import signal
import time

import psutil
import pytest
import torch

from tests.helpers import killing
from tests.helpers.launching import ROOT, free_port, launch
from tests.helpers.training import RECIPE, resume, rows

SCRIPT = ROOT / "train.py"


def arguments(project, **settings):
    return [f"{key}={value}" for key, value in {**RECIPE, "project": project, **settings}.items()]


def said(err):
    return [line for line in err.splitlines() if line.startswith("ds2d2: ")]


def wait_until(happened, process):
    deadline = time.time() + 120
    while not happened():
        assert process.poll() is None and time.time() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_both_stages_on_two_machines(tmp_path, scenes, teacher, small):
    """Two machines are two launchers that meet at a port."""
    own = tmp_path / "teacher.pt"
    own.write_bytes(teacher.read_bytes())
    made = arguments(tmp_path, model=small, data=scenes, teacher=own, name="student", epochs=2, amplifier_epochs=1)
    port = free_port()
    told = {"port": port, "WITNESS": str(tmp_path)}
    machines = [launch(1, ROOT / "tests/helpers/witness.py", *made, machine=number, **told) for number in (0, 1)]
    ends = [(*machine.communicate(timeout=240), machine.returncode) for machine in machines]
    assert [code for *_, code in ends] == [0, 0], ends[0][1][-3000:] + ends[1][1][-3000:]
    assert "stage 1 of 2" in ends[0][1] + ends[0][0]
    assert "stage" not in ends[1][1] + ends[1][0]  # one machine tells
    assert [row["epoch"] for row in rows(tmp_path / "student")] == [1, 2]
    assert all(row["train/im_high"] > 0 for row in rows(tmp_path / "student"))
    assert sorted(path.name for path in tmp_path.glob("student*")) == ["student", "student-amplifier"]
    assert len(list(tmp_path.glob("teacher-amplifier-*.pt"))) == 1
    weights = tmp_path / "student/weights"
    assert sorted(path.name for path in weights.iterdir()) == ["best.pt", "last.pt"]
    assert torch.load(weights / "best.pt", weights_only=False)["model"] is not None
    images = sorted(path.name for path in (scenes.parent / "images/train").iterdir())
    for stage, epochs in (("AmplifierTrainer", 1), ("DS2D2Trainer", 2)):
        one, other = (json.loads((tmp_path / f"{stage}-{rank}.json").read_text()) for rank in (0, 1))
        assert one["weights"] == other["weights"]  # of one training, to which each contributed its share of the images:
        assert one["batches"] == other["batches"] == len(images) // RECIPE["batch"]
        assert len(one["epochs"]) == len(other["epochs"]) == epochs
        assert all(sorted(mine + theirs) == images for mine, theirs in zip(one["epochs"], other["epochs"], strict=True))


@pytest.mark.slow
def test_processes_with_a_time_limit_train_one_model(tmp_path, scenes, teacher, small):
    """Each has a clock of its own, and the first also writes files."""
    made = arguments(tmp_path, model=small, data=scenes, teacher=teacher, im_high=0, time=0.004)
    process = launch(2, ROOT / "tests/helpers/witness.py", *made, WITNESS=str(tmp_path))
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err[-3000:]
    one, other = (json.loads((tmp_path / f"DS2D2Trainer-{rank}.json").read_text()) for rank in (0, 1))
    assert one["weights"] == other["weights"] and len(one["epochs"]) == len(other["epochs"]) > 2


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_dies_and_the_run_goes_on_with_another_number(tmp_path, scenes, small, rank):
    made = arguments(tmp_path, model=small, data=scenes, name="student", epochs=12, val=False)
    process = launch(2, SCRIPT, *made)
    last = tmp_path / "student/weights/last.pt"
    try:
        wait_until(last.exists, process)
        workers = sorted(psutil.Process(process.pid).children(), key=lambda child: child.pid)[-2:]  # by their ranks
        workers[rank].send_signal(signal.SIGKILL)
        err = process.communicate(timeout=120)[1]
    finally:
        process.kill()
    assert process.returncode not in (0, None)
    assert not psutil.pid_exists(workers[1 - rank].pid)
    (line,) = said(err)  # of the one that is left
    assert line.endswith(f"continue with: torchrun --nproc_per_node=2 train.py resume={last}")
    assert 1 <= len(rows(tmp_path / "student")) < 12
    if rank == 0:  # what is left does not know who died
        assert resume(last) == 0
        assert [row["epoch"] for row in rows(tmp_path / "student")] == list(range(1, 13))


@pytest.mark.slow
def test_resumed_with_more_processes_and_a_launcher_that_is_told_to_end(tmp_path, scenes, small):
    run = tmp_path / "student"
    killed = killing.start(
        arguments(tmp_path, model=small, data=scenes, name="student", epochs=500, val=False),
        "batch:5",
        tmp_path / "printed",
    )
    last = run / "weights/last.pt"
    assert killed == -signal.SIGKILL and [row["epoch"] for row in rows(run)] == [1, 2]
    process = launch(2, SCRIPT, f"resume={last}", forked=False)
    try:
        wait_until(lambda: len(rows(run)) >= 4, process)
        process.send_signal(signal.SIGTERM)  # which it hands on
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert "half precision" not in out + err  # it went on from the state beside the checkpoint
    assert process.returncode not in (0, None) and err.count("Traceback") <= 1, err[-3000:]  # the launcher's own
    heard = said(err)
    assert 1 <= len(heard) <= 2, err[-3000:]  # the second one, too, where the first has ended meanwhile
    assert all(line.endswith(f"continue with: torchrun --nproc_per_node=2 train.py resume={last}") for line in heard)
    done = [row["epoch"] for row in rows(run)]
    assert last.exists() and done == list(range(1, len(done) + 1)) and 4 <= len(done) < 500
