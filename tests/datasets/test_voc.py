import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ds2d2_yolo.datasets import source as sources
from ds2d2_yolo.datasets.source import Source
from ds2d2_yolo.datasets.voc import plan
from ds2d2_yolo.errors import UserError
from tests.datasets.downloads import write, zipped


def write_files(root, files):
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def xml(*objects, size=(40, 30)):
    """Annotation of (name, xmin, ymin, xmax, ymax), or (name, text of the element that holds the box)."""
    text = f"<annotation><size><width>{size[0]}</width><height>{size[1]}</height></size>"
    for name, *box in objects:
        if len(box) == 4:
            edges = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
            box = [f"<bndbox>{''.join(f'<{k}>{v}</{k}>' for k, v in edges)}</bndbox>"]
        text += f"<object><name>{name}</name>{box[0]}</object>"
    return text + "</annotation>"


def turned(**values):
    return f"<robndbox>{''.join(f'<{k}>{v}</{k}>' for k, v in values.items())}</robndbox>"


CAR, SHIP = xml(("car", 3, 4, 13, 24)), xml(("ship", 1, 1, 5, 5), ("car", 2, 2, 9, 9))


@pytest.fixture
def made(tmp_path):
    """Returns a function that lays out files and plans them."""

    def make(files, *args, **kwargs):
        return plan(Source(write_files(tmp_path, files)), *args, **kwargs)

    return make


def splits(result):
    found = {}
    for job in result.jobs:
        found.setdefault(job.split, []).append(job.stem)
    return found


def voc(stems, lists, root="VOCdevkit/VOC2007"):
    files = {f"{root}/JPEGImages/{s}.jpg": b"" for s in stems} | {f"{root}/Annotations/{s}.xml": CAR for s in stems}
    return files | {f"{root}/ImageSets/Main/{k}.txt": "\n".join(v) + "\n" for k, v in lists.items()}


def test_official_layout(made):
    files = voc("abcd", {"train": "a", "val": "b", "trainval": "ab", "test": "cd", "car_train": ["a -1", "b 1"]})
    files["VOCdevkit/VOC2007/SegmentationClass/a.png"] = b""
    result = made(files | {"VOCdevkit/VOC2007/Annotations/b.xml": SHIP})
    assert (result.kind, result.names) == ("voc", ["car", "ship"])
    assert splits(result) == {"train": ["a"], "val": ["b"], "test": ["c", "d"]}
    assert result.yaml == {"train": ["train"], "val": ["val"], "test": ["test"]}
    assert result.problems == {}
    assert [job.image.path.name for job in result.jobs] == ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]
    objects = result.jobs[1].read()
    assert objects.classes.tolist() == [1, 0] and objects.size == (40, 30)
    assert objects.corners[1].tolist() == [[2, 2], [9, 2], [9, 9], [2, 9]]


@pytest.mark.parametrize(
    "lists, expected",
    [
        ({"trainval": "abc", "test": "d"}, {"train": ["a", "b", "c"], "test": ["d"]}),
        ({"trainval": "abc", "train": "ab", "test": "d"}, {"train": ["a", "b"], "val": ["c"], "test": ["d"]}),
        ({"trainval": "abc", "val": "ab", "test": "d"}, {"train": ["c"], "val": ["a", "b"], "test": ["d"]}),
        ({"train": ["a.jpg", "JPEGImages/b.jpg", "c"], "val": "d"}, {"train": ["a", "b", "c"], "val": ["d"]}),
        ({"train": ["a  1", "b.jpg -1", "c\t0"], "val": ["d  1"]}, {"train": ["a", "b", "c"], "val": ["d"]}),
    ],
)
def test_lists(made, lists, expected):
    result = made(voc("abcd", lists))
    assert splits(result) == expected and result.problems == {}


def test_a_number_at_the_end_of_a_name_is_no_column(made):
    result = made(voc(["scene", "scene 0", "scene 1"], {"train": ["scene 0", "scene 1 -1"], "val": ["scene 1"]}))
    assert splits(result) == {"train": ["scene 0", "scene 1"], "val": ["scene 1"]}


def test_lists_of_two_years_name_their_own_images(made):
    files = voc("ab", {"train": "a", "val": "b"}) | voc("ac", {"train": "c", "val": "a"}, "VOCdevkit/VOC2012")
    places = {(job.split, str(job.image.path.parent)[10:17], job.stem) for job in made(files).jobs}
    assert places == {
        ("train", "VOC2007", "a"),
        ("val", "VOC2007", "b"),
        ("train", "VOC2012", "c"),
        ("val", "VOC2012", "a"),
    }


def test_lists_beside_the_images_folder(made):
    files = {"lists/ImageSets/Main/train.txt": "x\n", "lists/ImageSets/Main/val.txt": "y.0\n"}
    files |= {"pictures/x.png": b"", "pictures/y.0.png": b"", "boxes/x.xml": CAR, "boxes/y.0.xml": SHIP}
    result = made(files)
    assert splits(result) == {"train": ["x"], "val": ["y.0"]} and result.problems == {}
    assert len(result.jobs[1].read()) == 2


