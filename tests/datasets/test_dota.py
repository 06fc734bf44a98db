"""DOTA as it is distributed, drawn small."""

import zipfile

import numpy as np
import pytest

from ds2d2_yolo.datasets import dota
from ds2d2_yolo.datasets.source import Source
from ds2d2_yolo.errors import UserError
from tests.datasets.downloads import label_txt, picture, write, zipped

SQUARE = ((2, 2), (20, 3), (19, 21), (1, 20))
OBJECTS = [(SQUARE, "ship", False), (((30, 30), (40, 30), (40, 36), (30, 36)), "plane", True)]


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "DOTA"
    for split, stems in (("train", ("P0000", "P0001")), ("val", ("P0003",)), ("test", ("P0006",))):
        for i, stem in enumerate(stems):
            picture(folder / split / "images" / f"{stem}.png", seed=i)
            if split != "test":
                write(folder / split / "labelTxt" / f"{stem}.txt", label_txt(OBJECTS, header=i == 0))
    return folder


def planned(root, **more):
    return dota.plan(Source(root), **more)


def stems(plan):
    return [f"{job.split}/{job.stem}" for job in plan.jobs]


def test_images_objects_and_splits(root):
    plan = planned(root)
    assert stems(plan) == ["train/P0000", "train/P0001", "val/P0003", "test/P0006"]
    assert plan.yaml == {"train": ["train"], "val": ["val"], "test": ["test"]}
    assert plan.names[-1] == "swimming-pool" and len(plan.names) == 15
    for job in plan.jobs[:3]:
        objects = job.read()
        assert [plan.names[k] for k in objects.classes] == ["ship", "plane"]
        assert objects.difficult.tolist() == [False, True] and not objects.problems
        np.testing.assert_array_equal(objects.corners[0], SQUARE)
    assert plan.jobs[3].read is None
    assert not any(plan.problems.values())


@pytest.mark.parametrize("version, number, last", [("1.5", 16, "container-crane"), ("2.0", 18, "helipad")])
def test_versions_have_their_classes(root, version, number, last):
    names = planned(root, version=version).names
    assert (len(names), names[-1]) == (number, last)


def test_the_labels_of_the_version_asked_for(root):
    """All three versions side by side, as downloaded, with the upright boxes that come along."""
    for split in ("train", "val"):
        (root / split / "labelTxt").rename(root / split / "labelTxt-v1.0")
        for version, name in (("1.5", "container-crane"), ("2.0", "helipad")):
            folder = root / split / f"labelTxt-v{version}" / f"DOTA-v{version}_{split}"
            for stem in ("P0000", "P0001", "P0003"):
                if (root / split / "images" / f"{stem}.png").exists():
                    write(folder / f"{stem}.txt", label_txt([(SQUARE, name, False)]))
                    write(folder.with_name(f"{folder.name}_hbb") / f"{stem}.txt", label_txt(OBJECTS * 2))
            zipped(folder)
            zipped(folder.with_name(f"{folder.name}_hbb"))
        zipped(root / split / "images")
    for version, expected in (("1.0", ["ship", "plane"]), ("1.5", ["container-crane"]), ("2.0", ["helipad"])):
        plan = planned(root, version=version)
        assert stems(plan) == ["train/P0000", "train/P0001", "val/P0003", "test/P0006"]
        assert all([plan.names[k] for k in job.read().classes] == expected for job in plan.jobs[:3])


@pytest.mark.parametrize("version, expected", [("1.0", ["ship", "plane"]), ("1.5", ["container-crane"])])
def test_labels_that_name_the_version_go_before_those_that_name_none(root, version, expected):
    write(root / "train" / "labelTxt-v1.5" / "P0000.txt", label_txt([(SQUARE, "container-crane", False)]))
    plan = planned(root, version=version)
    names = [[plan.names[k] for k in job.read().classes] for job in plan.jobs[:2]]
    assert names == [expected, ["ship", "plane"]]
    twice = [str(root / "train" / "labelTxt" / "P0000.txt")] if version == "1.5" else []
    assert [found for reason, found in plan.problems.items() if "two annotations" in reason] == [twice]


@pytest.mark.parametrize("zipped_up", [False, True])
@pytest.mark.parametrize("version, expected", [("1.0", "ship"), ("1.5", "container-crane")])
def test_the_innermost_folder_names_the_version(tmp_path, version, expected, zipped_up):
    folder = tmp_path / "download" / "DOTA-v1.5" / "train"
    picture(folder / "images" / "P0000.png")
    for other, name in (("1.0", "ship"), ("1.5", "container-crane")):
        write(folder / f"labelTxt-v{other}" / "P0000.txt", label_txt([(SQUARE, name, False)]))
    if zipped_up:
        zipped(folder.parent)
    plan = planned(tmp_path / "download", version=version)
    assert [plan.names[k] for k in plan.jobs[0].read().classes] == [expected]
    assert not any("two annotations" in reason and found for reason, found in plan.problems.items())


YOLO_ROWS = "0 .1 .1 .3 .1 .3 .35 .1 .35\n0 .2 .2 .3 .2 .3 .35 .2 .35\n"  # class and corners: nine numbers


@pytest.fixture
def ultralytics(tmp_path):
    """DOTA as Ultralytics packs it: images/train, labels/train for YOLO, labels/train_original as DOTA has them."""
    for split, stem in (("train", "P1"), ("val", "P2")):
        picture(tmp_path / "in/images" / split / f"{stem}.png")
        write(tmp_path / "in/labels" / split / f"{stem}.txt", YOLO_ROWS)
        write(tmp_path / "in/labels" / f"{split}_original" / f"{stem}.txt", label_txt(OBJECTS))
    return tmp_path / "in"


