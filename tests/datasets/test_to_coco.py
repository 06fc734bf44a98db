import json

import cv2
import numpy as np
import pytest
import yaml
from faster_coco_eval import COCO
from hypothesis import given, settings
from hypothesis import strategies as st
from ultralytics.utils import LOGGER

from ds2d2_yolo.datasets import coco_json
from ds2d2_yolo.datasets.source import Source
from ds2d2_yolo.datasets.to_coco import write
from ds2d2_yolo.errors import UserError
from tests.datasets.downloads import tree

NAMES = {0: "plane", 1: "ship", 2: "car"}


def data_set(root, images, split="val", **keys):
    """A YOLO data set of {name: (width, height, label text or None)} in one split."""
    for kind in ("images", "labels"):
        (root / kind / split).mkdir(parents=True, exist_ok=True)
    for name, (width, height, text) in images.items():
        assert cv2.imwrite(str(root / "images" / split / name), np.zeros((height, width, 3), np.uint8))
        if text is not None:
            (root / "labels" / split / f"{name.rpartition('.')[0]}.txt").write_text(text)
    path = root / "data.yaml"
    path.write_text(yaml.safe_dump({"train": "images/train", "val": f"images/{split}", "names": NAMES, **keys}))
    return path


TWO = {"b.png": (40, 20, "2 0.5 0.5 0.25 0.5\n0 0.25 0.25 0.5 0.5\n"), "a.png": (30, 60, "")}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_files_of_other_encodings_are_read(tmp_path, encoding):
    (tmp_path / "hafen-ä.jpg").write_text("")
    content = {
        "images": [{"id": 1, "file_name": "hafen-ä.jpg"}],
        "annotations": [],
        "categories": [{"id": 1, "name": "b"}],
    }
    (tmp_path / "train.json").write_text(json.dumps(content, ensure_ascii=False), encoding=encoding)
    assert [job.stem for job in coco_json.plan(Source(tmp_path)).jobs] == ["hafen-ä"]


def test_known_values(tmp_path):
    path = write(data_set(tmp_path, TWO))
    assert path == tmp_path / "annotations" / "instances_val.json"
    content = json.loads(path.read_text())
    assert content["images"] == [
        {"id": 1, "file_name": "images/val/a.png", "width": 30, "height": 60},
        {"id": 2, "file_name": "images/val/b.png", "width": 40, "height": 20},
    ]
    assert content["categories"] == [{"id": i + 1, "name": name} for i, name in NAMES.items()]
    assert content["annotations"] == [
        {"id": 1, "image_id": 2, "category_id": 3, "bbox": [15, 5, 10, 10], "area": 100, "iscrowd": 0},
        {"id": 2, "image_id": 2, "category_id": 1, "bbox": [0, 0, 20, 10], "area": 200, "iscrowd": 0},
    ]
    assert [p.name for p in path.parent.iterdir()] == ["instances_val.json"]


@pytest.mark.parametrize("shape", [(2, 2), (3, 3)])
def test_keypoints_behind_a_box_are_no_outline(tmp_path, shape):
    """A pose data set's boxes, as Ultralytics' detection training reads them."""
    points = " ".join(["0.9"] * (shape[0] * shape[1]))
    data = data_set(tmp_path, {"a.png": (40, 20, f"1 0.5 0.5 0.25 0.5 {points}\n")}, kpt_shape=list(shape))
    [annotation] = json.loads(write(data).read_text())["annotations"]
    assert annotation["bbox"] == [15, 5, 10, 10] and not annotation.get("segmentation")


def test_corners_become_the_segmentation(tmp_path):
    path = write(data_set(tmp_path, {"a.png": (40, 20, "1 0.5 0 0.75 0.5 0.5 1 0.25 0.5\n")}))
    (found,) = json.loads(path.read_text())["annotations"]
    assert found["segmentation"] == [[20, 0, 30, 10, 20, 20, 10, 10]]
    assert (found["bbox"], found["area"], found["category_id"]) == ([10, 0, 20, 20], 200, 2)


@pytest.mark.parametrize(
    "names, ids", [(["0007.png", "12.png"], [7, 12]), (["1.png", "01.png"], [1, 2]), (["7.png", "x.png"], [1, 2])]
)
def test_image_ids_are_the_numbers_that_files_are_named_by(tmp_path, names, ids):
    content = json.loads(write(data_set(tmp_path, dict.fromkeys(names, (10, 10, None)))).read_text())
    assert sorted(image["id"] for image in content["images"]) == ids


