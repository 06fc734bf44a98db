"""Images and text annotations of one name in several folders: which belong together, and what they are called."""

import time

import pytest

from ds2d2_yolo.datasets import dota, visdrone
from ds2d2_yolo.datasets.convert import convert
from ds2d2_yolo.datasets.one_image import Options
from ds2d2_yolo.datasets.pairs import paired
from ds2d2_yolo.datasets.source import File, Source, path_of
from tests.datasets.downloads import label_txt, picture, write, zipped

SQUARE = ((2, 2), (20, 3), (19, 21), (1, 20))
SHIP, PLANE, NOTHING = (label_txt(rows) for rows in ([(SQUARE, "ship", 0)], [(SQUARE, "plane", 0)], []))
YOLO = "0 .1 .1 .3 .1 .3 .35 .1 .35\n"


def made(root, images, notes):
    """A training set of DOTA: paths of images, text by path of annotations."""
    for i, name in enumerate(images):
        picture(root / "train" / f"{name}.png", seed=i)
    for name, text in notes.items():
        write(root / "train" / f"{name}.txt", text)
    return root


def found(plan):
    """Split and name of the files written, the image's folder and name, its classes (None: not annotated)."""
    return {
        f"{job.split}/{job.stem}": (
            "/".join(job.image.path.with_suffix("").parts[-2:]),
            [plan.names[kind] for kind in job.read().classes] if job.read else None,
        )
        for job in plan.jobs
    }


def problems(plan, root):
    """What is named, as paths in the training set."""
    named = {reason.partition(" (")[0]: names for reason, names in plan.problems.items() if names}
    return {reason: [name.removeprefix(f"{root / 'train'}/") for name in names] for reason, names in named.items()}


@pytest.mark.parametrize("packed", [False, True])
def test_images_and_annotations_of_one_name_belong_to_those_of_their_folder(tmp_path, packed):
    """a/001 shows nothing; of 002 there is an image in one folder and an annotation in the other."""
    notes = {"labelTxt/a/001": NOTHING, "labelTxt/b/001": SHIP, "labelTxt/b/002": SHIP}
    root = made(tmp_path / "in", ("images/a/001", "images/b/001", "images/a/002"), notes)
    if packed:
        for part in ("images", "labelTxt"):
            zipped(root / "train" / part)
    plan = dota.plan(Source(root))
    assert found(plan) == {"train/001": ("a/001", []), "train/train_images_b_001": ("b/001", ["ship"])}
    kinds = ("images.zip/images", "labelTxt.zip/labelTxt") if packed else ("images", "labelTxt")
    assert problems(plan, root) == {
        "image without annotation": [f"{kinds[0]}/a/002.png"],
        "annotation without image": [f"{kinds[1]}/b/002.txt"],
    }
    census = convert(plan, tmp_path / "out", Options(), root)
    assert census.splits.loc["train"].tolist() == [2, 2, 1]
    assert (tmp_path / "out/labels/train/001.txt").read_text() == ""


def test_zip_files_are_folders_that_pair(tmp_path):
    root = made(tmp_path, ("images/a/001", "images/b/001"), {"labelTxt/a/001": PLANE, "labelTxt/b/001": SHIP})
    for kind in ("images", "labelTxt"):
        for part in ("a", "b"):
            for file in (root / "train" / kind / part).iterdir():
                file.rename(file.parents[1] / file.name)
            (root / "train" / kind / part).rmdir()
            zipped_as(root / "train" / kind, part)
    assert {name: classes for name, (_, classes) in found(dota.plan(Source(root))).items()} == {
        "train/001": ["plane"],
        "train/train_images_001": ["ship"],
    }


def zipped_as(folder, name):
    """Put a folder's files that are no zip files into one without folders."""
    import zipfile

    with zipfile.ZipFile(folder / f"{name}.zip", "w") as archive:
        for file in [f for f in folder.iterdir() if f.suffix != ".zip" and f.is_file()]:
            archive.write(file, file.name)
            file.unlink()


def test_an_annotation_of_another_version_is_none_of_another_folder(tmp_path):
    notes = {f"{kind}/{part}/001": text for kind in ("labelTxt", "labelTxt-v1.5") for part, text in
             (("a", NOTHING), ("b", SHIP if kind == "labelTxt" else PLANE))}  # fmt: skip
    root = made(tmp_path, ("images/a/001", "images/b/001"), notes)
    for version, classes in (("1.0", "ship"), ("1.5", "plane")):
        plan = dota.plan(Source(root), version)
        assert [kinds for _, kinds in found(plan).values()] == [[], [classes]]
    assert problems(plan, root) == {"two annotations of one name": ["labelTxt/a/001.txt", "labelTxt/b/001.txt"]}