def test_folders_of_splits(made):
    files = {f"{s}/1.{e}": CAR if e == "xml" else b"" for s in ("train", "valid", "test") for e in ("jpg", "xml")}
    result = made(files | {"train/1.xml": SHIP, "more/2.jpg": b"", "more/2.xml": CAR})
    assert splits(result) == {"train": ["1"], "val": ["1"], "test": ["1"]}
    assert [len(job.read()) for job in result.jobs] == [1, 2, 1]
    assert result.problems == {"in no split's folder": ["more/2.jpg"]}


def test_an_annotation_of_another_split_is_not_borrowed(made):
    result = made({"train/1.jpg": b"", "valid/1.xml": CAR, "valid/2.jpg": b"", "valid/2.xml": CAR})
    assert splits(result) == {"val": ["2"]}
    assert result.problems == {"image without annotation": ["train/1.jpg"], "annotation without image": ["valid/1.xml"]}


def test_without_lists_and_folders_all_is_for_training(made):
    result = made({"my test data/a b.jpg": b"", "my test data/a b.xml": CAR})
    assert splits(result) == {"train": ["a b"]}
    assert result.yaml == {"train": ["train"], "val": ["train"]}


def test_validation_falls_to_the_annotated_test_split(made):
    assert made(voc("ab", {"trainval": "a", "test": "b"})).yaml["val"] == ["test"]


def test_problems_of_files_and_lists(made):
    files = voc("abcdef", {"train": "abx", "val": "bc", "test": "e"})
    files = {name: content for name, content in files.items() if not name.endswith(("Annotations/c.xml", "/d.jpg"))}
    files["VOCdevkit/VOC2007/JPEGImages/e.png"] = b""
    result, at = made(files), "VOCdevkit/VOC2007"
    assert splits(result) == {"train": ["a", "b"], "val": ["b"], "test": ["e"]}
    assert result.problems == {
        "annotation without image": [f"{at}/Annotations/d.xml"],
        "image without annotation": [f"{at}/JPEGImages/c.jpg"],
        "listed but missing": ["train: x"],
        "in two split lists": [f"{at}/JPEGImages/b.jpg"],
        "in no split list": [f"{at}/JPEGImages/f.jpg"],
        "duplicate name": [f"test: {at}/JPEGImages/e.png"],
    }


def test_second_annotation(made):
    result = made({"images/a.jpg": b"", "labels/a.xml": CAR, "xml/a.xml": SHIP})
    assert result.problems == {"second annotation of an image": ["xml/a.xml"]}
    assert len(result.jobs[0].read()) == 1


@pytest.mark.parametrize("annotated", [False, True])
def test_a_test_split_without_any_annotation_stays(made, annotated):
    files = voc("abc", {"train": "a", "test": "bc"})
    missing = ("Annotations/b.xml",) if annotated else ("Annotations/b.xml", "Annotations/c.xml")
    result = made({name: content for name, content in files.items() if not name.endswith(missing)})
    if annotated:
        assert splits(result)["test"] == ["c"] and len(result.problems["image without annotation"]) == 1
    else:
        assert splits(result)["test"] == ["b", "c"] and result.problems == {}
        assert [job.read is None for job in result.jobs] == [False, True, True]
        assert result.yaml["val"] == ["train"]


@pytest.mark.parametrize("names", [None, ["car"]])
def test_a_broken_annotation_is_the_images_own(made, names):
    result = made({"a.jpg": b"", "a.xml": CAR[:60], "b.jpg": b"", "b.xml": CAR, "c.jpg": b"", "c.xml": "<x/>"}, names)
    assert result.names == ["car"] and len(result.jobs[1].read()) == 1
    for job in (result.jobs[0], result.jobs[2]):
        for _ in range(2):
            with pytest.raises(ValueError, match="XML file"):
                job.read()


def test_given_names(made):
    result = made({"a.jpg": b"", "a.xml": SHIP}, ["tank", "car"])
    objects = result.jobs[0].read()
    assert result.names == ["tank", "car"]
    assert objects.classes.tolist() == [1] and objects.problems == {"unknown class 'ship'": 1}
    assert result.problems == {"class that no annotation names": ["tank"]}
    with pytest.raises(UserError, match=r"there is no class '\[ship'; the annotations have car, ship$"):
        made({}, ["[ship", "car]"])
    empty = made({"a.xml": xml()}, ["car"])  # nothing there to be mistaken for
    assert len(empty.jobs) == 1 and empty.problems == {"class that no annotation names": ["car"]}


