"""``val.py``: what detectors are worth on a data set and cost, side by side; and pictures of what they see."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path

import numpy as np
from ultralytics.data.utils import check_det_dataset
from ultralytics.utils import LOGGER, TQDM, YAML

from ds2d2_yolo.errors import UserError, explain
from ds2d2_yolo.given import models_of, names_of, once
from ds2d2_yolo.labels import labels_digest
from ds2d2_yolo.mislabelled import telling, where_expected
from ds2d2_yolo.mistakes import check_known
from ds2d2_yolo.paths import CFG
from ds2d2_yolo.plausible import bits, check_data_file, check_settings, data_file, of_today, pixels
from ds2d2_yolo.report.bundle import Bundle, report_folder
from ds2d2_yolo.report.coco import Predicted, predict
from ds2d2_yolo.report.cost import measure_all
from ds2d2_yolo.report.detections import Truth
from ds2d2_yolo.report.notes import left_out, notes_on
from ds2d2_yolo.report.rating import rate
from ds2d2_yolo.report.recovery import Roles, roles
from ds2d2_yolo.report.results import NO_OBJECTS, Results
from ds2d2_yolo.report.runtimes import beside, edges, made_for
from ds2d2_yolo.report.seeds import groups
from ds2d2_yolo.restricted import trusted

LIMITS = {"rounds": (3, None), "draws": (100, None), "examples": (0, 50)}
BATCH = 16
FILES = ("save_json", "save_txt", "save_conf", "visualize")  # a report has no place for these
IMGSZ = 640  # where no model tells for which it is made
AUGMENTED = "augment=True: detections are those of several passes where a model has them, and what is timed is one."
UNRELATED = ("workers", "verbose", "device")  # detections do not depend on these, or only by rounding


@lru_cache(maxsize=1)
def defaults() -> dict:
    """Every setting that val.py adds to Ultralytics' own (``cfg/val.yaml``)."""
    return YAML.load(CFG / "val.yaml")


def run(settings: dict):
    """Compare models on a data set; with ``explain`` or ``curves``, draw what these ask for.

    Args:
        settings: ``model`` (a path, or several joined by commas: .pt, .onnx and whatever Ultralytics loads), ``data``,
            the settings of ``cfg/val.yaml`` and any Ultralytics validation argument (``imgsz``, ``split`` ...).

    Returns:
        `Results`, or the path of the picture.

    Raises:
        UserError: An unknown setting, a missing file, or a model that does not fit the data.
    """
    settings = {key: value for key, value in settings.items() if value is not None}
    with trusted(settings.pop("trust", defaults()["trust"])), telling():
        return _run(settings)


def _run(settings: dict):
    chosen = {k: v for k, v in settings.items() if k not in defaults() or v != defaults()[k]}  # a whole file sets all
    if settings.get("explain"):
        from ds2d2_yolo import explaining

        return explaining.explain(chosen)
    if settings.get("curves"):
        from ds2d2_yolo.report.training import curves

        return curves(chosen)
    if alone := [key for key in ("level", "amplifier") if key in chosen]:
        raise UserError(f"{alone[0]}={chosen[alone[0]]} goes with explain=image.jpg alone")
    results, written = compare(settings)
    print(f"\n{results}\n")
    print("\n".join(f"written {path}" for path in written))
    return results


def compare(settings: dict) -> tuple[Results, list[Path]]:
    """Rate, time and compare models and write the report; returns the results and the files.

    Takes and raises what `run` does.
    """
    own, asked = _split(settings)
    names, chosen = _compared(own)
    for note in chosen.notes:
        LOGGER.warning(note)
    asked = _on_equal_terms(names, asked)
    folder = report_folder(own["save_dir"], asked)
    fixed = {key: value for key, value in asked.items() if key not in UNRELATED}
    bundle = Bundle(folder, fixed, _objects(asked))
    go_on = f"what is measured is kept, go on with save_dir={folder}"
    try:
        results = _results(bundle, names, chosen, own, asked)
        return results, results.write(folder, own["examples"])
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted; {go_on}") from None
    except Exception as error:
        line = explain(error)
        if line is None or bundle.is_empty():
            raise
        raise UserError(f"{line}; {go_on}") from error
    finally:
        bundle.tidy()