def test_an_annotation_made_for_yolo_gives_way_to_dotas_in_whatever_folder(tmp_path):
    """labels/train_original is as Ultralytics names it; the folder of the image is the other one's."""
    for part, text in (("a", PLANE), ("b", SHIP)):
        picture(tmp_path / f"images/train/{part}/1.png")
        write(tmp_path / f"labels/train/{part}/1.txt", YOLO)
        write(tmp_path / f"labels/train_original/{part}/1.txt", text)
    assert [classes for _, classes in found(dota.plan(Source(tmp_path))).values()] == [["plane"], ["ship"]]


@pytest.mark.parametrize("name", ["labelTxt/001", "labelTxt/c/001"])
def test_folders_that_only_one_side_has_say_nothing(tmp_path, name):
    root = made(tmp_path, ("images/part1/001", "images/part2/002"), {name: SHIP, "labelTxt/002": PLANE})
    assert [classes for _, classes in found(dota.plan(Source(root))).values()] == [["ship"], ["plane"]]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("images, notes", [("images/{}", "labelTxt/{}"), ("{}/images", "{}/labelTxt")])
def test_a_folder_without_annotations_has_those_of_another_but_none_of_its_images(tmp_path, images, notes, packed):
    """The annotations of all parts lie in b, which has an image 001 itself; of 4 there are two images."""
    named = [f"{images.format(place)}/{name}" for place, name in ("a1", "a2", "b1", "c3", "a4", "c4")]
    labels = {f"{notes.format('b')}/{name}": SHIP for name in "1234"}
    root = made(tmp_path, named, labels)
    if packed:
        for folder in [folder for folder in (root / "train").iterdir() if folder.is_dir()]:
            zipped(folder)
    plan = dota.plan(Source(root))
    assert {str(job.image.path.with_suffix("")) for job in plan.jobs} == {f"train/{named[i]}" for i in (1, 2, 3)}
    assert [classes for _, classes in found(plan).values()] == [["ship"]] * 3
    missing = {reason: [path_of(name).name for name in names] for reason, names in problems(plan, root).items()}
    assert missing == {"image without annotation": ["1.png", "4.png", "4.png"], "annotation without image": ["4.txt"]}


@pytest.mark.parametrize("place, borrows", [("a", False), ("c", True), ("d", True)])
def test_only_folders_that_both_hold_pairs_lend_each_other_nothing(tmp_path, place, borrows):
    """Of a and b both do, c has annotations of others' images alone, d has one whose image is missing."""
    notes = {"labelTxt/a/1": PLANE, "labelTxt/b/2": PLANE, f"labelTxt/{place}/3": SHIP, "labelTxt/d/9": SHIP}
    plan = dota.plan(Source(made(tmp_path, ("images/a/1", "images/b/2", "images/b/3", "images/d/8"), notes)))
    assert ("train/3" in found(plan)) == borrows


def test_of_two_annotations_in_another_folder_one_is_taken_if_they_are_of_one_place(tmp_path):
    """Of 2 there are two versions in a, of 3 annotations in two folders; those of 4 are DOTA's and YOLO's."""
    notes = {"labelTxt/a/1": PLANE, "labelTxt/a/2": PLANE, "labelTxt-v1.0/a/2": SHIP, "labelTxt/a/3": SHIP}
    notes |= {"labelTxt/c/3": SHIP, "labels/a/4": YOLO, "labelTxt/a/4": SHIP}
    plan = dota.plan(Source(made(tmp_path, ("images/a/1", "images/b/2", "images/b/3", "images/b/4"), notes)))
    assert {name: classes for name, (_, classes) in found(plan).items()} == {
        "train/1": ["plane"],
        "train/2": ["ship"],
        "train/4": ["ship"],
    }
    assert problems(plan, tmp_path) == {
        "two annotations of one name": ["labelTxt/a/2.txt", "labels/a/4.txt"],
        "image without annotation": ["images/b/3.png"],
        "annotation without image": ["labelTxt/a/3.txt", "labelTxt/c/3.txt"],
    }


def test_images_of_an_earlier_version_have_the_annotations_of_a_later_one(tmp_path):
    """DOTA v2.0 brings the images that v1.0 lacks, and annotations for all; a part was left in a folder of no split."""
    for place in ("DOTA-v1.0/train/images/P1", "DOTA-v2.0/train/images/P2", "part9/images/P3"):
        picture(tmp_path / f"{place}.png")
    for name in ("P1", "P2", "P3"):
        write(tmp_path / f"DOTA-v2.0/train/labelTxt/{name}.txt", SHIP)
    plan = dota.plan(Source(tmp_path), "2.0")
    assert sorted(found(plan)) == ["train/P1", "train/P2", "train/P3"] and not any(plan.problems.values())


