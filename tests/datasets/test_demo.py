import json
import os

import cv2
import numpy as np
import pytest
import yaml

from ds2d2_yolo.datasets import demo, scenes, shapes
from ds2d2_yolo.datasets.demo import draw_scene, prepare
from ds2d2_yolo.errors import UserError
from ds2d2_yolo.paths import DATA

MAGENTA = (255, 0, 255)


def rng(*key):
    return np.random.default_rng(key)


def read_all(folder):
    return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    root = tmp_path_factory.mktemp("tiny") / "demo"
    prepare(root, train=8, val=4, size=96)
    return root


@pytest.fixture
def magenta(monkeypatch):
    """Every part of every object in one colour that no ground has: pixels then tell what is an object."""

    def recolour(shape):
        return lambda rng: [(points, MAGENTA) for points, _ in shape(rng)]

    for name, shape in list(shapes.SHAPES.items()):
        monkeypatch.setitem(shapes.SHAPES, name, recolour(shape))


def object_pixels(pixels):
    """Shaded, or mixed half and half with ground, magenta still lacks green."""
    blue, green, red = (pixels[..., i].astype(int) for i in range(3))
    return green < 0.6 * np.minimum(blue, red)


@pytest.mark.parametrize("size", [64, 97, 160])
def test_scene_has_the_promised_types_and_ranges(size):
    image, labels = draw_scene(rng(3, size), size)
    assert image.shape == (size, size, 3) and image.dtype == np.uint8
    assert labels.ndim == 2 and labels.shape[1] == 5
    assert set(labels[:, 0]) <= set(range(len(demo.NAMES)))
    low, high = labels[:, 1:3] - labels[:, 3:] / 2, labels[:, 1:3] + labels[:, 3:] / 2
    assert (low >= -1e-6).all() and (high <= 1 + 1e-6).all() and (labels[:, 3:] > 0).all()


def test_same_generator_same_scene_other_generator_another():
    first, again, other = (draw_scene(rng(7, i), 128) for i in (0, 0, 1))
    assert np.array_equal(first[0], again[0]) and np.array_equal(first[1], again[1])
    assert not np.array_equal(first[0], other[0])


@pytest.mark.parametrize("name", demo.NAMES)
def test_box_is_tight_around_a_lone_object(name, magenta):
    for trial in range(12):
        canvas = scenes.Canvas(rng(trial), 80)
        canvas.sun = np.zeros(2)
        x, y = canvas.rng.uniform(32, 48, 2)
        assert canvas.add(name, x, y, canvas.rng.uniform(0, 7), canvas.rng.uniform(8, 38))
        seen = cv2.resize(canvas.pixels, (80, 80), interpolation=cv2.INTER_AREA)[..., 2] >= 128  # half covered or more
        ys, xs = np.nonzero(seen)
        drawn = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
        (kind, cx, cy, w, h), *more = canvas.labels()
        assert not more and demo.NAMES[int(kind)] == name
        labelled = np.array([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]) * 80
        assert np.abs(drawn - labelled).max() <= 1