def test_lists_of_folders_and_of_files(tmp_path):
    data_set(tmp_path, TWO, "one")
    data_set(tmp_path, {"c.png": (16, 16, "0 0.5 0.5 1 1\n"), "d.png": (16, 16, "")}, "two")
    elsewhere = tmp_path / "list.txt"
    elsewhere.write_text("./images/two/c.png\n")
    path = data_set(tmp_path, {}, val=["images/one", "list.txt"], test="list.txt", path=str(tmp_path))
    target = tmp_path / "new folder" / "x.json"
    assert write(path, "val", target) == target
    content = json.loads(target.read_text())
    assert [i["file_name"] for i in content["images"]] == ["images/one/a.png", "images/one/b.png", "images/two/c.png"]
    assert [a["image_id"] for a in content["annotations"]] == [2, 2, 3]
    assert len(json.loads(write(path, "test").read_text())["images"]) == 1


def test_a_linked_folder_and_images_outside(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "real")
    outside = tmp_path / "out"
    data_set(outside, {"c.png": (16, 16, "")})
    (tmp_path / "real").mkdir()
    path = data_set(tmp_path / "link", TWO, val=["images/val", "../out/images/val"])
    names = [image["file_name"] for image in json.loads(write(path).read_text())["images"]]
    assert sorted(names) == ["../out/images/val/c.png", "images/val/a.png", "images/val/b.png"]


def test_broken_labels_are_left_out_and_repeated_lines_count_once(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(LOGGER, "warning", said.append)
    images = {
        "bad.png": (16, 16, "0 0.5 0.5 7 1\n"),
        "c.png": (16, 16, "0 0.5 0.5 1 1\n" * 2),
        "e.png": (16, 16, "9 0.5 0.5 1 1"),
    }
    path = data_set(tmp_path, images)
    content = json.loads(write(path).read_text())
    assert [i["file_name"] for i in content["images"]] == ["images/val/c.png"] and len(content["annotations"]) == 1
    assert len(said) == 1 and "2 of 3 images left out" in said[0] and "bad.png" in said[0] and "e.png" in said[0]
    for name in ("c.png", "e.png"):
        (tmp_path / "images" / "val" / name).unlink()
    before = (tmp_path / "annotations" / "instances_val.json").read_bytes()
    with pytest.raises(UserError, match="none of the 1 images can be used: .*bad.png"):
        write(path)
    assert (tmp_path / "annotations" / "instances_val.json").read_bytes() == before


def test_images_are_not_written_anew(tmp_path):
    """Ultralytics restores JPEGs that do not end as they should; what cannot be decoded is left out as there."""
    images, root = dict.fromkeys(("a.jpg", "b.jpg", "c.jpg"), (40, 20, "1 0.5 0.5 0.25 0.5\n")), tmp_path / "images/val"
    path = data_set(tmp_path, images)
    noise = np.random.default_rng(0).integers(0, 255, (20, 40, 3), np.uint8)
    assert cv2.imwrite(str(root / "c.jpg"), noise)
    (root / "b.jpg").write_bytes((root / "b.jpg").read_bytes() + bytes(16))  # as cameras fill up
    (root / "c.jpg").write_bytes((root / "c.jpg").read_bytes()[:-200])
    before = tree(root)
    content = json.loads(write(path).read_text())
    assert tree(root) == before
    assert [image["file_name"] for image in content["images"]] == ["images/val/a.jpg", "images/val/b.jpg"]
    assert [annotation["bbox"] for annotation in content["annotations"]] == [[15, 5, 10, 10]] * 2


@pytest.mark.parametrize("split", ["train", "val", "test", "minival"])
def test_a_file_that_names_one_split_alone(tmp_path, split):
    path = data_set(tmp_path, TWO, split)
    path.write_text(yaml.safe_dump({split: f"images/{split}", "names": NAMES}))
    assert len(json.loads(write(path, split).read_text())["images"]) == 2
    with pytest.raises(UserError, match=f"no split 'other'; it has {split}"):
        write(path, "other")


@pytest.mark.parametrize("other", ["val", "validation"])
def test_images_of_another_split_need_not_be_there(tmp_path, other):
    path = data_set(tmp_path, TWO, "train")
    path.write_text(yaml.safe_dump({"train": "images/train", other: "images/none", "names": NAMES}))
    assert len(json.loads(write(path, "train").read_text())["images"]) == 2
    with pytest.raises(FileNotFoundError, match="images/none"):
        write(path, "val")


def test_mistakes(tmp_path):
    with pytest.raises(UserError, match="'none.yaml' does not exist"):
        write("none.yaml")
    path = data_set(tmp_path, TWO)
    with pytest.raises(UserError, match="no split 'test'; it has train, val"):
        write(path, "test")
    with pytest.raises(UserError, match="is a folder"):
        write(path, target=tmp_path)
    with pytest.raises(UserError, match="file/x.json' cannot be written"):
        (tmp_path / "file").touch()
        write(path, target=tmp_path / "file" / "x.json")
    for name in TWO:
        (tmp_path / "images" / "val" / name).unlink()
    with pytest.raises(UserError, match="'val': no images"):
        write(path)


def test_an_interrupted_write_leaves_what_was_there(tmp_path, monkeypatch):
    path = data_set(tmp_path, TWO)
    before = write(path).read_bytes()

    def stop(content, file):
        file.write("{")
        raise KeyboardInterrupt

    monkeypatch.setattr(json, "dump", stop)
    with pytest.raises(KeyboardInterrupt):
        write(path)
    assert [p.read_bytes() for p in (tmp_path / "annotations").iterdir()] == [before]


SHARE = st.integers(1, 999).map(lambda v: v / 1000)
QUAD = st.tuples(st.integers(0, 2), st.floats(0.2, 0.8), st.floats(0.2, 0.8), st.floats(0.02, 0.15), st.floats(0, 7))


@settings(max_examples=12, deadline=None)
@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 2), SHARE, SHARE, SHARE, SHARE), max_size=6, unique=True),
        min_size=1,
        max_size=3,
    )
)
def test_upright_boxes_come_back_by_way_of_cocos_own_reader(tmp_path_factory, rows):
    """YOLO -> COCO -> faster-coco-eval, and -> the plan that converts it back."""
    root = tmp_path_factory.mktemp("there")
    boxes = {f"i{i}.png": [(k, *xyxy(*box)) for k, *box in found] for i, found in enumerate(rows)}
    text = {
        name: "".join(f"{k} {(a + c) / 2} {(b + d) / 2} {c - a} {d - b}\n" for k, a, b, c, d in found)
        for name, found in boxes.items()
    }
    path = write(data_set(root, {name: (50 + 10 * i, 40, t) for i, (name, t) in enumerate(text.items())}))
    loaded = COCO(str(path))
    assert len(loaded.imgs) == len(rows)
    jobs = {job.image.path.name: job for job in coco_json.plan(Source(root)).jobs}
    for number, image in loaded.imgs.items():
        width, height, name = image["width"], image["height"], image["file_name"].rpartition("/")[2]
        expected = np.reshape(sorted(set(boxes[name])), (-1, 5)) * (1, width, height, width, height)
        found = [(a["category_id"] - 1, *a["bbox"]) for a in loaded.imgToAnns[number]]
        found = np.reshape(found, (-1, 5))
        found[:, 3:] += found[:, 1:3]
        same(found, expected)
        back = jobs[name].read()
        assert back.size == (width, height) == (50 + 10 * int(name[1]), 40)
        same(np.column_stack([back.classes, back.corners[:, 0], back.corners[:, 2]]), expected)


