"""val.py on three models of one data set: tables, files, page, interruption, and what the user may get wrong."""

import json
import os
from pathlib import Path

import cv2
import pytest
import torch
import yaml
from ultralytics import YOLO
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import DEFAULT_CFG_PATH, YAML

from ds2d2_yolo import cli, val
from ds2d2_yolo.datasets.demo import prepare
from ds2d2_yolo.errors import UserError
from ds2d2_yolo.given import models_of
from ds2d2_yolo.report import cost, latency
from ds2d2_yolo.report.coco import evaluate
from tests.end_to_end.conftest import _convolutions
from tests.helpers.training import listening

QUICK = ("imgsz=96", "batch=4", "rounds=3", "draws=100", "device=cpu")
AS_LABELLED = {"rect": False, "conf": 1e-5, "iou": 0.3, "max_det": 5}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Three models of one class that were never trained, and scenes whose labels are what the teacher finds there."""
    folder = tmp_path_factory.mktemp("models")
    small = _convolutions(folder / "small.yaml", (8, 12, 16, 24, 32))
    for seed, name in enumerate(("teacher", "plain_s0", "student_s0", "student_s1")):
        torch.manual_seed(seed)
        model = DetectionModel(str(small), nc=1, verbose=False)
        for _ in range(20):
            model.train()(torch.rand(2, 3, 96, 96))
        with torch.no_grad():
            for branch in model.model[-1].cv3:
                branch[-1].weight *= 100  # sure of itself, so that its detections do not hang on rounding
        model.names, model.args, model.task = {0: "object"}, {}, "detect"
        (folder / name / "weights").mkdir(parents=True)
        torch.save({"model": model.eval(), "train_args": {}}, folder / name / "weights/best.pt")
    data = prepare(folder / "demo", train=1, val=12, size=96)
    for file in sorted((data.parent / "images/val").iterdir()):
        asked = {"imgsz": 96, "conf": 1e-5, "iou": 0.3, "max_det": 5, "device": "cpu", "verbose": False, "rect": False}
        found = YOLO(folder / "teacher/weights/best.pt").predict(cv2.imread(str(file)), **asked)[0].boxes.xywhn
        rows = "".join("0 " + " ".join(f"{v:.7f}" for v in box) + "\n" for box in found.tolist())
        (data.parent / f"labels/val/{file.stem}.txt").write_text(rows)
    names = {"train": "images/train", "val": "images/val", "test": "images/none", "names": ["object"]}
    data.write_text(yaml.safe_dump(names))
    return folder


@pytest.fixture(autouse=True)
def cold(monkeypatch):
    """Timed without the time that clocks need to settle."""
    monkeypatch.setattr(latency, "WARM_UP_S", 0)


@pytest.fixture
def asked(place, monkeypatch, tmp_path):
    """The command's arguments for the models named, in a fresh working folder."""
    monkeypatch.chdir(tmp_path)

    def arguments(*names, data="demo/demo.yaml", **more):
        models = ",".join(str(place / name / "weights/best.pt") for name in names)
        found = next((place / "demo").glob("*.yaml")) if data == "demo/demo.yaml" else data
        return [f"model={models}", f"data={found}", *QUICK, *(f"{k}={v}" for k, v in more.items())]

    return arguments


