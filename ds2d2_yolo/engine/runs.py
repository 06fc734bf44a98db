"""A run's folder: how to go on from there after an interruption, and removed where the run never got anywhere."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from ultralytics.nn.tasks import load_checkpoint

import ds2d2_yolo.restricted  # noqa: F401  so that checkpoints run nothing
from ds2d2_yolo.stages import is_stage_folder

# All that lies in a run's folder until its first epoch is over, its validation's pictures among it; anything else is
# worth keeping
BEFORE_THE_FIRST_EPOCH = ("args.yaml", "labels*.jpg", "train_batch*.jpg", "events.out.tfevents.*", "weights")
BEFORE_THE_FIRST_EPOCH += ("val_batch*.jpg", "Box*_curve.png", "confusion_matrix*.png")


def stage_folder(run: Path) -> Path:
    """Return the folder of the amplifier stage: beside the student's, which a multi-GPU start empties."""
    return run.parent / f"{run.name}-amplifier"


def other_run(stage: Path) -> str | None:
    """What to say where another training's checkpoints lie in the folder that an amplifier stage would take."""
    if all(path.match("*-amplifier-*.pt") for path in (stage / "weights").glob("*.pt")):  # of earlier stages
        return None
    if is_stage_folder(stage):
        return None
    return f"'{stage}', where the amplifier is to be trained, holds another run: give another name="


def in_the_first_stage(last: str | Path) -> str:
    """What to say besides where ``last``, a student's last.pt, is missing and there is one of its amplifier's stage."""
    stage = stage_folder(Path(last).absolute().parent.parent) / "weights" / Path(last).name
    if not stage.is_file():
        return ""
    with suppress(Exception):  # whatever a broken file makes the unpickler raise
        model, ckpt = load_checkpoint(stage)
        if not finished(ckpt):
            return f"; the run was in its first stage: resume={stage}"
        go_on = f"resume={stage}" if model.args.get("student_run") else "start the same command again"
        return f"; the first stage is over, and no epoch of the second: {go_on}"
    return ""


def run_of(checkpoint: str | Path) -> Path | None:
    """Return the folder of the run that a checkpoint lies in, which may have moved; None where it lies alone."""
    folder = Path(checkpoint).absolute().parent
    return folder.parent if folder.name == "weights" and (folder.parent / "args.yaml").is_file() else None


def student_folder(stage: Path) -> Path | None:
    """Return the student's folder beside that of an amplifier stage; None where it is not named as one."""
    name = stage.name.removesuffix("-amplifier")
    return stage.with_name(name) if name not in ("", stage.name) else None


def finished(ckpt: dict) -> bool:
    """Whether there is nothing to resume: released, or stopped after its last epoch."""
    return ckpt.get("optimizer") is None or ckpt["epoch"] + 1 >= ckpt["train_args"]["epochs"]


class RunFolder:
    """The folder ``path`` of a run that begins now; what is there already belongs to others and is left alone."""

    def __init__(self, path: Path):
        self.path, self.begun = path, time.time()
        self._made = [folder for folder in (path, *path.parents) if not folder.exists()]
        self._own = path in self._made or (path.is_dir() and not any(path.iterdir()))
        self._has_older_stage = stage_folder(path).exists()

    def how_to_resume(self, resumed: bool) -> str:
        """Return the line for whoever interrupted the run; of a ``resumed`` one the checkpoint there may be old."""
        folders = [self.path, stage_folder(self.path)]
        if resumed and [self._is_new(folder) for folder in folders] == [False, True]:
            folders.reverse()  # its amplifier was lost, and is trained anew
        for folder in folders:
            last = folder / "weights" / "last.pt"
            if not last.exists() or not (resumed or self._is_new(folder)):
                continue  # none, or one that an older run left in this folder
            model, ckpt = load_checkpoint(last)
            if folder == self.path and finished(ckpt) and not model.args.get("student_run"):
                return f"interrupted after the last epoch; the trained model is {last}"
            return f"interrupted; continue with: {_launcher()} resume={shlex.quote(str(last))}"
        return "interrupted before the first checkpoint; start the same command again"

    def _is_new(self, folder: Path) -> bool:
        """Whether this run has saved a checkpoint there."""
        last = folder / "weights" / "last.pt"
        return last.exists() and last.stat().st_mtime >= self.begun

    def remove_if_worthless(self) -> None:
        """Remove what this run made, if that is not more than every run makes before its first epoch is over.

        An amplifier stage that has got further keeps the student's folder too: another run of that name would write
        over it.
        """
        stage_is_ours = stage_folder(self.path).exists() and not self._has_older_stage
        if not self._own or not self.path.is_dir() or stage_is_ours:
            return
        for thread in threading.enumerate():
            if "(plot_" in thread.name:  # Ultralytics' pictures are drawn on the side, into this folder
                thread.join(timeout=60)
        entries = list(self.path.iterdir())
        if any(map(_of_worth, entries)):
            return
        with suppress(OSError):  # what ended the run is to be seen; and a parent may have another run in it by now
            for entry in entries:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
            for folder in self._made:
                folder.rmdir()


def _launcher() -> str:
    """How this process was started, or can be."""
    if "RANK" in os.environ:
        return f"torchrun --nproc_per_node={os.environ.get('LOCAL_WORLD_SIZE', 1)} train.py"
    return "ds2d2 train" if Path(sys.argv[0]).stem == "ds2d2" else "python train.py"


def _of_worth(entry: Path) -> bool:
    if entry.name == "results.csv":  # of the first epoch, whose checkpoint comes after its row
        return entry.read_bytes().count(b"\n") > 2
    if not any(entry.match(pattern) for pattern in BEFORE_THE_FIRST_EPOCH):
        return True
    return entry.is_dir() and any(entry.iterdir())
