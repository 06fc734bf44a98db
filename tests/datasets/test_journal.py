"""A conversion that is begun again: after an interruption, with a source that is gone, mended or another."""

import json
import os
from concurrent.futures import Future

import pytest

from ds2d2_yolo.datasets import convert as converting
from ds2d2_yolo.datasets import dior, one_image, voc
from ds2d2_yolo.datasets import source as sources
from ds2d2_yolo.datasets.convert import convert
from ds2d2_yolo.datasets.journal import JOURNAL
from ds2d2_yolo.datasets.one_image import Options
from ds2d2_yolo.datasets.source import Source
from ds2d2_yolo.datasets.tiles import Tiling
from ds2d2_yolo.errors import UserError
from tests.datasets.downloads import dior_folder, picture, tree, write, xml, zipped


class AtOnce:
    """In place of the threads: what is handed in is done before the next."""

    def __init__(self, workers):
        pass

    def submit(self, function, *args):
        future = Future()
        try:
            future.set_result(function(*args))
        except Exception as error:
            future.set_exception(error)
        return future

    def shutdown(self, **how):
        pass


@pytest.fixture
def root(tmp_path):
    return dior_folder(tmp_path / "down loads" / "DIOR")


def run(root, dest, workers=2, **options):
    source = Source(root)
    return convert(dior.plan(source), dest, Options(**options), source.root, workers)


def test_an_interrupted_conversion_goes_on(root, tmp_path, monkeypatch):
    whole, dest = tmp_path / "whole", tmp_path / "out"
    run(root, whole)
    seen = []

    def once(job, *more):
        seen.append(job.stem)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return one_image.convert_one(job, *more)

    monkeypatch.setattr(converting, "convert_one", once)
    with pytest.raises(KeyboardInterrupt, match="the same command goes on from here"):
        run(root, dest, workers=1)
    assert not (dest / "data.yaml").exists()
    with open(dest / JOURNAL, "a") as stream:
        stream.write('{"split": "train", "im')  # the power went out
    finished = len((dest / JOURNAL).read_text().splitlines()) - 2
    before = len(seen)
    run(root, dest)
    assert 2 <= finished < 4 and len(seen) - before == 4 - finished  # the last may have been under way
    ours, theirs = tree(dest), tree(whole)
    assert sorted(ours.pop(JOURNAL).splitlines()) == sorted(theirs.pop(JOURNAL).splitlines())
    assert ours == theirs


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("part", ["JPEGImages-trainval", "Annotations"])
def test_a_source_that_is_gone_stops_and_the_same_command_goes_on(root, tmp_path, monkeypatch, part, packed):
    """A disk that was unplugged says nothing about the images on it."""
    lost = zipped(root / part) if packed else root / part
    seen = []

    def unplugged(job, *more):
        seen.append(job.stem)
        if len(seen) == 2:
            lost.rename(tmp_path / "elsewhere")
            vars(sources._open).pop("archives", None)  # a file that is open could still be read
        return one_image.convert_one(job, *more)

    monkeypatch.setattr(converting, "ThreadPoolExecutor", AtOnce)
    monkeypatch.setattr(converting, "convert_one", unplugged)
    with pytest.raises(UserError, match="cannot be read: No such file or directory; the same command goes on from"):
        run(root, tmp_path / "out")
    header, *records = map(json.loads, (tmp_path / "out" / JOURNAL).read_text().splitlines())
    assert "00001" in [record["image"] for record in records] and not any("skipped" in record for record in records)
    monkeypatch.undo()
    (tmp_path / "elsewhere").rename(lost)
    assert run(root, tmp_path / "out").splits["images"].tolist() == [2, 1, 1]