def xyxy(x1, y1, x2, y2):
    return min(x1, x2), min(y1, y2), max(x1, x2) + 0.001, max(y1, y2) + 0.001


def same(found, expected):
    """Rows in any order; Ultralytics reads labels as float32 and drops repeated ones."""
    order = [np.lexsort(rows.round(2).T) for rows in (found, expected)]
    np.testing.assert_allclose(found[order[0]], expected[order[1]], atol=1e-3)


@settings(max_examples=12, deadline=None)
@given(st.lists(QUAD, min_size=1, max_size=5))
def test_rotated_boxes_come_back(tmp_path_factory, rows):
    root, size = tmp_path_factory.mktemp("turned"), (80, 80)
    corners, text = [], ""
    for k, x, y, half, angle in rows:
        axes = np.array([(np.cos(angle), np.sin(angle)), (-np.sin(angle), np.cos(angle))])
        corners.append(
            np.array([(-half, -half / 2), (half, -half / 2), (half, half / 2), (-half, half / 2)]) @ axes + (x, y)
        )
        text += f"{k} {' '.join(map(str, corners[-1].ravel()))}\n"
    write(data_set(root, {"a.png": (*size, text)}))
    (job,) = coco_json.plan(Source(root), boxes="rotated").jobs
    back = job.read()
    assert len(back) == len(set(rows)) and set(back.classes) == {k for k, *_ in rows}
    for (k, *_), quad in zip(rows, corners, strict=True):
        gaps = np.abs(np.sort(back.corners, 1) - np.sort(quad * size, 0)).max((1, 2))
        assert gaps[back.classes == k].min() < 1e-3