def test_of_two_labels_the_one_that_is_dotas_is_taken(ultralytics):
    plan = planned(ultralytics)
    assert stems(plan) == ["train/P1", "val/P2"] and all(len(job.read()) == 2 for job in plan.jobs)
    [twice] = [found for reason, found in plan.problems.items() if "two annotations" in reason and found]
    assert twice == [str(ultralytics / "labels" / split) for split in ("train/P1.txt", "val/P2.txt")]


def test_an_empty_label_of_the_version_goes_before_objects_of_any_version(root):
    write(root / "train" / "labelTxt-v1.5" / "P0000.txt", "")
    assert [len(job.read()) for job in planned(root, version="1.5").jobs[:2]] == [0, 2]


@pytest.mark.parametrize(
    "text, said",
    [
        (YOLO_ROWS, "2 x annotation without a single valid line"),
        ("0 .1 .1 .3 .1\n", "2 x annotation without a single valid line"),
        (label_txt([(SQUARE, "boat", False)]), "2 x unknown class 'boat'"),
        ("", "2 x no line"),
    ],
)
def test_labels_without_a_single_box_are_refused(ultralytics, text, said):
    for note in ultralytics.glob("labels/*/*.txt"):
        note.unlink() if "original" in str(note) else note.write_text(text)
    with pytest.raises(UserError, match=rf"no label of .* has a box of DOTA v1.0 \({said}\); give the folder"):
        planned(ultralytics)
    write(ultralytics / "labels/val/P2.txt", label_txt(OBJECTS))
    assert stems(planned(ultralytics)) == ["train/P1", "val/P2"]


@pytest.mark.parametrize("name", ["trainval", "train", "DOTA"])
def test_folders_in_a_zip_file_go_before_its_name(root, name):
    expected = stems(planned(root))
    root.rename(root.with_name(name))
    packed = zipped(root.with_name(name))
    with zipfile.ZipFile(packed) as archive, zipfile.ZipFile(root.with_name("new.zip"), "w") as new:
        for member in archive.namelist():  # train/images/P0000.png
            new.writestr(member.partition("/")[2], archive.read(member))
    root.with_name("new.zip").replace(packed)
    assert stems(planned(packed)) == expected


def test_a_zip_files_name_tells_the_split_where_its_folders_do_not(tmp_path, root):
    for split in ("train", "val", "test"):
        for part in ("images", "labelTxt"):
            if (root / split / part).exists():
                (root / split / part).rename(root / part)
                zipped(root / part).rename(tmp_path / f"{split}-{part}.zip")
        for empty in (root / split).iterdir():
            empty.rmdir()
        (root / split).rmdir()
    assert stems(planned(tmp_path)) == ["train/P0000", "train/P0001", "val/P0003", "test/P0006"]


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_folder_without_splits(tmp_path, root, split):
    (root / "train").rename(tmp_path / "flat")
    plan = planned(tmp_path / "flat", split=split)
    assert stems(plan) == [f"{split}/P0000", f"{split}/P0001"]
    assert plan.yaml == {"train": [split] if split == "train" else [], "val": [split]}


def test_a_path_that_names_a_split_by_chance(tmp_path, root):
    (tmp_path / "training of tests").mkdir()
    root.rename(tmp_path / "training of tests" / "DOTA")
    assert stems(planned(tmp_path / "training of tests"))[0] == "train/P0000"


def test_what_is_missing_is_counted(root):
    (root / "train" / "images" / "P0000.png").unlink()
    (root / "val" / "labelTxt" / "P0003.txt").unlink()
    picture(root / "train" / "images" / "P0001.jpg")
    plan = planned(root)
    assert stems(plan) == ["train/P0001", "test/P0006"]
    assert {k: v for k, v in plan.problems.items() if v} == {
        "two images of one name (the first is taken)": [str(root / "train" / "images" / "P0001.png")],
        "image without annotation (left out)": ["val/P0003"],
        "annotation without image": ["train/P0000"],
    }


def test_lines_that_make_no_sense_are_counted():
    index = {"ship": 0}
    text = label_txt([(SQUARE, "ship", False), (SQUARE, "submarine", False)]) + "1 2 3\n1 2 3 4 5 6 7 inf ship 0\n"
    objects = dota.read_text(text + "1 2 3 4 5 6 7 x ship 0\n\n", index)
    assert objects.problems == {"unknown class 'submarine'": 1, "line that is no annotation": 3}
    assert objects.classes.tolist() == [0]
    assert len(dota.read_text("", index)) == len(dota.read_text("imagesource:GF\ngsd:null\n", index)) == 0
    with pytest.raises(ValueError, match="without a single valid line"):
        dota.read_text(YOLO_ROWS, index)
    assert dota.read_text("1 1 5 1 5 5 1 5 ship", index).difficult.tolist() == [False]  # no flag
    flags = "".join(f"1 1 5 1 5 5 1 5 ship {flag}\n" for flag in (0, 1, 2))
    assert dota.read_text(flags, index).difficult.tolist() == [False, True, True]
    with pytest.raises(ValueError, match="without a single valid line"):
        dota.read_text("<html>not found</html>\n", index)


def test_a_source_that_is_no_dota(root):
    for argument, says in (({"version": "3.0"}, "version=3.0"), ({"split": "all"}, "split=all")):
        with pytest.raises(UserError, match=says):
            planned(root, **argument)
    for part, says in (("images", "holds no images"), ("labelTxt", "holds no labelTxt of DOTA v1.0")):
        for split in ("train", "val", "test"):
            if (root / split / part).exists():
                (root / split / part).rename(root.parent / f"{split}-{part}")
        with pytest.raises(UserError, match=says):
            planned(root)
        for split in ("train", "val", "test"):
            if (root.parent / f"{split}-{part}").exists():
                (root.parent / f"{split}-{part}").rename(root / split / part)
