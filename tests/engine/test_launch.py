"""An interruption ends what device=0,1 has started; GPUs are checked without fetching anything."""

import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from ultralytics import YOLO
from ultralytics.engine import trainer
from ultralytics.utils import checks, dist

from ds2d2_yolo.engine import launch
from ds2d2_yolo.engine.launch import ending_together
from ds2d2_yolo.engine.offline import check_amp_offline
from ds2d2_yolo.errors import UserError

# A launcher that takes its time to end when it is told to
LAUNCHER = """
import pathlib, signal, sys, time
def end(*_):
    time.sleep(0.3)
    pathlib.Path(sys.argv[2]).touch()
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
pathlib.Path(sys.argv[1]).touch()
time.sleep(60)
"""


def test_an_interrupted_launcher_is_given_time_to_end(tmp_path):
    begun, ended = tmp_path / "begun", tmp_path / "ended"

    def interrupt(*_):
        if begun.exists():
            signal.setitimer(signal.ITIMER_REAL, 0)
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
    try:
        with ending_together(), pytest.raises(KeyboardInterrupt):
            trainer.subprocess.run([sys.executable, "-S", "-c", LAUNCHER, begun, ended], check=True)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert ended.exists()
    assert trainer.subprocess is subprocess  # other parts of Ultralytics are left alone


def test_one_that_does_not_end_is_killed(monkeypatch):
    monkeypatch.setattr(launch, "PATIENCE", 0.1)
    launcher = SimpleNamespace(told=[])

    def wait(timeout=None):
        raise KeyboardInterrupt if timeout is None else subprocess.TimeoutExpired("launcher", timeout)

    launcher.wait = wait
    launcher.terminate, launcher.kill = (lambda: launcher.told.append("end")), (lambda: launcher.told.append("kill"))
    monkeypatch.setattr(subprocess, "Popen", lambda command: launcher)
    with pytest.raises(KeyboardInterrupt):
        launch.run(["launcher"])
    assert launcher.told == ["end", "kill"]


def test_a_launcher_that_fails_is_noticed():
    with ending_together():
        assert trainer.subprocess.run([sys.executable, "-S", "-c", ""], check=True).returncode == 0
        with pytest.raises(UserError, match=r"device= has failed \(exit code 3\); what it said stands above"):
            trainer.subprocess.run([sys.executable, "-S", "-c", "raise SystemExit(3)"], check=True)


def test_processes_empty_the_folder_but_leave_amplifiers(tmp_path):
    run, other = tmp_path / "run-amplifier", tmp_path / "other"
    for path in (
        run / "weights/best.pt",
        run / "weights/t-amplifier-0123456789.pt",
        run / "deep/er/a.jpg",
        other / "a",
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (run / "link").symlink_to(other)
    with ending_together():
        dist.shutil.rmtree(run)
        assert [path.name for path in run.rglob("*")] == ["weights", "t-amplifier-0123456789.pt"]
        assert (other / "a").exists()
        dist.shutil.rmtree(other)
    assert not other.exists() and dist.shutil is shutil


@pytest.mark.parametrize(("gpu", "fit"), [("NVIDIA H100 80GB HBM3", True), ("NVIDIA GeForce GTX 1660", False)])
def test_mixed_precision_is_checked_without_fetching(gpu, fit, monkeypatch, tmp_path):
    on_gpu = SimpleNamespace(parameters=lambda: iter([SimpleNamespace(device=torch.device("cuda"))]))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: gpu)
    monkeypatch.setattr("ultralytics.utils.WEIGHTS_DIR", tmp_path)
    monkeypatch.setattr("ultralytics.utils.downloads.safe_download", lambda *_, **__: pytest.fail("it would fetch"))
    assert check_amp_offline(on_gpu) is fit
    (tmp_path / "yolo26n.pt").write_bytes(b"anything")  # not a file that a user has named
    assert check_amp_offline(on_gpu) is fit
    assert check_amp_offline.__globals__["ultralytics"].YOLO is YOLO
    assert trainer.check_amp is checks.check_amp
