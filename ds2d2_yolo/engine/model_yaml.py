"""Model YAML files: what is wrong with one is said in a line, before Ultralytics stumbles over it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ultralytics.nn.tasks import guess_model_task, yaml_model_load

from ds2d2_yolo.errors import UserError, explain, one_line

TEXTUAL = ("WorldDetect", "YOLOEDetect")
ROW = "[from, repeats, module, arguments]"


def read(cfg: dict | str | Path, name: str, nc: int) -> dict:
    """Return a detector's description as Ultralytics wants it.

    Args:
        cfg: Path of a YAML file, or the description that a checkpoint has kept.
        name: What the user calls the model.
        nc: The data's number of classes, for a file that leaves it out.

    Raises:
        UserError: The file does not describe a model, or one for another task than detection.
    """
    if not isinstance(cfg, dict):
        cfg = yaml_model_load(cfg)
        _check(cfg, name)
        cfg.setdefault("nc", nc)
    task, head = guess_model_task(cfg), str(cfg["head"][-1][2])
    if head in TEXTUAL:
        raise UserError(f"model '{name}' has the head {head}, which also looks at texts; take a plain detector")
    if task != "detect":
        what = f"is made for the task '{task}', not for detection" if task else "has no YOLO detection head"
        raise UserError(f"model '{name}' {what}")
    return cfg


@contextmanager
def explained(cfg: dict | str | Path, name: str) -> Iterator[None]:
    """Turn what building a model from a YAML file raises into a line: the file asks for what does not work.

    Raises:
        UserError: Instead of any other error, which is its cause.
    """
    try:
        yield
    except Exception as error:
        if isinstance(cfg, dict):  # of a checkpoint, so it has worked before
            raise
        reason = explain(error) or one_line(f"{type(error).__name__}: {error}")
        raise UserError(f"model '{name}' cannot be built: {reason}") from error


def _check(cfg: dict, name: str) -> None:
    for part in ("backbone", "head"):
        rows = cfg.get(part)
        if not isinstance(rows, list) or not rows:
            raise UserError(f"model '{name}' has no layers under '{part}:'; they are rows of {ROW}")
        for number, row in enumerate(rows, 1):
            if not _is_layer(row):
                raise UserError(one_line(f"model '{name}', row {number} under '{part}:': {row} is not {ROW}"))


def _is_layer(row) -> bool:
    if not isinstance(row, list) or len(row) != 4:
        return False
    source, repeats, module, arguments = row
    sources = source if isinstance(source, list) else [source]
    return (
        all(isinstance(s, int) for s in sources)
        and isinstance(repeats, int | float)
        and isinstance(module, str)
        and isinstance(arguments, list)
    )
