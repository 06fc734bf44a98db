"""Tiles of one scene stand or fall together: intervals come from drawing whole scenes."""

import numpy as np
import pytest

from ds2d2_yolo.datasets.tile_tables import scenes_of
from ds2d2_yolo.report import results
from ds2d2_yolo.report.bootstrap import MIN_IMAGES, bootstrap, judge
from ds2d2_yolo.report.detections import Detections, Truth
from ds2d2_yolo.report.rating import rate
from ds2d2_yolo.report.recovery import roles


def scene_set(count, copies=1, folder="images/val", seed=0):
    """Objects of `count` scenes, each shown by so many tiles alike, and what two models find of them."""
    rng = np.random.default_rng(seed)
    rows = [(i, i % 2, 40.0 * j) for i in range(count) for j in range(4)]
    shift, score = rng.uniform(0, 12, (2, len(rows))), rng.random((2, len(rows)))
    image = np.concatenate([[i * copies + k for i, *_ in rows] for k in range(copies)])
    cls, x = (np.tile([row[n] for row in rows], copies) for n in (1, 2))

    def boxes(x):
        return np.stack([x, 0 * x, x + 20, 0 * x + 20], 1)

    files = tuple(f"{folder}/s{i}__{k}.png" for i in range(count) for k in range(copies))
    truth = Truth(files, np.full((len(files), 2), 200), image, cls, boxes(x), {0: "ship", 1: "car"})
    found = [
        Detections(image, cls, np.tile(s, copies), boxes(x + np.tile(d, copies)))
        for s, d in zip(score, shift, strict=True)
    ]
    return truth, found


@pytest.mark.parametrize("copies", [2, 5])
def test_tiles_alike_say_no_more_than_their_scenes(copies):
    truth, models = scene_set(30)
    alone = bootstrap(truth, *(judge(truth, found) for found in models), draws=200)
    tiled, models = scene_set(30, copies)
    judged = [judge(tiled, found) for found in models]
    together = bootstrap(tiled, *judged, draws=200, scenes=np.repeat(np.arange(30), copies))
    for one, other in ((alone.ap, together.ap), (alone.ap50, together.ap50), (alone.classes[1], together.classes[1])):
        assert (one.low, one.high, one.difference) == pytest.approx((other.low, other.high, other.difference))
        assert one.verdict == other.verdict
    as_images = bootstrap(tiled, *judged, draws=200).ap
    assert as_images.high - as_images.low < 1.25 * (together.ap.high - together.ap.low) / copies**0.5


def test_many_tiles_of_few_scenes_are_too_few():
    truth, models = scene_set(MIN_IMAGES - 1, 5)
    judged, scenes = [judge(truth, found) for found in models], np.repeat(np.arange(MIN_IMAGES - 1), 5)
    assert bootstrap(truth, *judged, draws=5).ap.verdict != "too few images"
    found = bootstrap(truth, *judged, draws=5, scenes=scenes)
    assert {found.ap.verdict, found.classes[0].verdict, found.classes[1].verdict} == {"too few images"}


def table(folder, rows):
    (folder / "tiles.csv").write_text("\n".join(["split,tile,image", *(",".join(row) for row in rows)]) + "\n")


def test_scenes_are_told_by_the_table_beside_the_images(tmp_path):
    (tmp_path / "images/val").mkdir(parents=True)
    files = [str(tmp_path / f"images/{name}.png") for name in ("val/a__0", "val/a__1", "val/b", "train/a__0", "val/c")]
    assert scenes_of(files) is None and scenes_of([]) is None
    table(tmp_path, [("val", "a__0", "007"), ("val", "a__1", "007"), ("val", "b", "7"), ("train", "a__0", "007")])
    assert scenes_of(files).tolist() == [0, 0, 1, 2, 3]
    table(tmp_path, [("val", "other__0", "other")])
    assert scenes_of(files) is None
    (tmp_path / "tiles.csv").write_text("split,tile\nval,a__0\n")
    assert scenes_of(files) is None


def test_the_report_draws_scenes_and_says_so(tmp_path):
    truth, models = scene_set(12, 3, str(tmp_path / "images/val"))
    names = ("plain", "student")
    found = dict(zip(names, models, strict=True))
    ratings = {name: rate(truth, one) for name, one in found.items()}
    paths = {name: f"{name}.pt" for name in names}
    report = results.Results("d.yaml", {}, truth, found, ratings, {}, roles(names), paths, 300)
    report.compare(20)
    images = report.bootstraps["student"].ap
    assert not any("tiles.csv" in remark for remark in report.remarks)
    (tmp_path / "images/val").mkdir(parents=True)
    table(tmp_path, [("val", f"s{i}__{k}", f"s{i}") for i in range(12) for k in range(3)])
    report.compare(20)
    assert report.bootstraps["student"].ap.low != images.low
    assert any(remark.startswith("The images are tiles of 12 scenes (tiles.csv)") for remark in report.remarks)


@pytest.mark.parametrize(
    "order", [("student", "plain", "teacher", "second"), ("teacher", "plain", "student", "second")]
)
def test_roles_have_their_places_in_the_page_whatever_the_order(order):
    truth, (one, other) = scene_set(4, 2)
    ratings = {name: rate(truth, one if name == "plain" else other) for name in order}
    paths = {name: f"{name}.pt" for name in order}
    report = results.Results("d.yaml", {}, truth, dict.fromkeys(order, one), ratings, {}, roles(order), paths, 300)
    assert [model.name for model in report.page(0).models] == ["teacher", "plain", "student", "second"]


def test_tiles_of_one_name_in_two_splits_are_of_the_scene_of_their_own(tmp_path):
    (tmp_path / "images").mkdir()
    rows = ["split,tile,image", "val,a__0,first", "val,a__1,first", "train,a__0,second", "train,a__1,third"]
    (tmp_path / "tiles.csv").write_text("\n".join(rows) + "\n")
    assert scenes_of([str(tmp_path / f"images/val/a__{i}.png") for i in (0, 1)]).tolist() == [0, 0]
