"""Names of shipped files become paths; everything else is left for Ultralytics."""

from pathlib import Path

import pytest

from ds2d2_yolo import paths
from ds2d2_yolo.engine import settings
from ds2d2_yolo.given import models_of, names_of
from ds2d2_yolo.plausible import data_file
from ds2d2_yolo.report.seeds import groups


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """A shipped tree of our own making, and an empty working directory."""
    (tmp_path / "cfg" / "models").mkdir(parents=True)
    (tmp_path / "data").mkdir()
    (tmp_path / "work").mkdir()
    (tmp_path / "cfg" / "models" / "net.yaml").write_text("nc: 2\n")
    (tmp_path / "cfg" / "fast.yaml").write_text("epochs: 2\ndata: sea.yaml\n")
    (tmp_path / "data" / "sea.yaml").write_text("nc: 2\n")
    folders = {
        "data": (tmp_path / "data",),
        "cfg": (tmp_path / "cfg",),
        "model": (tmp_path / "cfg" / "models",),
    }
    monkeypatch.setattr(paths, "_FOLDERS", folders)
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


def test_bare_names_of_shipped_files_become_paths(shipped):
    assert paths.find_config("sea.yaml", "data") == str(shipped / "data" / "sea.yaml")
    assert paths.find_config("net.yaml", "model") == str(shipped / "cfg" / "models" / "net.yaml")


@pytest.mark.parametrize("name", ["yolo26n.yaml", "sub/sea.yaml", "./sea.yaml", "sea.pt", "sea", None, 3])
def test_other_names_are_left_alone(shipped, name):
    assert paths.find_config(name, "data") is name


def test_a_file_in_the_working_directory_goes_first(shipped):
    (shipped / "work" / "sea.yaml").write_text("nc: 9\n")
    assert paths.find_config("sea.yaml", "data") == "sea.yaml"


def test_the_demonstration_data_set_is_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Path(paths.find_config("demo.yaml", "data")) == paths.DATA / "demo.yaml"
    assert data_file("demo.yaml") == settings.check({"data": "demo.yaml"})["data"] == str(paths.DATA / "demo.yaml")


def test_an_export_of_another_name_keeps_it():
    models = [f"runs/small/weights/{name}" for name in ("best.pt", "best.onnx", "best_int8.onnx")]
    assert names_of(models) == ["small", "small.onnx", "small/best_int8.onnx"]


def of_runs(*runs):
    return names_of([f"/data/{run}/weights/best.pt" for run in runs])


def test_names_have_as_many_folders_as_tell_them_apart():
    assert of_runs("lr1/plain", "lr2/plain", "lr1/new") == ["lr1/plain", "lr2/plain", "new"]
    assert of_runs("x/lr/plain", "y/lr/plain") == ["x/lr/plain", "y/lr/plain"]
    assert names_of(["a/t.pt", "b/t.pt", "a/t.onnx"]) == ["a/t.pt", "b/t.pt", "a/t.onnx"]
    both = [f"r/t/weights/{name}.pt" for name in ("best", "last")]
    assert names_of(both) == both


@pytest.mark.parametrize(
    "recipes",
    [
        [["a/new_s0", "a/new_s1"], ["b/new_s0"], ["plain"]],
        [["a/plain/s0", "a/plain/s1"], ["a/new/s0"]],
        [["lr1/new_s0", "lr1/new_s1"], ["lr2/new_s1", "lr2/new_s2"]],
    ],
)
def test_seeds_stay_together_where_names_clash(recipes):
    runs = sum(recipes, [])
    names = of_runs(*runs)
    run_of = dict(zip(names, runs, strict=True))
    found = groups(names, [f"/data/{run}/weights/best.pt" for run in runs])
    assert [[run_of[name] for name in group.models] for group in found] == recipes


def test_two_stars_match_folders_at_any_depth(tmp_path):
    for run in ("a", "s/b", "s/b/c"):
        (tmp_path / run / "weights").mkdir(parents=True)
        (tmp_path / run / "weights/best.pt").touch()
    found = models_of(f"{tmp_path}/**/weights/best.pt")
    assert set(found) == {f"{tmp_path}/{run}/weights/best.pt" for run in ("a", "s/b", "s/b/c")} and len(found) == 3


def test_models_of_a_pattern_come_in_the_order_of_their_names_and_each_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("b", "a", "c"):
        Path(f"{name}.pt").touch()
    assert models_of("*.pt") == ["a.pt", "b.pt", "c.pt"]
    assert models_of("c.pt,*.pt") == ["c.pt", "a.pt", "b.pt"]
    assert models_of(["./b.pt", "b.pt", str(tmp_path / "b.pt"), "a.pt"]) == ["./b.pt", "a.pt"]