def test_what_was_left_out_is_tried_again(root, tmp_path, monkeypatch):
    """Images of a Git repository before its large files are fetched, one damaged for good."""
    images = {path: path.read_bytes() for path in sorted(root.glob("JPEGImages-trainval/*.jpg"))}
    for path in images:
        path.write_text("version https://git-lfs.github.com/spec/v1\n")
    assert run(root, tmp_path / "out").splits["images"].tolist() == [0, 0, 1]
    (damaged, _), *others = images.items()
    for path, content in others:
        path.write_bytes(content)
    again = run(root, tmp_path / "out")
    assert again.splits["images"].tolist() == [1, 1, 1]
    assert {r: n for _, (r, n, _) in again.problems.iterrows() if "official" not in r} == {"unreadable image": 1}
    assert len((tmp_path / "out" / JOURNAL).read_text().splitlines()) == 1 + 4
    seen = []
    monkeypatch.setattr(
        converting, "convert_one", lambda job, *more: seen.append(job.stem) or one_image.convert_one(job, *more)
    )
    run(root, tmp_path / "out")
    assert seen == [damaged.stem]


def test_a_finished_one_is_not_done_again(root, tmp_path, monkeypatch, capsys):
    first = run(root, tmp_path / "out")
    monkeypatch.setattr(converting, "convert_one", None)
    capsys.readouterr()
    assert str(run(root, tmp_path / "out")) == str(first)
    assert "all images are in" in capsys.readouterr().out


def test_the_journal_is_plain_json(root, tmp_path):
    run(root, tmp_path / "out")
    header, *records = map(json.loads, (tmp_path / "out" / JOURNAL).read_text().splitlines())
    assert header["kind"] == "DIOR" and len(records) == 4


def without_states(dest):
    """The journal as earlier versions wrote it."""
    journal = dest / JOURNAL
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    assert all(line.pop("state") and line.pop("stamp") for line in lines[1:])
    journal.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize(
    "lists, said",
    [
        ({"train": "00002", "val": "00001\n00003"}, "train/00001 is in val now, one of 1 such images"),
        ({"train": "00002", "val": ""}, "train/00001 is not to be converted any more, one of 2 such images"),
    ],
)
def test_other_lists_are_not_mixed_in(root, tmp_path, lists, said, old):
    """An image would be in both splits."""
    dest = tmp_path / "out"
    run(root, dest)
    if old:
        without_states(dest)
    before = tree(dest)
    for split, text in lists.items():
        write(root / f"ImageSets/Main/{split}.txt", text)
    who = f"'{dest}' was begun by an earlier version, or the source" if old else "the source"
    with pytest.raises(UserError, match=f"^{who} has changed: {said}; give another DEST, or delete '{dest}'"):
        run(root, dest)
    assert tree(dest) == before


def test_spaces_around_class_names_that_earlier_versions_kept_are_no_others(root, tmp_path, capsys):
    run(root, tmp_path / "out")
    journal = tmp_path / "out" / JOURNAL
    header, *lines = journal.read_text().splitlines()
    header = json.loads(header)
    header["names"][0] += " "
    journal.write_text("\n".join([json.dumps(header), *lines]) + "\n")
    run(root, tmp_path / "out")
    assert "already" in capsys.readouterr().out
    journal.write_text("\n".join([json.dumps(header | {"names": ["other"]}), *lines]) + "\n")
    with pytest.raises(UserError, match="a conversion with another names; give another DEST"):
        run(root, tmp_path / "out")


@pytest.mark.parametrize("text", [xml([("ship", 1, 2, 11, 23)]), "<annotation>"])
def test_another_annotation_is_not_ignored(root, tmp_path, text):
    dest, note = tmp_path / "out", root / "Annotations" / dior.FOLDERS["horizontal"] / "00001.xml"
    run(root, dest)
    before = tree(dest)
    os.utime(note, (0, 0))  # copied anew, say
    run(root, dest)
    write(note, text)
    with pytest.raises(UserError, match=r"annotation of train/00001 is another now, one of 1; give another DEST"):
        run(root, dest)
    assert tree(dest) == before
    without_states(dest)
    run(root, dest)  # which cannot tell
    assert (dest / "labels/train/00001.txt").read_bytes() == before["labels/train/00001.txt"]


@pytest.mark.parametrize(
    "options", [{"difficult": False, "tiling": Tiling(64, 0)}, {"tiling": Tiling(64, 0, empty=0.5)}]
)
def test_what_meant_something_else_is_not_gone_on_with(root, tmp_path, options):
    dest = tmp_path / "out"
    run(root, dest, **options)
    run(root, dest, **options)
    without_states(dest)
    with pytest.raises(
        UserError, match=f"'{dest}' was begun by an earlier version, .*; give another DEST, or delete it"
    ):
        run(root, dest, **options)