def test_the_only_image_left_of_a_name_has_the_only_annotation_left(tmp_path):
    notes = {"labelTxt/a/001": PLANE, "labelTxt/001": SHIP, "labelTxt/b/002": SHIP}
    root = made(tmp_path, ("images/a/001", "images/b/001", "images/b/002"), notes)
    expected = {"001": ["plane"], "002": ["ship"], "train_images_b_001": ["ship"]}
    plan = dota.plan(Source(root))
    assert {name[6:]: classes for name, (_, classes) in found(plan).items()} == expected and not problems(plan, root)


def test_what_two_images_could_have_none_has(tmp_path):
    notes = {"labelTxt/001": SHIP, "labelTxt/a/002": SHIP, "labelTxt/b/002": PLANE}
    root = made(tmp_path, [f"images/{part}/{name}" for part in "ab" for name in ("001", "002")], notes)
    plan = dota.plan(Source(root))
    assert [classes for _, classes in found(plan).values()] == [["ship"], ["plane"]]
    assert problems(plan, root) == {
        "image without annotation": ["images/a/001.png", "images/b/001.png"],
        "annotation without image": ["labelTxt/001.txt"],
    }


def test_images_of_a_test_split_that_nobody_annotated_are_told_apart(tmp_path):
    made(tmp_path, ("images/P1",), {"labelTxt/P1": SHIP})
    for name in ("a/001.png", "b/001.png", "b/001.jpg"):
        picture(tmp_path / "test/images" / name)
    plan = dota.plan(Source(tmp_path))
    tested = {"test/001": ("a/001", None), "test/test_images_b_001": ("b/001", None)}
    assert found(plan) == {"train/P1": ("images/P1", ["ship"]), **tested}
    assert [job.image.path.suffix for job in plan.jobs if job.split == "test"] == [".png", ".jpg"]
    (twice,) = [names for reason, names in plan.problems.items() if "two images" in reason]
    assert twice == [str(tmp_path / "test/images/b/001.png")]


def test_visdrones_too(tmp_path):
    """Of a set in parts."""
    for part, line in (("day", "10,20,8,4,1,4,0,0"), ("night", "30,5,6,12,1,10,1,2")):
        picture(tmp_path / f"VisDrone2019-DET-train/images/{part}/0001.jpg")
        write(tmp_path / f"VisDrone2019-DET-train/annotations/{part}/0001.txt", line)
    plan = visdrone.plan(Source(tmp_path))
    assert list(found(plan).values()) == [("day/0001", ["car"]), ("night/0001", ["motor"])]
    assert plan.problems["train is not the official split of 6,471 images"] == ["2 in it"]


def test_visdrones_annotations_of_all_parts_may_lie_in_one(tmp_path):
    for i in range(3):
        picture(tmp_path / f"VisDrone2019-DET-train/part{i}/images/{i}.jpg")
        write(tmp_path / f"VisDrone2019-DET-train/part0/annotations/{i}.txt", "10,20,8,4,1,4,0,0")
    plan = visdrone.plan(Source(tmp_path))
    assert sorted(found(plan)) == ["train/0", "train/1", "train/2"]


@pytest.mark.parametrize(
    ("image", "note"),
    [
        ("images/{0}/scene", "labelTxt/{0}/scene"),
        ("images/{0}/scene", "labelTxt/more/{0}/scene"),
        ("images/{0}/scene", "labelTxt/{1}/scene"),
        ("images/{2}/{3}", "labelTxt/{2}/{3}"),
        ("images/{2}/{3}", "labelTxt/{4}/{3}"),
        ("{2}/images/{0}", "125/labelTxt/{0}"),
    ],
    ids=["folders of one image", "some without image", "none together", "frames", "frames of others", "all in one"],
)
def test_it_takes_no_longer_for_many(image, note):
    def files(form, suffix, count, first=0):
        numbers = range(first, first + count)
        names = (form.format(i, (i + 1) % 50_000, i // 100, i % 100, (i // 100 + 250) % 500) for i in numbers)
        return [File(path_of(name + suffix), 0, path_of("/in") / (name + suffix)) for name in names]

    images, notes = files(image, ".png", 25_000), files(note, ".txt", 25_000, 12_500)
    begin = time.process_time()
    paired(images, notes, lambda note, apart: apart)
    assert time.process_time() - begin < 5
