import json
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ds2d2_yolo.datasets.coco_json import plan
from ds2d2_yolo.datasets.source import File, Source
from ds2d2_yolo.errors import UserError
from tests.datasets.downloads import CATEGORIES, coco


@pytest.fixture
def made(tmp_path):
    """Returns a function that lays out files and plans them."""

    def make(files, *args, **kwargs):
        for name, content in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content if isinstance(content, str) else json.dumps(content))
        return plan(Source(tmp_path), *args, **kwargs)

    return make


def only(made, *annotations, **kwargs):
    """The objects of one image with these annotations."""
    result = made({"a.jpg": "", "train.json": coco([(1, "a.jpg")], annotations)}, **kwargs)
    return result.jobs[0].read()


def places(result):
    return [(job.split, str(job.image.path), job.stem) for job in result.jobs]


def test_official_layout(made):
    files = {
        "annotations/instances_train2017.json": coco([(5, "a.jpg"), (6, "b.jpg")], [(6, 7, [1, 2, 3, 4])]),
        "annotations/instances_val2017.json": coco([(5, "c.jpg")], [(5, 2, [0, 0, 9, 9]), (5, 7, [1, 1, 1.5, 1])]),
        "annotations/captions_val2017.json": {"annotations": []},
        "annotations/person_keypoints_val2017.json": "cut short",
        "annotations/image_info_test2017.json": {"images": coco([(1, "d.jpg")])["images"], "categories": CATEGORIES},
        "annotations/image_info_unlabeled2017.json": {"images": coco([(1, "e.jpg")])["images"]},
        **dict.fromkeys(["train2017/a.jpg", "train2017/b.jpg", "val2017/c.jpg", "test2017/d.jpg", "more/e.jpg"], ""),
    }
    result = made(files)
    assert (result.kind, result.names) == ("coco", ["car", "ship"])
    there = ["test test2017/d.jpg", "train train2017/a.jpg", "train train2017/b.jpg", "val val2017/c.jpg"]
    assert sorted(f"{split} {image}" for split, image, _ in places(result)) == there
    read = {job.stem: job.read and job.read() for job in result.jobs}
    assert read["d"] is None and len(read["a"]) == 0
    assert read["b"].classes.tolist() == [1] and read["b"].size == (40, 30)
    assert read["c"].classes.tolist() == [0, 1]
    assert read["c"].corners[1].tolist() == [[1, 1], [2.5, 1], [2.5, 2], [1, 2]]
    assert result.yaml == {"train": ["train"], "val": ["val"], "test": ["test"]}
    assert result.problems == {"image without annotation": ["more/e.jpg"]}


def test_images_of_one_name_go_by_their_folders(made):
    each, folders = coco([(1, "x.jpg")], [(1, 2, [0, 0, 1, 1])]), ["train", "valid", "test"]
    result = made({f"{s}/_annotations.coco.json": each for s in folders} | {f"{s}/x.jpg": "" for s in folders})
    assert set(places(result)) == {
        ("train", "train/x.jpg", "x"),
        ("val", "valid/x.jpg", "x"),
        ("test", "test/x.jpg", "x"),
    }
    assert result.problems == {}


@pytest.mark.parametrize(
    "name, split",
    [
        ("train.json", "train"),
        ("instances_val2017.json", "val"),
        ("valid/x.json", "val"),
        ("image_info_test-dev2017.json", "test"),
        ("DIOR_test/coco.json", "test"),
        ("my_test_data/coco.json", "train"),
        ("test/instances_minival2014.json", "val"),
        ("instances_valminusminival2014.json", "train"),
        ("instances_trainval.json", "train"),
        ("latest.json", "train"),
    ],
)
def test_the_split_is_told_from_names(made, name, split):
    assert made({"a.jpg": "", name: coco([(1, "a.jpg")], [(1, 2, [0, 0, 1, 1])])}).jobs[0].split == split