def test_images_that_are_new_are_added(root, tmp_path):
    write(root / "ImageSets/Main/train.txt", "00001\n")
    assert run(root, tmp_path / "out").splits["images"].tolist() == [1, 1, 1]
    write(root / "ImageSets/Main/train.txt", "00001\n00002\n")
    assert run(root, tmp_path / "out").splits["images"].tolist() == [2, 1, 1]


@pytest.mark.parametrize("number", [1, 3])
@pytest.mark.parametrize("line", [b'{"split": "train", "im', b'{"image": "\xff"}', b"[]", b"null", b"\0" * 40, b""])
def test_a_damaged_journal_is_one_line(root, tmp_path, line, number):
    dest = tmp_path / "out"
    run(root, dest)
    lines = (dest / JOURNAL).read_bytes().splitlines()
    lines[number - 1] = line
    (dest / JOURNAL).write_bytes(b"\n".join(lines) + b"\n")
    with pytest.raises(UserError, match=rf"{JOURNAL}' is damaged in line {number}; delete '{dest}', or give another"):
        run(root, dest)


@pytest.mark.parametrize("tiling", [None, Tiling(32, 0)])
def test_what_is_not_there_any_more_is_made_again(root, tmp_path, tiling):
    dest = tmp_path / "out"
    run(root, dest, tiling=tiling)
    before = tree(dest)
    next((dest / "images/train").iterdir()).unlink()
    next((dest / "labels/val").iterdir()).unlink()
    for path in (dest / "images/test").iterdir():
        path.unlink()
    (dest / "images/test").rmdir()
    run(root, dest, tiling=tiling)
    after = tree(dest)
    assert {k: v for k, v in after.items() if k != JOURNAL} == {k: v for k, v in before.items() if k != JOURNAL}
    assert sorted(after[JOURNAL].splitlines()) == sorted(before[JOURNAL].splitlines())


def test_links_to_a_source_that_was_put_elsewhere_are_made_again(root, tmp_path):
    dest, image = tmp_path / "out", root / "JPEGImages-trainval/00001.jpg"
    run(root, dest)
    (root / "more").mkdir()
    image.rename(root / "more/00001.jpg")
    assert not (dest / "images/train/00001.jpg").exists()
    run(root, dest)
    assert (dest / "images/train/00001.jpg").resolve() == (root / "more/00001.jpg").resolve()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("tiling", [None, Tiling(32, 0)])
def test_a_name_too_long_is_left_out_by_name_and_nothing_else(tmp_path, packed, tiling):
    longest, root, dest = "a" * 251, tmp_path / "in", tmp_path / "out"
    for name in (longest, "b"):
        picture(root / f"{name}.png")
        write(root / f"{name}.xml", xml([("ship", 1, 2, 11, 22)]))
    if packed:
        zipped(root)
    source = Source(tmp_path)
    census = convert(voc.plan(source), dest, Options(tiling=tiling), tmp_path / "none")
    assert census.splits["images"].tolist() == [1 if tiling else 2]
    made = {path.name.partition("__")[0].removesuffix(".png") for path in (dest / "images/train").iterdir()}
    assert made == ({"b"} if tiling else {longest, "b"})
    assert ("file name too long" in (dest / "problems.csv").read_text()) == bool(tiling)


def test_a_name_too_long_for_its_last_tile_has_none(tmp_path):
    longest = "a" * (255 - len("__1__0___0.png"))  # too long for __1__32___0
    picture(tmp_path / "in" / f"{longest}.png")
    picture(tmp_path / "in/b.png")
    for name in (longest, "b"):
        write(tmp_path / f"in/{name}.xml", xml([("ship", 1, 2, 11, 22)]))
    source = Source(tmp_path / "in")
    convert(voc.plan(source), tmp_path / "out", Options(tiling=Tiling(32, 0)), source.root)
    made = {
        path.name.partition("__")[0]
        for kind in ("images", "labels")
        for path in (tmp_path / "out" / kind / "train").iterdir()
    }
    assert made == {"b"}