def test_boxes_of_whole_scenes_bound_the_pixels_that_objects_show(magenta):
    """Nothing drawn later (roads, crowns, roofs) may hide an object without its box taking notice."""
    labelled = 0
    for index in range(12):
        _, canvas = scenes.render(rng(11, index), 160)
        shown, side = object_pixels(canvas.pixels), canvas.pixels.shape[0]
        claimed = canvas.owner > 0
        thick = cv2.dilate(claimed.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
        assert not (shown & ~thick).any()  # no object beyond what is claimed
        inner = cv2.erode(claimed.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
        assert shown[inner].mean() > 0.99 if inner.any() else True
        for row in canvas.labels():
            x, y, w, h = row[1:] * side
            box = shown[round(y - h / 2) : round(y + h / 2), round(x - w / 2) : round(x + w / 2)]
            for edge in (box[:3], box[-3:], box[:, :3], box[:, -3:]):  # an object touches each side, within 1.5 px
                assert edge.any()
            labelled += 1
    assert labelled > 60


def test_hidden_and_outside_objects_carry_no_label():
    def label_with(cover, x=40.0):
        canvas = scenes.Canvas(rng(5), 80)
        assert canvas.add("storage-tank", x, 40, 0.0, 20)
        if cover:
            roof = [(shapes.rectangle(-20, -20, cover - 10, 20), (90, 90, 90))]
            canvas.clutter(roof, 40, 40, over=True)
        return canvas.labels()

    whole, half, hidden = label_with(0), label_with(10), label_with(18)
    assert whole[0, 3] * 80 == pytest.approx(20, abs=1.01)
    assert half[0, 3] * 80 == pytest.approx(10, abs=1.01)
    assert (half[0, 1] - whole[0, 1]) * 80 == pytest.approx(5, abs=0.6)  # what is left lies to the right
    assert len(hidden) == 0
    assert len(label_with(0, x=-6)) == 0  # a fifth in sight
    clipped = label_with(0, x=2)[0]
    assert clipped[1] - clipped[3] / 2 == pytest.approx(0, abs=1e-6)


def test_objects_do_not_stand_on_one_another_or_off_their_ground():
    canvas = scenes.Canvas(rng(6), 80)
    assert canvas.add("plane", 40, 40, 0.3, 30)
    assert not canvas.add("car", 40, 40, 0.0, 9)
    assert not canvas.add("ship", 60, 70, 0.0, 12, within=np.zeros_like(canvas.land))


def test_scenes_vary_in_classes_sizes_and_crowding():
    labels = [draw_scene(rng(2, i), 320)[1] for i in range(40)]
    counts = np.array([len(rows) for rows in labels])
    rows = np.concatenate(labels)
    assert set(rows[:, 0]) == set(range(len(demo.NAMES)))
    assert counts.max() >= 80 and np.percentile(counts, 90) <= 130 and 5 <= np.percentile(counts, 15) <= 60
    sides = np.sqrt(rows[:, 3] * rows[:, 4]) * 320
    assert sides.min() >= 2.5 and np.percentile(sides, 2) < 8 and 25 < np.percentile(sides, 99) < 48
    spans = {n: np.percentile(sides[rows[:, 0] == k], [5, 95]) for k, n in enumerate(demo.NAMES)}
    assert spans["truck"][0] < spans["car"][1] and spans["plane"][0] < spans["truck"][1]  # size alone tells no class


def test_some_scenes_are_empty(monkeypatch):
    assert 0.03 <= scenes.EMPTY <= 0.1
    monkeypatch.setattr(scenes, "EMPTY", 1.0)
    image, labels = draw_scene(rng(2, 1), 128)
    assert labels.shape == (0, 5) and image.std() > 3


def test_files_are_what_ultralytics_reads(tiny):
    from ultralytics.data.utils import check_det_dataset

    data = check_det_dataset(tiny / "data.yaml")
    assert data["names"] == dict(enumerate(demo.NAMES))
    for split, count in (("train", 8), ("val", 4)):
        images = sorted((tiny / "images" / split).iterdir())
        assert len(images) == count
        for file in images:
            label = tiny / "labels" / split / f"{file.stem}.txt"
            rows = np.loadtxt(label, ndmin=2) if label.stat().st_size else np.zeros((0, 5))
            assert cv2.imread(str(file)).shape == (96, 96, 3)
            assert rows.shape[1] == 5 and (rows >= 0).all() and (rows[:, 1:] <= 1).all()
        assert (tiny / "labels" / split / f"{split}_0000.txt").stat().st_size > 0


def test_drawing_is_repeatable_whatever_the_number_of_processes(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "SHARE", 2)
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    drawn, draw = [], demo._draw
    monkeypatch.setattr(demo, "_draw", lambda *a: drawn.append(a[2:]) or draw(*a))
    prepare(tmp_path / "again", train=8, val=4, size=96)
    assert len(drawn) == 4  # the other two thirds came from helpers
    assert read_all(tmp_path / "again") == read_all(tiny)


def test_images_a_dead_helper_left_out_are_drawn(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "SHARE", 4)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(demo.sys, "executable", "/bin/false")
    prepare(tmp_path / "again", train=8, val=4, size=96)
    assert read_all(tmp_path / "again") == read_all(tiny)


def test_an_image_depends_on_seed_split_and_index_alone(tiny, tmp_path):
    prepare(tmp_path / "more", train=3, val=5, size=96)
    few, many = read_all(tmp_path / "more"), read_all(tiny)
    shared = [name for name in few if name in many and name.suffix in {".jpg", ".txt"}]
    assert len(shared) == 2 * (3 + 4) and all(few[name] == many[name] for name in shared)
    prepare(tmp_path / "seed", train=3, val=5, size=96, seed=1)
    assert all(few[name] != content for name, content in read_all(tmp_path / "seed").items() if name.suffix == ".jpg")


def test_prepare_draws_once_and_again_only_for_a_reason(tmp_path, monkeypatch):
    root, draws, draw_all = tmp_path / "demo", [], demo._draw_all
    monkeypatch.setattr(demo, "_draw_all", lambda *a: draws.append(1) or draw_all(*a))
    assert prepare(root, 2, 1, 64) == root / "data.yaml"
    prepare(root, 2, 1, 64)
    assert len(draws) == 1
    prepare(root, 2, 1, 64, seed=5)
    assert len(draws) == 2 and json.loads((root / "manifest.json").read_text())["seed"] == 5
    (root / "images/train/train_0001.jpg").unlink()
    prepare(root, 2, 1, 64, seed=5)
    assert len(draws) == 3 and (root / "images/train/train_0001.jpg").is_file()
    assert os.listdir(tmp_path) == ["demo"]  # no leftovers


def test_an_interrupted_drawing_leaves_the_old_one(tmp_path, monkeypatch):
    root = tmp_path / "demo"
    prepare(root, 2, 1, 64)
    before = read_all(root)

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "_draw", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare(root, 3, 1, 64)
    assert read_all(root) == before and os.listdir(tmp_path) == ["demo"]


def test_a_folder_of_the_users_is_left_alone(tmp_path):
    (tmp_path / "photo.png").write_text("mine")
    with pytest.raises(UserError, match="photo.png.*choose another"):
        prepare(tmp_path, 2, 1, 64)
    drawn = tmp_path.parent / f"{tmp_path.name}-drawn"
    prepare(drawn, 2, 1, 64)
    (drawn / "notes.txt").write_text("mine")
    prepare(drawn, 2, 1, 64)  # complete: nothing to replace
    with pytest.raises(UserError, match="notes.txt"):
        prepare(drawn, 3, 1, 64)
    assert (drawn / "notes.txt").read_text() == "mine"


def test_an_empty_folder_is_taken(tmp_path):
    assert prepare(tmp_path, 1, 1, 64).is_file()


def test_a_place_that_cannot_be_written_is_one_clear_line(tmp_path):
    file = tmp_path / "file"
    file.write_text("x")
    for root in (file, file / "below"):
        with pytest.raises(UserError) as caught:
            prepare(root, 1, 1, 64)
        assert str(root) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("bad", [{"train": 0}, {"val": -1}, {"size": 8}, {"size": 96.0}, {"seed": -1}, {"train": True}])
def test_bad_numbers_are_named(tmp_path, bad):
    with pytest.raises(UserError, match=next(iter(bad))):
        prepare(tmp_path / "demo", **bad)
    assert not (tmp_path / "demo").exists()


def test_shipped_yaml_names_the_same_classes():
    shipped = yaml.safe_load((DATA / "demo.yaml").read_text())
    assert shipped["names"] == dict(enumerate(demo.NAMES))
    assert (shipped["path"], shipped["train"], shipped["val"]) == ("datasets/demo", "images/train", "images/val")