def test_file_names_with_folders(made):
    names = ["s1/x.jpg", "s2\\x.jpg", "deep/s2/y.jpg", "s9/z.jpg"]
    files = dict.fromkeys(["images/s1/x.jpg", "images/s2/x.jpg", "images/s2/y.jpg", "other/z.jpg"], "")
    result = made(files | {"train.json": coco(list(enumerate(names)), [(1, 2, [0, 0, 1, 1])])})
    assert places(result) == [
        ("train", "images/s1/x.jpg", "x"),
        ("train", "images/s2/x.jpg", "images_s2_x"),  # a second x in the split is told apart by its folders
        ("train", "images/s2/y.jpg", "y"),
        ("train", "other/z.jpg", "z"),
    ]
    assert [len(job.read()) for job in result.jobs] == [0, 1, 0, 0] and result.problems == {}


def test_problems_of_files(made):
    train = coco(
        [(1, "a.jpg"), (2, "no.jpg"), (3, "b.jpg"), (3, "c.jpg"), (4, "two.jpg"), (5, "a.jpg")],
        [(1, 2, [0, 0, 1, 1]), (9, 2, [0, 0, 1, 1]), (3, 2, [0, 0, 1, 1]), ([1], 2, [0, 0, 1, 1])],
    )
    files = dict.fromkeys(["a.jpg", "b.jpg", "c.jpg", "s1/two.jpg", "s2/two.jpg"], "")
    result = made(files | {"train.json": train, "val.json": coco([(1, "a.jpg")], [(1, 2, [0, 0, 1, 1])])})
    assert places(result) == [("train", "a.jpg", "a"), ("val", "a.jpg", "a")]
    assert result.problems == {
        "listed but missing": ["train: no.jpg"],
        "duplicate image id": ["train.json: b.jpg", "train.json: c.jpg"],
        "more than one image of this name": ["train: two.jpg"],
        "listed twice (the objects of both are taken)": ["train: a.jpg"],
        "annotation of an unknown image": ["train.json: annotation 101", "train.json: annotation 103"],
        "in two split lists": ["a.jpg"],
        "image without annotation": ["b.jpg", "c.jpg", "s1/two.jpg", "s2/two.jpg"],
    }


def test_problems_of_annotations(made):
    crowd, good = {"iscrowd": 1, "segmentation": {"counts": [1], "size": [30, 40]}}, [1, 1, 5, 5]
    wrong = [[0, 0, 0, 5], [0, 0, 5, -1], [0, 0, float("nan"), 5], [1e308, 0, 1e308, 5], [0, 0, 5], None, ["a"] * 4]
    rows = [(1, 2, good, crowd), (1, 99, good), (1, [2], good), (1, 7, good), *((1, 2, box) for box in wrong)]
    objects = only(made, *rows)
    assert objects.classes.tolist() == [1]
    assert objects.problems == {
        "crowd": 1,
        "unknown class '99'": 1,
        "unknown class 'None'": 1,
        "box of no area": 2,
        "box without numbers": 5,
    }


@pytest.mark.parametrize("flag, crowd", [(0, 0), ("0", 0), (0.0, 0), (None, 0), (1, 1), ("1", 1), (1.0, 1), (True, 1)])
def test_a_crowd_is_one_however_it_is_written(made, flag, crowd):
    objects = only(made, (1, 7, [1, 1, 5, 5], {"iscrowd": flag}))
    assert len(objects) == 1 - crowd and objects.problems == ({"crowd": 1} if crowd else {})


@pytest.mark.parametrize("image, annotation", [(1, 1.0), ("1", 1), (1, "1"), (1.0, "1"), ("a", "a")])
def test_ids_are_the_same_however_they_are_written(made, image, annotation):
    whole = coco([(image, "x.jpg")], [(annotation, 2, [0, 0, 1, 1])])
    content = json.loads(whole) if isinstance(whole, str) else whole
    for category in content["categories"]:
        category["id"] = str(category["id"])
    result = made({"train.json": json.dumps(content), "x.jpg": ""})
    assert [len(job.read()) for job in result.jobs] == [1]