def _results(bundle: Bundle, names: dict[str, str], chosen: Roles, own: dict, asked: dict) -> Results:
    """Everything measured, or taken from the bundle."""
    seen = {name: _predicted(bundle, name, path, asked) for name, path in _in_turn(names)}
    truth, max_det = _one_truth(seen), max(one.max_det for one in seen.values())
    unlabelled = _unlabelled(truth)
    ratings = {name: rate(truth, one.found, max_det) for name, one in seen.items()}
    exported, left = beside({names[name]: one.imgsz for name, one in seen.items()}) if own["latency"] else ({}, [])
    costs = _costs(bundle, names, exported, truth, own, asked) if own["latency"] else {}
    for name, one in seen.items():
        costs.setdefault(name, {"parameters": one.parameters, "latency": ()})
    found = {name: one.found for name, one in seen.items()}
    shown = {**{key: value for key, value in asked.items() if key != "data"}, "max_det": max_det}
    if len(sizes := {one.imgsz for one in seen.values()}) == 1:  # a file may be bound to another than was asked for
        shown["imgsz"] = edges(sizes.pop())
    notes = (
        *unlabelled,
        *chosen.notes,
        *left_out(seen),
        *notes_on(names, seen, asked.get("conf"), asked["imgsz"], asked.get("iou")),
        *left,
    )
    notes += (AUGMENTED,) * bool(asked.get("augment") and own["latency"])
    results = Results(asked["data"], shown, truth, found, ratings, costs, chosen, names, max_det, notes=notes)
    _resample(results, own["draws"])
    return results


def _unlabelled(truth: Truth) -> tuple[str, ...]:
    """Say, before time is spent on timing, that there is nothing to be right about; and where labels were expected."""
    if len(truth.cls):
        return ()
    expected = where_expected(truth.images)
    note = (f"{expected[0].upper()}{expected[1:]}.",) if expected else ()
    LOGGER.warning(" ".join((NO_OBJECTS, *note)))
    return note


