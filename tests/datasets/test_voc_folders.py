"""Frames of one name in different folders, as video sets have them."""

import pytest

from ds2d2_yolo.datasets.source import Source
from ds2d2_yolo.datasets.voc import plan
from tests.datasets.test_voc import CAR, SHIP, made, splits, voc, write_files, xml  # noqa: F401  a fixture among them

SEQUENCES, FRAMES = ("seqA", "seqB", "seqC"), ("0001", "0002")
TANK = xml(("tank", 1, 1, 5, 5))


def frames(lists=(), root=""):
    """Two frames a sequence; their annotations differ by sequence."""
    files = {}
    for sequence, note in zip(SEQUENCES, (CAR, SHIP, TANK), strict=True):
        for frame in FRAMES:
            files[f"{root}JPEGImages/{sequence}/{frame}.jpg"] = b""
            files[f"{root}Annotations/{sequence}/{frame}.xml"] = note
    return files | {f"{root}ImageSets/Main/{kind}.txt": "\n".join(lines) for kind, lines in dict(lists).items()}


def lines(*sequences, form="{}/{}"):
    return [form.format(sequence, frame) for sequence in sequences for frame in FRAMES]


def sequences(result):
    """Where the images of each split lie, and whether each has the annotation of its folder."""
    kinds = {"seqA": ["car"], "seqB": ["ship", "car"], "seqC": ["tank"]}
    assert all([result.names[k] for k in job.read().classes] == kinds[job.image.path.parts[-2]] for job in result.jobs)
    found = {}
    for job in result.jobs:
        found.setdefault(job.split, []).append("/".join(job.image.path.with_suffix("").parts[-2:]))
    return found


@pytest.mark.parametrize("form", ["{}/{}", "{}/{}.jpg", "JPEGImages/{}/{}.jpg", "/data/VOC/JPEGImages\\{}\\{}.jpg"])
@pytest.mark.parametrize("root", ["", "VOCdevkit/VOC2007/"])
def test_lists_choose_by_folders(made, form, root):  # noqa: F811
    lists = {"train": lines("seqA", "seqB", form=form), "val": lines("seqC", form=form)}
    result = made(frames(lists, root))
    assert sequences(result) == {"train": lines("seqA", "seqB"), "val": lines("seqC")}
    prefix = "_".join([*root.split("/")[:-1], "JPEGImages", "seqB"])
    assert splits(result) == {"train": [*FRAMES, f"{prefix}_0001", f"{prefix}_0002"], "val": [*FRAMES]}
    assert result.problems == {}


def test_without_lists_all_are_taken(made):  # noqa: F811
    files = frames() | {"JPEGImages/seqB/0002.png": b""}
    result = made(files)
    assert sequences(result) == {"train": lines(*SEQUENCES)}
    assert len(set(splits(result)["train"])) == 6
    assert result.problems == {"duplicate name": ["train: JPEGImages/seqB/0002.png"]}


def test_of_trainval_comes_what_val_lacks_by_folders(made):  # noqa: F811
    lists = {"trainval": lines(*SEQUENCES), "val": lines("seqC", form="JPEGImages/{}/{}.jpg")}
    assert sequences(made(frames(lists))) == {"train": lines("seqA", "seqB"), "val": lines("seqC")}


def test_a_folder_that_is_not_there_is_no_other(made):  # noqa: F811
    result = made(frames({"train": lines("seqA", "seqB"), "val": ["seqC/0001", "seqD/0001", "seqC/0003"]}))
    assert sequences(result) == {"train": lines("seqA", "seqB"), "val": ["seqC/0001"]}
    assert result.problems == {
        "more than one image of this name": ["val: seqD/0001"],
        "listed but missing": ["val: seqC/0003"],
        "in no split list": ["JPEGImages/seqC/0002.jpg"],
    }


def test_a_line_without_folders_means_all_of_its_name(made):  # noqa: F811
    result = made(frames({"train": ["0001"], "val": ["0002"]}))
    assert sequences(result) == {"train": [f"{s}/0001" for s in SEQUENCES], "val": [f"{s}/0002" for s in SEQUENCES]}


def test_other_pictures_of_a_name_are_not_meant(made):  # noqa: F811
    files = {"images/a.jpg": b"", "xml/a.xml": CAR, "images/b.jpg": b"", "depth/b.png": b""}
    result = made(files | {"ImageSets/train.txt": "a\n.\n\n", "ImageSets/test.txt": "b\n"})
    assert splits(result) == {"train": ["a"], "test": ["b"]}
    assert result.problems == {"in no split list": ["depth/b.png"]}


@pytest.mark.parametrize("encoding", ["gb2312", "GBK", "big5", "shift_jis", "euc-kr", "iso-8859-1", "utf-8", "UTF-16"])
def test_any_encoding_that_python_knows_is_read(made, encoding):  # noqa: F811
    name = {"iso-8859-1": "é", "shift_jis": "船", "euc-kr": "한"}.get(encoding, "中")
    text = f'<?xml version="1.0" encoding="{encoding}" ?>\n' + xml((name, 3, 4, 13, 24))
    result = made({"a.jpg": b"", "a.xml": text.encode(encoding)})
    assert result.names == [name] and result.jobs[0].read().corners[0, 2].tolist() == [13, 24]


def test_an_encoding_that_is_another_is_no_whole_file(made):  # noqa: F811
    text = '<?xml version="1.0" encoding="gb2312"?>' + xml(("中", 3, 4, 13, 24))
    job = made({"a.jpg": b"", "a.xml": text.encode("utf-8") + b"\xff", "b.jpg": b"", "b.xml": CAR}).jobs[0]
    with pytest.raises(ValueError, match="no whole XML file"):
        job.read()


@pytest.mark.parametrize("inside", [True, False])
def test_two_years_link_to_one_folder_of_images(tmp_path, inside):
    """Each has annotations and lists of its own images alone."""
    shared = tmp_path / ("set/images" if inside else "elsewhere")
    write_files(shared, {f"{stem}.jpg": b"" for stem in "abcd"})
    for year, stems in (("VOC2007", "ab"), ("VOC2012", "cd")):
        files = voc(stems, dict(zip(("train", "val"), stems, strict=True)), year)
        write_files(tmp_path / "set", {name: text for name, text in files.items() if not name.endswith(".jpg")})
        (tmp_path / "set" / year / "JPEGImages").symlink_to(shared)
    result = plan(Source(tmp_path / "set"))
    assert splits(result) == {"train": ["a", "c"], "val": ["b", "d"]} and all(job.read for job in result.jobs)