def test_annotations_that_belong_to_no_image_at_all_are_refused(made):
    with pytest.raises(UserError, match="no annotation names one of its images"):
        made({"train.json": coco([(1, "x.jpg")], [("one", 2, [0, 0, 1, 1])]), "x.jpg": ""})


def test_given_names(made):
    result = made({"a.jpg": "", "x.json": coco([(1, "a.jpg")], [(1, 2, [0, 0, 1, 1]), (1, 7, [0, 0, 1, 1])])}, ["ship"])
    objects = result.jobs[0].read()
    assert result.names == ["ship"] and objects.classes.tolist() == [0]
    assert objects.problems == {"unknown class 'car'": 1}


def test_given_names_settle_what_files_number_differently(made):
    other = [{"id": 0, "name": "ship"}, {"id": 1, "name": "ship"}, {"id": 2, "name": "car"}]
    train, val = coco([(1, "a.jpg")], [(1, 7, [0, 0, 1, 1])]), coco([(1, "b.jpg")], [(1, 1, [0, 0, 1, 1])], other)
    result = made({"a.jpg": "", "b.jpg": "", "train.json": train, "val.json": val}, ["car", "ship"])
    assert [job.read().classes.tolist() for job in result.jobs] == [[1], [1]]


DIAMOND = [20, 5, 30, 15, 20, 25, 10, 15]


def test_rotated_boxes(made):
    box = [1, 2, 3, 4]
    odd = [
        {"counts": "x", "size": [3, 3]},
        [],
        [[1, 2, 3]],
        [["a"] * 6],
        [[0, 0, float("nan"), 1, 2, 2]],
        "x",
        [[0] * 6],
    ]
    rows = [(1, 2, box, {"segmentation": s}) for s in ([DIAMOND], DIAMOND, [DIAMOND[:6], DIAMOND[2:]], *odd)]
    objects = only(made, *rows, (1, 2, box), boxes="rotated")
    diamond = np.reshape([10, 15, 20, 5, 30, 15, 20, 25], (4, 2))
    for corners in objects.corners[:3]:
        start = int(np.abs(diamond - corners[0]).sum(1).argmin())
        np.testing.assert_allclose(corners, np.roll(diamond, -start, 0), atol=1e-9)
    assert (objects.corners[3:] == [[1, 2], [4, 2], [4, 6], [1, 6]]).all() and len(objects) == 11
    assert objects.problems == {"no outline of corners (its upright box is taken)": len(odd) + 1}
    assert only(made, *rows).problems == {}


def test_outlines_are_held_as_arrays_and_only_for_rotated_boxes(made):
    outline = {"segmentation": [[k + 0.5 for k in range(1000)]]}
    files = {"a.jpg": "", "train.json": coco([(1, "a.jpg")], [(1, 2, [1, 2, 3, 4], outline)] * 20)}
    made(files)  # what is imported and compiled on the way counts for neither
    held = []
    for boxes in ("horizontal", "rotated"):
        tracemalloc.start()
        kept = made(files, boxes=boxes)
        held.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
        assert len(kept.jobs) == 1
    assert 0.9 < (held[1] - held[0]) / (20 * 1000 * 8) < 1.5  # lists of floats would be four times as much


def test_a_file_is_read_once(made, monkeypatch):
    reads, read = [], File.read
    monkeypatch.setattr(File, "read", lambda file: reads.append(str(file.path)) or read(file))
    files = {f"{s}.json": coco([(1, "a.jpg")], [(1, 2, [0, 0, 1, 1])]) for s in ("train", "val")}
    assert [len(job.read()) for job in made({"a.jpg": "", **files}).jobs] == [1, 1]
    assert reads == ["train.json", "val.json"]


GOOD = coco([(1, "a.jpg")], [(1, 2, [0, 0, 1, 1])])


