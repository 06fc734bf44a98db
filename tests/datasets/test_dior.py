"""DIOR as it is distributed, drawn small."""

import numpy as np
import pytest

from ds2d2_yolo.datasets import dior
from ds2d2_yolo.datasets.source import Source
from ds2d2_yolo.errors import UserError
from tests.datasets.downloads import dior_folder, picture, write, xml, zipped


@pytest.fixture
def root(tmp_path):
    return dior_folder(tmp_path / "DIOR")


def planned(root, **more):
    return dior.plan(Source(root), **more)


def content(plan):
    return {
        f"{job.split}/{job.stem}": [
            (plan.names[k], *c.ravel().tolist()) for k, c in zip(job.read().classes, job.read().corners, strict=True)
        ]
        for job in plan.jobs
    }


SHIP = ("ship", 1, 2, 11, 2, 11, 22, 1, 22)


@pytest.mark.parametrize("boxes", ["horizontal", "rotated"])
def test_images_objects_and_splits(root, boxes):
    plan = planned(root, boxes=boxes)
    found = content(plan)
    assert list(found) == ["train/00001", "train/00002", "val/00003", "test/11726"]
    assert found["train/00001"] == [SHIP, ("vehicle", 30, 30, 34, 30, 34, 33, 30, 33)]
    assert found["val/00003"] == []
    assert plan.jobs[0].read().size == (64, 48)
    assert plan.yaml == {"train": ["train", "val"], "val": ["test"], "test": ["test"]}
    assert plan.names[:2] == ["airplane", "airport"] and plan.names[-1] == "windmill" and len(set(plan.names)) == 20


def test_turned_boxes_are_read_as_such(root):
    turned = ("ship", 10, 0, 20, 10, 10, 20, 0, 10)
    write(root / "Annotations" / dior.FOLDERS["rotated"] / "00001.xml", xml([turned], rotated=True))
    assert content(planned(root, boxes="rotated"))["train/00001"] == [turned]
    assert content(planned(root))["train/00001"][0] == SHIP


def test_zip_files_as_downloaded(root):
    expected = content(planned(root))
    for name in ("Annotations", "ImageSets", "JPEGImages-trainval", "JPEGImages-test"):
        zipped(root / name)
    assert content(planned(root)) == expected
    assert all(job.image.member for job in planned(root).jobs)


def test_only_the_official_split_is_silent(root, monkeypatch):
    said = [r for r, names in planned(root).problems.items() if names]
    assert said == [f"{s}.txt is not the official split of {n:,} images" for s, n in dior.OFFICIAL.items()]
    monkeypatch.setattr(dior, "OFFICIAL", {"train": 2, "val": 1, "test": 1})
    assert not any(planned(root).problems.values())


def test_the_official_numbers():
    assert dior.OFFICIAL["train"] + dior.OFFICIAL["val"] == 11725
    assert sum(dior.OFFICIAL.values()) == 23463


def test_what_is_missing_is_counted(root):
    problems_before = {k for k, v in planned(root).problems.items() if v}
    (root / "JPEGImages-trainval" / "00002.jpg").unlink()
    (root / "Annotations" / dior.FOLDERS["horizontal"] / "11726.xml").unlink()
    picture(root / "JPEGImages-test" / "20000.jpg")
    picture(root / "JPEGImages-test" / "00001.png")
    write(root / "ImageSets/Main/val.txt", "00003\n00001\n")
    plan = planned(root)
    assert [f"{j.split}/{j.stem}" for j in plan.jobs] == ["train/00001", "val/00003"]
    found = {k: v for k, v in plan.problems.items() if v and k not in problems_before}
    assert found == {
        "in the lists twice (taken as train)": ["00001"],
        "listed, but its image is missing": ["train/00002"],
        "image without annotation (left out)": ["test/11726"],
        "image in no split list (left out)": ["20000"],
        "annotation without image": ["00002"],
        "two images of one name (the first is taken)": [str(root / "JPEGImages-trainval" / "00001.jpg")],
    }