def _in_turn(names: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Names and paths, with a line that says whose turn it is."""
    for i, (name, path) in enumerate(names.items(), 1):
        LOGGER.info(f"\n{i}/{len(names)} {name} ({path})")
        yield name, path


def _predicted(bundle: Bundle, name: str, path: str, asked: dict) -> Predicted:
    """What the model finds, from the bundle where it was interrupted later."""
    if kept := bundle.detections(path):
        truth, found, about = kept
        LOGGER.info(f"{name}: measured before, taken from {bundle.folder}")
        return Predicted(truth, found, **{k: tuple(v) if isinstance(v, list) else v for k, v in about.items()})
    seen = predict(path, asked["data"], **{"verbose": False, **{k: v for k, v in asked.items() if k != "data"}})
    if not seen.truth.images:
        raise UserError(f"there is no readable image in the split '{asked.get('split', 'val')}' of {asked['data']}")
    about = {key: value for key, value in vars(seen).items() if key not in ("truth", "found")}
    bundle.objects = _objects(asked)
    bundle.keep(path, seen.truth, seen.found, about)
    return seen


def _objects(asked: dict) -> str:
    """What stands for the images and labels that are rated; nothing where they cannot be found: rating says why."""
    split, silent = asked.get("split") or "val", LOGGER.disabled
    LOGGER.disabled = True  # rating says it all again
    try:
        return labels_digest(check_det_dataset(asked["data"], autodownload=False, split=split), split)
    except Exception:
        return ""
    finally:
        LOGGER.disabled = silent


def _one_truth(seen: dict[str, Predicted]):
    """The objects, which must be the same for all models."""
    (first, one), *others = seen.items()
    for name, other in others:
        same = one.truth.images == other.truth.images and np.array_equal(one.truth.cls, other.truth.cls)
        if not (same and np.allclose(one.truth.box, other.truth.box, atol=1e-2)):
            raise UserError(
                f"'{first}' and '{name}' were not rated on the same objects; did the data change in between? "
                "Start again in another save_dir="
            )
    return one.truth


def _costs(bundle: Bundle, names: dict, exported: dict, truth, own: dict, asked: dict) -> dict[str, dict]:
    """Cost by name; all models are timed together, so one that is new has all of them timed again."""
    batch, device = int(asked["batch"]), str(asked.get("device") or "")
    timed = [part for path in names.values() for part in (path, exported.get(path))]
    key = [*(bundle.key(path) if path else "" for path in timed), str(batch), device, str(own["rounds"])]
    kept = bundle.load("cost", key)
    if kept is not None:
        return dict(zip(names, kept, strict=True))
    LOGGER.info(f"\ntiming {len(names)} models turn by turn, batch 1 and {batch}")
    images = [str(path) for path in truth.images]
    options = {"onnx": exported, "rounds": own["rounds"], "verbose": True}
    options |= {"end2end": asked.get("nms") is False, "fp16": bits(asked.get("quantize")) == 16}  # as they were rated
    size = asked["imgsz"] if isinstance(asked["imgsz"], int) else max(asked["imgsz"])  # as Ultralytics rates them
    measured = measure_all(list(names.values()), images, size, batch, device, **options)
    costs = [asdict(cost) for cost in measured]
    bundle.save("cost", key, costs)
    return dict(zip(names, costs, strict=True))


def _resample(results: Results, draws: int) -> None:
    students = len(results.roles.students)
    if results.roles.baseline is None or not students:
        return
    with TQDM(total=draws * students, desc="resampling images") as bar:
        results.compare(draws, lambda _: bar.update())


def _split(settings: dict) -> tuple[dict, dict]:
    """The settings of val.py, checked and complete, and Ultralytics' own."""
    check_settings(settings)
    if given := [key for key in FILES if settings.get(key)]:
        raise UserError(f"{given[0]}= is for Ultralytics' own files: yolo val model=... data=... {given[0]}=True")
    if settings.get("plots"):  # which a whole file of Ultralytics' settings says, too
        LOGGER.info("plots=True: Ultralytics' own come from yolo val; the report has others")
    settings = of_today({key: value for key, value in settings.items() if key != "plots"})
    check_known("val", settings)
    own = {**defaults(), **{key: value for key, value in settings.items() if key in defaults()}}
    for key, (least, most) in LIMITS.items():
        value = own[key]
        if isinstance(value, bool) or not isinstance(value, int) or value < least or value > (most or value):
            upto = f" and at most {most}" if most else ""
            raise UserError(f"{key}={value} must be a whole number of at least {least}{upto}")
    if not isinstance(own["latency"], bool):
        raise UserError(f"latency={own['latency']} is neither True nor False")
    asked = {"imgsz": None, "batch": BATCH, **{key: value for key, value in settings.items() if key not in defaults()}}
    if not asked.get("data"):
        raise UserError("no data set given; say data=my.yaml")
    asked["imgsz"] = pixels(asked["imgsz"])
    if not isinstance(asked["batch"], int) or asked["batch"] < 1:
        raise UserError(f"batch={asked['batch']} must be a whole number of images, 1 or more")
    asked["data"] = data_file(asked["data"])
    check_data_file(asked["data"], asked.get("split", "val"))
    return own, asked


def _compared(own: dict) -> tuple[dict[str, str], Roles]:
    """Models by name, and who is who; teacher= and baseline= may name files, patterns, or what the report calls one."""
    models, wanted = models_of(own["model"]), {}
    for role in ("teacher", "baseline"):
        if not own[role]:
            continue
        known, asked = dict(zip(names_of(models), models, strict=True)), str(own[role])
        recipes = {group.name: group.models[0] for group in groups(list(known), models)}
        if (name := asked if asked in known else recipes.get(asked)) is not None:
            wanted[role] = [known[name]]  # its file: names become others when models of the same name are added
            continue
        files = [os.path.abspath(file) for file in models_of(own[role])]
        models = once([*models, *models_of(own[role])])
        wanted[role] = [model for model in models if os.path.abspath(model) in files]
    names = dict(zip(names_of(models), models, strict=True))
    chosen = roles(list(names), models, **{role: files[0] for role, files in wanted.items()})
    for role, files in wanted.items():
        group = getattr(chosen, role)
        if strangers := [file for file in files[1:] if file not in [names[name] for name in group.models]]:
            raise UserError(f"{role}={own[role]} names several recipes, '{files[0]}' and '{strangers[0]}'; name one")
    return names, chosen


def _on_equal_terms(names: dict[str, str], asked: dict) -> dict:
    """Image size and shape, where they are not asked for: the same for all models.

    Exported files take square images, and padding alone can change AP50 by a point or more.
    """
    if not asked.get("imgsz"):
        sizes = {name: size for name, path in names.items() if (size := made_for(path))}
        if len(set(map(str, sizes.values()))) > 1:
            listed = ", ".join(f"{name}: {size}" for name, size in sizes.items())
            raise UserError(f"the models are made for images of different sizes ({listed}); say at which: imgsz=640")
        asked = {**asked, "imgsz": next(iter(sizes.values()), IMGSZ)}
    if "rect" not in asked and any(Path(path).suffix != ".pt" for path in names.values()):
        asked = {**asked, "rect": False}
    return asked