def test_an_unreadable_annotation_is_the_images_own(made, tmp_path):
    """Damaged in its zip file; one that is gone is no matter of this image."""
    write(tmp_path / "xml" / "a.xml", CAR)
    path = zipped(tmp_path / "xml")
    result, content = made({"a.jpg": b""}, ["car"]), path.read_bytes()
    path.write_bytes(content.replace(b"car", b"cat"))
    sources._open.__dict__.clear()  # opened while it was planned
    with pytest.raises(ValueError, match="cannot be read"):
        result.jobs[0].read()
    gone = made({"b.jpg": b"", "b.xml": CAR}, ["car"])
    (tmp_path / "b.xml").unlink()
    with pytest.raises(UserError, match="b.xml' cannot be read: No such file"):
        next(job for job in gone.jobs if job.stem == "b").read()


def test_what_is_returned_can_be_changed(made):
    job = made({"a.jpg": b"", "a.xml": xml(("car", 1, 1, 5, 5), ("car", "<bndbox/>"))}).jobs[0]
    job.read().problems.clear()
    assert job.read().problems == {"box without numbers": 1}


def test_origin_one_counts_both_ends_as_inside(made):
    objects = made({"a.jpg": b"", "a.xml": CAR}, origin=1).jobs[0].read()
    assert objects.corners[0].tolist() == [[2, 3], [13, 3], [13, 24], [2, 24]]


ROBN = turned(cx=20, cy=10, w=8, h=4, angle=np.pi / 2)


def test_rotated_boxes_of_both_forms(made):
    places = ("left_top", "right_top", "right_bottom", "left_bottom")
    corners = [(1, 2), (5, 3), (4, 7), (0, 6)]
    edges = {f"{a}_{p}": v for p, c in zip(places, corners, strict=True) for a, v in zip("xy", c, strict=True)}
    text = xml(("car", turned(**edges)), ("car", ROBN), ("car", 3, 4, 13, 24), ("car", turned(cx=1)))
    objects = made({"a.jpg": b"", "a.xml": text}, boxes="rotated", origin=1).jobs[0].read()
    assert objects.corners[0].tolist() == [list(c) for c in corners]
    np.testing.assert_allclose(objects.corners[1], [(22, 6), (22, 14), (18, 14), (18, 6)], atol=1e-9)
    assert objects.corners[2].tolist() == [[2, 3], [13, 3], [13, 24], [2, 24]]
    assert objects.problems == {"box without numbers": 1}


def test_a_rotated_box_alone_gives_the_upright_one_around_it(made):
    objects = made({"a.jpg": b"", "a.xml": xml(("car", ROBN))}).jobs[0].read()
    np.testing.assert_allclose(objects.corners[0], [(18, 6), (22, 6), (22, 14), (18, 14)], atol=1e-9)


@pytest.mark.parametrize(
    "files, kwargs, said",
    [
        ({"a.jpg": b""}, {}, "no XML annotations"),
        ({"a.xml": CAR, "b.tif.aux.xml": CAR}, {}, "no images"),
        ({"a.jpg": b"", "a.xml": xml()}, {}, "class"),
        ({"a.jpg": b"", "a.xml": CAR}, {"boxes": "round"}, "round"),
        ({"a.jpg": b"", "a.xml": CAR}, {"origin": 2}, "origin 2"),
        ({"a.jpg": b"", "a.xml": CAR}, {"names": ["car", "car"]}, "twice"),
    ],
)
def test_mistakes(made, files, kwargs, said):
    with pytest.raises(UserError, match=said):
        made(files, **kwargs)


EDGE = st.floats(0, 5000, allow_nan=False)


NAME = st.sampled_from(["b", "a", "ü ß", "c&d"])


@settings(max_examples=25)
@given(st.lists(st.tuples(NAME, EDGE, EDGE, EDGE, EDGE), min_size=1, max_size=10))
def test_boxes_come_back(tmp_path_factory, rows):
    text = xml(*((name.replace("&", "&amp;"), *box) for name, *box in rows))
    root = write_files(tmp_path_factory.mktemp("voc"), {"a.jpg": b"", "a.xml": text})
    result = plan(Source(root))
    objects = result.jobs[0].read()
    assert result.names == sorted({name for name, *_ in rows})
    read = [(result.names[k], *c[0], *c[2]) for k, c in zip(objects.classes, objects.corners.tolist(), strict=True)]
    assert read == rows and objects.problems == {}


def test_annotations_and_images_that_compete_are_named(made):
    """As in DIOR, where two folders hold an annotation for every image."""
    result = made({"JPEGImages/1.jpg": b"", "Upright Boxes/1.xml": CAR, "Turned Boxes/1.xml": CAR})
    assert result.jobs == []
    assert result.problems == {
        "annotations and images of one name, and no folders that pair them": [
            "Turned Boxes/1.xml",
            "Upright Boxes/1.xml",
        ],
        "image without annotation": ["JPEGImages/1.jpg"],
    }
    result = made({"a/2.jpg": b"", "b/2.jpg": b"", "c/2.xml": CAR, "d/3.xml": CAR}, names=["car"])
    assert result.problems["annotations and images of one name, and no folders that pair them"][-1] == "c/2.xml"
    assert result.problems["annotation without image"] == ["d/3.xml"]