@pytest.mark.parametrize("packed", [False, True])
def test_of_two_annotations_the_one_right_in_the_folder_is_taken(root, packed):
    folder = root / "Annotations" / dior.FOLDERS["horizontal"]
    for name in ("00001", "00002"):
        for other in ("0old", "zzz"):
            write(folder / other / f"{name}.xml", xml([("windmill", 1, 1, 5, 5)] * (1 + (other == "zzz"))))
    (folder / "00002.xml").unlink()
    if packed:
        zipped(root / "Annotations")
    plan = planned(root)
    found = content(plan)
    assert found["train/00001"][0] == SHIP and len(found["train/00002"]) == 1  # of the others the first
    (twice,) = [names for reason, names in plan.problems.items() if "two annotations" in reason]
    where = f"{root / 'Annotations'}{'.zip/Annotations' * packed}/{dior.FOLDERS['horizontal']}"
    assert twice == [f"{where}/{name}.xml" for name in ("0old/00001", "zzz/00001", "zzz/00002")]


def test_lists_in_a_damaged_zip_file(root):
    path = zipped(root / "ImageSets")
    data = bytearray(path.read_bytes())
    start = data.index(b"test.txt") + len("test.txt")
    data[start : start + 20] = b"\xff" * 20
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"ImageSets.zip/.*txt' cannot be read: damaged in the zip file"):
        planned(root)


@pytest.mark.parametrize("missing, says", [
    ("ImageSets", "holds no ImageSets/Main/train.txt"),
    ("Annotations", "holds no 'Annotations/Horizontal Bounding Boxes/"),
    ("JPEGImages", "holds no images"),
])  # fmt: skip
def test_a_source_that_is_no_dior(root, missing, says):
    for folder in root.glob(f"{missing}*"):
        folder.rename(root.parent / folder.name)
    with pytest.raises(UserError, match=says):
        planned(root)


def test_lists_with_suffixes_byte_order_marks_and_columns(root):
    (root / "ImageSets/Main/train.txt").write_bytes("\ufeff00001.jpg 1\r\n\r\n00002 -1\r\n".encode())
    assert [j.stem for j in planned(root).jobs if j.split == "train"] == ["00001", "00002"]


@pytest.mark.parametrize(
    "text", ["", "<annotation><object>", "<svg/>", "\x00\x01", "<?xml version='1.0' encoding='x'?><a/>"]
)
def test_broken_annotations_are_value_errors(root, text):
    write(root / "Annotations" / dior.FOLDERS["horizontal"] / "00001.xml", text)
    with pytest.raises(ValueError, match="^(annotation that is no whole XML file|XML file without an annotation)$"):
        planned(root).jobs[0].read()


def test_objects_that_make_no_sense_are_counted(root):
    text = xml([("ship", 1, 2, 11, 22), ("submarine", 1, 1, 2, 2), ("dam", "x", 1, 2, 2), ("dam", "nan", 1, 2, 2)])
    text = text.replace("</annotation>", "<object><name>dam</name></object></annotation>")
    write(root / "Annotations" / dior.FOLDERS["horizontal"] / "00001.xml", text)
    objects = planned(root).jobs[0].read()
    assert objects.problems == {"unknown class 'submarine'": 1, "box without numbers": 3}
    assert objects.classes.tolist() == [dior.NAMES.index("ship")]
    np.testing.assert_array_equal(objects.corners[0], np.reshape(SHIP[1:], (4, 2)))


def test_names_in_the_lists_may_have_dots_spaces_suffixes_and_a_column(root):
    stems = ["a.b.c", "with space", "00007"]
    for stem in stems:
        picture(root / "JPEGImages-trainval" / f"{stem}.jpg")
        write(root / "Annotations" / dior.FOLDERS["horizontal"] / f"{stem}.xml", xml([]))
    write(root / "ImageSets/Main/train.txt", "a.b.c\nwith space.jpg  -1\n00007 1\r\n")
    assert [job.stem for job in planned(root).jobs if job.split == "train"] == stems
