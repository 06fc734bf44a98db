"""The demonstration: from drawn scenes to a distilled student in ONNX, in a few minutes on two cores."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from ultralytics import YOLO
from ultralytics.utils import LOGGER, YAML, colorstr

from ds2d2_yolo import exporting
from ds2d2_yolo.datasets.demo import prepare
from ds2d2_yolo.engine.train import train
from ds2d2_yolo.report.tables import Comparison, comparison
from ds2d2_yolo.val import compare

# One recipe for all three trainings; small batches, because a few hundred images make few steps.
SCENES = {"train": 200, "val": 60, "size": 224}
RECIPE = {"imgsz": 224, "epochs": 10, "batch": 8, "nbs": 8, "seed": 0, "optimizer": "AdamW", "lr0": 0.002}
RECIPE |= {"cos_lr": True, "warmup_epochs": 1, "close_mosaic": 4, "cache": "ram", "plots": True, "val": False}
TEACHER_EPOCHS, AMPLIFIER_EPOCHS = 11, 3


def run(root: str | Path = "runs/demo", data: str | Path = "datasets/demo", scenes=None, **recipe) -> Comparison:
    """Draw scenes, train teacher, plain student and DS2D2 student, compare them, export the last and run the file.

    Args:
        root: Folder for runs, table and picture; results of an earlier demonstration are replaced.
        data: Folder of the drawn data set.
        scenes: Arguments of ``prepare`` that replace those of the demonstration.
        recipe: Ultralytics arguments that replace those of the demonstration.

    Returns:
        The table that was printed; it also lies in ``root`` as CSV and Markdown.
    """
    root = Path(root).resolve()
    say("1/6", f"drawing aerial scenes into {data}")
    data = prepare(data, **{**SCENES, **(scenes or {})})
    common = {**RECIPE, "data": str(data), "project": str(root), "exist_ok": True, **recipe}
    student = narrower("yolo11n.yaml", 0.125, root / "yolo11-half.yaml")
    say("2/6", "training the teacher, YOLO11n")
    longer = {"epochs": recipe.get("epochs", TEACHER_EPOCHS)}
    teacher = train({**common, "model": "yolo11n.yaml", "name": "teacher", **longer})
    say("3/6", "training the student without a teacher, YOLO11n at half its width")
    plain = train({**common, "model": student, "name": "plain"})
    say("4/6", "training the same student with DS2D2: first the teacher's amplifier, then the student")
    distilled = {"amplifier_epochs": AMPLIFIER_EPOCHS, **common, "teacher": str(teacher), "name": "ds2d2"}
    taught = train({**distilled, "model": student})
    say("5/6", "measuring all three on the validation scenes")
    models = {"teacher": teacher, "plain student": plain, "DS2D2 student": taught}
    asked = {"data": str(data), "imgsz": common["imgsz"], "batch": common["batch"], "rounds": 10}
    shutil.rmtree(root / "report", ignore_errors=True)
    results, _ = compare({**asked, "model": [str(path) for path in models.values()], "save_dir": str(root / "report")})
    found = zip(results.ratings.values(), results.costs.values(), strict=True)
    rows = [{**rating.as_dict(), "parameters": cost["parameters"]} for rating, cost in found]
    table = comparison(dict(zip(models, rows, strict=True)), teacher="teacher")
    table.write(root)
    say("6/6", "exporting the DS2D2 student to ONNX and running the file in ONNX Runtime")
    picture = root / "onnx_detections.jpg"
    exported = exporting.run({"model": str(taught), "format": "onnx", "save": str(picture)})
    print(f"\n{table}\n\n(AP in points, in brackets the gap to the teacher; same recipe and seed for both students)")
    print(f"student  {taught}\nONNX     {exported}\npicture  {picture}\ncurves   {root / 'ds2d2' / 'results.png'}")
    print(f"report   {root / 'report' / 'report.html'}")
    return table


def say(step: str, text: str) -> None:
    """Print a step's heading."""
    LOGGER.info(f"\n{colorstr('bold', f'demo {step}')} {text}")


def narrower(model: str, width: float, path: Path) -> str:
    """Write ``model``'s YAML at another width multiple to ``path`` and return the path."""
    grammar = dict(YOLO(model).model.yaml)
    depth = grammar["scales"][grammar["scale"]][0]
    own = ("scales", "scale", "yaml_file", "ch", "channels")
    path.parent.mkdir(parents=True, exist_ok=True)
    grammar = {k: v for k, v in grammar.items() if k not in own}
    draft = path.with_name(f".{os.getpid()}-{path.name}")  # processes that need the same file may write it at once
    YAML.save(draft, {"depth_multiple": depth, "width_multiple": width, **grammar})
    draft.replace(path)
    return str(path)