def test_models_side_by_side(asked, place, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(cost, "peak_memory", lambda *_, **__: 12.5)  # a fresh process for each; the next test has two
    assert cli.val(asked("teacher", "plain_s0", "student_s*", save_dir="out dir", **AS_LABELLED)) == 0
    shown = capsys.readouterr().out
    timed = "Time for a square image (96 px) in ms"
    for text in ("plain_s0 (baseline)", "student_s1", "gain in AP50", timed, "out dir/report.html"):
        assert text in shown, text
    report = json.loads((tmp_path / "out dir/results.json").read_text())
    ratings = {name: model["rating"] for name, model in report["models"].items()}
    said = f"{ratings['teacher']['objects']} objects, imgsz=96, batch=4, device=cpu, rect=False, conf=1e-05, iou=0.3"
    for text in (shown, (tmp_path / "out dir/results.md").read_text().splitlines()[0]):
        assert f": 12 images with {said}, max_det=5" in text
    data = next((place / "demo").glob("*.yaml"))
    alone = evaluate(place / "plain_s0/weights/best.pt", data, 96, 4, "cpu", **AS_LABELLED)
    assert ratings["plain_s0"]["ap50"] == pytest.approx(alone.ap50) and ratings["teacher"]["ap50"] > 60
    roles = {name: model["role"] for name, model in report["models"].items()}
    assert roles == {"teacher": "teacher", "plain_s0": "baseline", "student_s0": "student", "student_s1": "student"}
    times = report["models"]["teacher"]["cost"]["latency"]
    assert [t["batch"] for t in times] == [1, 4] and all(t["inference"]["median"] > 0 for t in times)
    gain = report["gains"]["student"]["ap50"]
    mean = sum(ratings[f"student_s{i}"]["ap50"] for i in range(2)) / 2
    assert gain["difference"] == pytest.approx(mean - ratings["plain_s0"]["ap50"], abs=1e-6)
    assert gain["low"] <= gain["difference"] <= gain["high"] and gain["low"] < gain["high"]
    page = (tmp_path / "out dir/report.html").read_text()
    assert "student_s0" in page and "data:image/jpeg;base64" in page and "Of several seeds the first" in page
    header, *rows = (tmp_path / "out dir/results.csv").read_text().splitlines()
    assert len(rows) == 4 and header.startswith("model,ap,")
    assert "| plain_s0 (baseline) |" in (tmp_path / "out dir/results.md").read_text()


def runtimes(results):
    """What the first model was timed with, batch 1."""
    model, *_ = json.loads(results.read_text())["models"].values()
    return [row["runtime"] for row in model["cost"]["latency"] if row["batch"] == 1]


def test_an_onnx_file_stands_beside_its_checkpoint(asked, place, tmp_path, monkeypatch):
    best = place / "student_s0/weights/best.pt"
    made = YOLO(best).export(format="onnx", imgsz=96, simplify=False, device="cpu")
    given = asked("student_s0")
    try:
        with monkeypatch.context() as quick:
            quick.setattr(cost, "peak_memory", lambda *_, **__: 12.5)
            assert cli.val([*given, "save_dir=beside"]) == 0
        alone = given[0]
        given[0] += f",{made}"
        assert cli.val([*given, "save_dir=out"]) == 0
        assert cli.val([*given, "save_dir=larger", "imgsz=128", "latency=False"]) == 0
    finally:
        os.remove(made)
    beside = tmp_path / "beside/results.json"
    assert runtimes(beside) == ["PyTorch", "ONNX Runtime"]
    monkeypatch.setattr(cost, "peak_memory", lambda *_, **__: 12.5)
    assert cli.val([alone, *given[1:], "save_dir=beside"]) == 0
    assert runtimes(beside) == ["PyTorch"]  # measured again, as the file is gone
    report = json.loads((tmp_path / "out/results.json").read_text())
    assert report["settings"]["rect"] is False and not report["notes"]  # so that both see the same
    models = report["models"]
    assert list(models) == ["student_s0", "student_s0.onnx"]
    checkpoint, exported = models.values()
    assert checkpoint["cost"]["peak_mb"] > 0 and exported["cost"]["peak_mb"] > 0
    assert exported["cost"]["latency"][0]["runtime"] == "ONNX Runtime"
    assert checkpoint["cost"]["latency"][0]["runtime"] == "PyTorch"
    assert exported["rating"]["ap50"] == pytest.approx(checkpoint["rating"]["ap50"], abs=0.5)
    note = "student_s0 at 128 x 128 px, student_s0.onnx at 96 x 96 px"
    for file in ("results.md", "results.json", "report.html"):
        assert note in (tmp_path / "larger" / file).read_text(), file


def test_an_interrupted_run_keeps_the_models_it_has_finished(asked, capsys, monkeypatch):
    calls, predict = [], val.predict

    def interrupted(path, *args, **kwargs):
        calls.append(path)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return predict(path, *args, **kwargs)

    monkeypatch.setattr(val, "predict", interrupted)
    given = asked("teacher", "plain_s0", latency=False, project="o u t", name="first")
    assert cli.val(given) == 130
    line = capsys.readouterr().err
    assert "what is measured is kept, go on with save_dir=" in line
    folder = line.split("save_dir=")[1].strip()
    assert folder == "o u t/first"
    assert cli.val([*given, f"save_dir={folder}"]) == 0
    assert len(calls) == 3 and calls[2] == calls[1]  # the teacher was not run again


def test_images_that_were_added_or_taken_away_are_rated_anew(asked, place, tmp_path, monkeypatch):
    calls, predict = [], val.predict
    monkeypatch.setattr(val, "predict", lambda *args, **kwargs: calls.append(args) or predict(*args, **kwargs))
    listed, data = tmp_path / "listed.txt", next((place / "demo").glob("*.yaml"))
    images = sorted((data.parent / "images/val").iterdir())
    YAML.save(tmp_path / "fewer.yaml", {**YAML.load(data), "path": str(data.parent), "val": str(listed)})
    given = asked("teacher", data=tmp_path / "fewer.yaml", latency=False, save_dir="out")
    for count, runs in ((3, 1), (3, 1), (2, 2)):
        listed.write_text("".join(f"{image}\n" for image in images[:count]))
        assert cli.val(given) == 0
        assert len(calls) == runs
        assert f": {count} images with" in (tmp_path / "out/results.md").read_text()


def test_a_mistake_after_the_first_model_says_where_that_is_kept(asked, place, capsys, tmp_path):
    broken = tmp_path / "broken.pt"
    broken.write_text("no model")
    given = asked("teacher", latency=False)
    assert cli.val([f"{given[0]},{broken}", *given[1:]]) == 2
    line = capsys.readouterr().err.strip()
    assert "broken.pt" in line and line.endswith("what is measured is kept, go on with save_dir=runs/report")
    assert list((tmp_path / "runs/report/measured").glob("*.npz"))


def test_what_detections_depend_on_is_measured_again(asked, capsys, monkeypatch):
    def bundle(_, settings, objects):
        assert len(objects) == 16
        raise UserError(" ".join(sorted(settings)))

    monkeypatch.setattr(val, "Bundle", bundle)
    assert cli.val(asked("teacher", iou=0.6, workers=0)) == 2
    assert capsys.readouterr().err.strip().endswith("error: batch data imgsz iou")


@pytest.fixture
def files(monkeypatch, tmp_path):
    """Names of models, in the working folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("big", "small_s0", "small_s1", "other_s0"):
        (tmp_path / f"{name}.pt").write_text(name)
    (tmp_path / "small.onnx").write_text("small")


@pytest.mark.parametrize("baseline", ["small_s*.pt", "./small_s1.pt", "small_s0.pt", "small", "small_s1.pt"])
def test_the_baseline_is_named_by_file_pattern_or_name(files, baseline):
    names, chosen = val._compared(
        {"model": "big.pt,small_s*.pt,other_s0.pt", "teacher": "big.pt", "baseline": baseline}
    )
    assert list(names) == ["big.pt", "small_s0.pt", "small_s1.pt", "other_s0.pt"]
    assert chosen.teacher.models == ("big.pt",) and chosen.baseline.models == ("small_s0.pt", "small_s1.pt")


def test_a_name_stays_its_model_when_another_of_that_name_is_added(files):
    paths = [Path(f"{run}/{name}/weights/best.pt") for run, name in (("r1", "t"), ("r1", "s"), ("r2", "t"))]
    for path in paths:
        path.parent.mkdir(parents=True)
        path.touch()
    given = {"model": [str(path) for path in paths[:2]], "teacher": "t", "baseline": str(paths[2])}
    names, chosen = val._compared(given)
    assert chosen.teacher.models == ("r1/t",) and chosen.baseline.models == ("r2/t",)
    assert sorted(names.values()) == sorted(map(str, paths))


def test_a_pattern_may_add_models_but_not_several_recipes(files):
    names, chosen = val._compared({"model": "other_s0.pt", "teacher": "big.pt", "baseline": "small_s*.pt"})
    assert len(names) == 4 and chosen.baseline.models == ("small_s0.pt", "small_s1.pt")
    Path("a, b.pt").touch()  # from Python, a comma may belong to a name
    assert models_of(Path("a, b.pt")) == models_of(["a, b.pt"]) == ["a, b.pt"]
    with pytest.raises(UserError, match="baseline=.*names several recipes, 'other_s0.pt' and 'small_s0.pt'; name one"):
        val._compared({"model": "big.pt", "teacher": "", "baseline": "*_s*.pt"})


def test_image_size_is_that_of_the_models_and_all_see_the_same(files, monkeypatch):
    monkeypatch.setattr(val, "made_for", {"big.pt": 320, "small_s0.pt": 320, "other_s0.pt": 416}.get)
    names = {name: f"{name}.pt" for name in ("big", "small_s0", "small_s1", "other_s0")}
    agreed = {name: names[name] for name in ("big", "small_s0", "small_s1")}
    assert val._on_equal_terms(agreed, {}) == {"imgsz": 320}
    assert val._on_equal_terms({"small_s1": "small_s1.pt"}, {}) == {"imgsz": 640}
    assert val._on_equal_terms(names, {"imgsz": 96}) == {"imgsz": 96}
    assert val._on_equal_terms({**agreed, "x": "small.onnx"}, {}) == {"imgsz": 320, "rect": False}
    assert val._on_equal_terms({"x": "small.onnx"}, {"rect": True, "imgsz": 96}) == {"imgsz": 96, "rect": True}
    with pytest.raises(UserError, match=r"big: 320, small_s0: 320, other_s0: 416\); say at which: imgsz="):
        val._on_equal_terms(names, {})


@pytest.mark.parametrize(
    "names, change, said",
    [
        (("nobody",), {}, "there is no such file"),
        (("student_s9*",), {}, "does not exist"),
        (("teacher",), {"rounds": 1}, "rounds=1 must be a whole number of at least 3"),
        (("teacher",), {"latency": "maybe"}, "latency=maybe is neither True nor False"),
        (("teacher",), {"examples": 51}, "examples=51 must be a whole number of at least 0 and at most 50"),
        (("teacher",), {"batch": 0}, "batch=0 must be a whole number of images"),
        (("teacher",), {"baselin": "x"}, "did you mean baseline"),
        (("teacher",), {"data": "none.yaml"}, "'none.yaml' does not exist"),
        (("teacher", "plain_s0"), {"baseline": "nobody.pt"}, "'nobody.pt' does not exist"),
        (("teacher",), {"split": "test"}, "images/none"),
        (("teacher",), {"save_json": True}, "save_json= is for Ultralytics' own files: yolo val"),
        (("teacher",), {"save_dir": "/dev/null/report"}, "cannot write the report to '/dev/null/report'"),
    ],
)
def test_mistakes_end_in_one_line(asked, capsys, tmp_path, names, change, said):
    assert cli.val(asked(*names, **change)) == 2
    error = capsys.readouterr().err.strip()
    assert said in error and len(error.splitlines()) == 1
    assert not list(tmp_path.rglob("report*"))


def test_a_whole_file_of_ultralytics_settings(asked, tmp_path):
    asks = YAML.load(DEFAULT_CFG_PATH) | dict(pair.split("=") for pair in asked("teacher"))
    assert asks["plots"] is True
    whole = {key: int(value) if str(value).isdecimal() else value for key, value in asks.items()}
    YAML.save(tmp_path / "whole.yaml", whole | {"latency": False, "conf": 0.1})
    with listening() as log:
        assert cli.val(["cfg=whole.yaml", "save_dir=out"]) == 0
    assert sum("plots=True: Ultralytics' own come from yolo val" in line for line in log) == 1
    assert not list(tmp_path.rglob("*curve.png")) and (tmp_path / "out/report.html").is_file()


@pytest.mark.parametrize(
    "given, how",
    [({}, (False, False)), ({"nms": False}, (True, False)), ({"quantize": 16}, (False, True)), ({"half": True}, None)],
    ids=str,
)
def test_what_is_timed_is_what_was_rated(asked, tmp_path, monkeypatch, given, how):
    def measured(*args, **options):
        seen.append((options["end2end"], options["fp16"]))
        return measure_all(*args, **options, memory=False)

    seen, measure_all = [], val.measure_all
    monkeypatch.setattr(val, "measure_all", measured)
    assert cli.val(asked("teacher", save_dir="out", augment=not given, **given)) == 0
    assert seen == [how or (False, True)]
    notes = json.loads((tmp_path / "out/results.json").read_text())["notes"]
    assert [note for note in notes if note.startswith("augment=True: ")] == [val.AUGMENTED] * (not given)


def test_the_whole_file_of_settings_goes_with_every_picture(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert cli.val(["cfg=val.yaml", "curves=nowhere"]) == 2
    assert "there is no run 'nowhere'" in capsys.readouterr().err
    assert cli.val(["cfg=val.yaml", "explain=nowhere.jpg", "model=a.onnx", "teacher=b.onnx"]) == 2
    assert "nowhere.jpg" in capsys.readouterr().err
    assert cli.val(["curves=nowhere", "rounds=30"]) == 2
    assert "not with rounds=" in capsys.readouterr().err


def test_settings_of_a_picture_are_not_passed_over_in_a_report(files, capsys):
    for setting in ("level=8", "amplifier=mine.pt"):
        Path("mine.pt").touch()
        assert cli.val(["model=big.pt", "data=x.yaml", setting]) == 2
        assert f"{setting} goes with explain=image.jpg alone" in capsys.readouterr().err