@pytest.mark.parametrize(
    "files, said",
    [
        ({}, "no COCO JSON"),
        ({"val.json": json.dumps(GOOD)[:-9]}, r"val.json' is no whole JSON"),
        ({"val.json": "[" * 100_000}, r"val.json' is no whole JSON"),
        ({"val.json": [1]}, r"val.json' is no COCO"),
        ({"val.json": {"shapes": []}}, r"val.json' is no COCO"),
        ({"val.json": GOOD | {"annotations": None}}, r"val.json' is no COCO"),
        ({"val.json": GOOD | {"annotations": [3]}}, r"val.json' is no COCO"),
        ({"val.json": GOOD | {"images": [{"id": 1}]}}, "without id or file_name"),
        ({"val.json": GOOD | {"images": [{"id": [1], "file_name": "a.jpg"}]}}, "without id or file_name"),
        ({"val.json": {k: v for k, v in GOOD.items() if k != "categories"}}, "no list of categories"),
        ({"val.json": GOOD | {"categories": [{"id": "one", "name": "a"}]}}, "without number or name"),
        ({"val.json": GOOD | {"categories": []}}, "no categories"),
        ({"val.json": GOOD | {"categories": [*CATEGORIES, {"id": 2, "name": "x"}]}}, "id 2: 'car' and 'x'"),
        (
            {"val.json": GOOD | {"categories": [*CATEGORIES, {"id": 1, "name": "car"}]}},
            "the name 'car'",
        ),
        ({"test.json": {"images": GOOD["images"]}}, "only lists of images"),
    ],
)
def test_unknown_and_broken_files_are_named(made, files, said):
    with pytest.raises(UserError, match=said):
        made({"a.jpg": "", **files})


@pytest.mark.parametrize("turn", [1, -1])
def test_differing_categories_are_named(made, turn):
    more = GOOD | {"categories": [*CATEGORIES, {"id": 9, "name": "tank"}]}
    files = dict(zip(["train.json", "val.json"], [GOOD, more][::turn], strict=True))
    with pytest.raises(UserError, match=rf"'tank' \(id 9\) is in '.*{['val', 'train'][turn < 0]}.json' and not in"):
        made({"a.jpg": "", **files})


@pytest.mark.parametrize("kwargs, said", [({"boxes": "round"}, "round"), ({"names": ["cat"]}, "'cat'.*car, ship")])
def test_mistakes(made, kwargs, said):
    with pytest.raises(UserError, match=said):
        made({"a.jpg": "", "val.json": GOOD}, **kwargs)


NUMBER = st.floats(-1e4, 1e4).map(lambda v: round(v, 3))
EDGE = st.floats(0.001, 1e4).map(lambda v: round(v, 3))
ROW = st.tuples(st.integers(0, 3), st.sampled_from([0, 3, 12]), NUMBER, NUMBER, EDGE, EDGE)
ROWS = st.lists(ROW, max_size=12)


@settings(max_examples=20)
@given(ROWS)
def test_boxes_come_back(tmp_path_factory, rows):
    root = tmp_path_factory.mktemp("coco")
    categories = [{"id": i, "name": f"c{i}"} for i in (12, 0, 3)]
    images = [(i, f"{i}.png") for i in range(4)]
    content = coco(images, [(i, c, box) for i, c, *box in rows], categories)
    (root / "train.json").write_text(json.dumps(content))
    for _, name in images:
        (root / name).touch()
    result, found = plan(Source(root)), []
    for job in result.jobs:
        objects = job.read()
        assert objects.problems == {}
        for kind, corners in zip(objects.classes, objects.corners, strict=True):
            found.append((int(job.stem), int(result.names[kind][1:]), *corners[0], *(corners[2] - corners[0])))
    np.testing.assert_allclose(
        np.reshape(found, (-1, 6)), np.reshape(sorted(rows, key=lambda row: row[0]), (-1, 6)), atol=1e-8
    )
