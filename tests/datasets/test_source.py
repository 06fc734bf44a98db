"""Folders and zip files as one tree that is only read."""

import os
import unicodedata
import zipfile
from pathlib import PurePosixPath

import numpy as np
import pytest

from ds2d2_yolo.datasets.source import Source
from ds2d2_yolo.errors import UserError
from tests.datasets.downloads import picture, tree, write, zipped


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "a source with spaces"
    picture(folder / "images" / "one.jpg")
    picture(folder / "more" / "two.PNG")
    write(folder / "labels" / "one.txt", "text")
    write(folder / ".hidden" / "x.txt", "")
    write(folder / "__MACOSX" / "y.txt", "")
    return folder


def names(source):
    return [str(f.path) for f in source.files]


def test_all_files_are_found_in_order(root):
    source = Source(root)
    assert names(source) == ["images/one.jpg", "labels/one.txt", "more/two.PNG"]
    assert [f.path.name for f in source.images] == ["one.jpg", "two.PNG"]
    assert source.files[1].read() == b"text"
    assert source.files[1].under("LABELS") and not source.files[1].under("one.txt", "images")


def test_zip_files_are_read_as_folders(root):
    content = tree(root / "more")
    zipped(root / "more")
    source = Source(root)
    assert names(source) == ["images/one.jpg", "labels/one.txt", "more/two.PNG"]
    assert source.files[2].read() == content["two.PNG"]
    assert source.files[2].size == len(content["two.PNG"])
    assert str(source.files[2]) == f"{root / 'more.zip'}/more/two.PNG"
    alone = Source(root / "more.zip")
    assert names(alone) == ["more/two.PNG"]


def test_names_in_zip_files_made_on_linux(tmp_path):
    """They are UTF-8, and do not say so; names of old are of code page 437."""

    class Unsaid(zipfile.ZipInfo):
        def _encodeFilenameFlags(self):  # noqa: N802
            return self.raw, self.flag_bits & ~0x800

    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        for raw in ("Größe_北京.txt".encode(), "Größe.txt".encode("cp437")):
            member = Unsaid("a")
            member.raw = raw
            archive.writestr(member, raw)
        archive.writestr("plain.txt", b"plain")
    source = Source(tmp_path / "in.zip")
    assert sorted(names(source)) == ["Größe.txt", "Größe_北京.txt", "plain.txt"]
    assert {str(f.path): f.read() for f in source.files}["Größe_北京.txt"] == "Größe_北京.txt".encode()


def test_many_zip_files_do_not_take_all_file_handles(tmp_path):
    for i in range(30):
        write(tmp_path / f"part{i}" / "a.txt", str(i))
        zipped(tmp_path / f"part{i}")
    source, before = Source(tmp_path), len(os.listdir("/proc/self/fd"))
    assert sorted(int(file.read()) for file in source.files * 2) == sorted([*range(30)] * 2)
    assert len(os.listdir("/proc/self/fd")) - before <= 8


@pytest.mark.parametrize("packed", [False, True])
def test_a_file_that_is_gone_is_told_from_one_that_is_damaged(tmp_path, packed):
    write(tmp_path / "in" / "a.txt", "a" * 100)
    path = zipped(tmp_path / "in") if packed else tmp_path / "in" / "a.txt"
    file, content = Source(tmp_path).files[0], path.read_bytes()
    path.unlink()
    with pytest.raises(UserError, match=rf"'{path}' cannot be read: No such file or directory; the same command"):
        file.read()
    if packed:
        path.write_bytes(content.replace(b"a" * 100, b"b" * 100))
        with pytest.raises(OSError, match="damaged in the zip file"):
            file.read()


def test_what_was_unpacked_beside_its_zip_file_is_there_once(root):
    with zipfile.ZipFile(root / "images.zip", "w") as archive:
        archive.write(root / "images" / "one.jpg", "images/one.jpg")
        archive.writestr("images/three.txt", "3")
    assert names(Source(root)) == ["images/one.jpg", "images/three.txt", "labels/one.txt", "more/two.PNG"]
    assert Source(root).files[0].member is None


@pytest.mark.parametrize("name", ["images", "Zu\u0308rich"])  # macOS takes the accent off the letter
def test_unpacked_into_a_folder_of_the_zip_files_name(root, name):
    (root / "images").rename(root / name)
    with zipfile.ZipFile(root / f"{name}.zip", "w") as archive:
        archive.write(root / name / "one.jpg", "one.jpg")
    place = unicodedata.normalize("NFC", name)
    assert names(Source(root)) == sorted([f"{place}/one.jpg", "labels/one.txt", "more/two.PNG"])


def test_files_of_one_name_and_size_in_other_folders_are_others(root):
    write(root / "labels-v2" / "one.txt", "TEXT")
    zipped(root / "labels-v2")
    found = {str(f.path): f.read() for f in Source(root).files if f.path.name == "one.txt"}
    assert found == {"labels/one.txt": b"text", "labels-v2/one.txt": b"TEXT"}


@pytest.mark.parametrize("packed", [False, True])
def test_placing_keeps_the_content_and_the_source(root, tmp_path, packed):
    expected = (root / "more" / "two.PNG").read_bytes()
    if packed:
        zipped(root / "more")
    before, target = tree(root), tmp_path / "placed.png"
    target.write_text("old")
    Source(root).files[2].place(target)
    assert target.read_bytes() == expected
    assert target.is_symlink() != packed
    assert tree(root) == before


def test_without_links_it_is_copied(root, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("no links here")

    monkeypatch.setattr(os, "symlink", refuse)
    monkeypatch.setattr(os, "link", refuse)
    target = tmp_path / "placed.png"
    Source(root).files[2].place(target)
    assert not target.is_symlink() and target.read_bytes() == (root / "more" / "two.PNG").read_bytes()
    assert set(os.listdir(tmp_path)) == {root.name, "placed.png"}


def test_a_link_in_the_source_is_followed(root, tmp_path):
    (root / "linked").symlink_to(tmp_path / "else")
    write(tmp_path / "else" / "z.txt", "z")
    assert PurePosixPath("linked/z.txt") in [f.path for f in Source(root).files]


def test_links_that_lead_round_end(root):
    (root / "images/self").symlink_to(".")
    (root / "images/up").symlink_to("..")
    (root / "more/there").symlink_to("../images")
    (root / "images/back").symlink_to("../more")
    assert names(Source(root)) == [
        *("images/back/two.PNG", "images/one.jpg", "labels/one.txt", "more/there/one.jpg", "more/two.PNG")
    ]


@pytest.mark.parametrize("outside", [False, True])
def test_a_folder_is_everywhere_that_links_have_it(root, tmp_path, outside):
    """Each place may have annotations of its own for its images."""
    folder = tmp_path / "else" if outside else root / "images"
    if outside:
        (root / "images").rename(folder)
    for link in ("a link", "b link", "more/c link"):
        (root / link).symlink_to(folder)
    own = [] if outside else ["images/one.jpg"]
    linked = [f"{link}/one.jpg" for link in ("a link", "b link", "more/c link")]
    assert names(Source(root)) == sorted([*own, *linked, "labels/one.txt", "more/two.PNG"])


def test_what_cannot_be_read_is_named(tmp_path, root):
    with pytest.raises(UserError, match="nowhere' does not exist"):
        Source(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no files"):
        Source(tmp_path / "empty")
    data = zipped(root / "more").read_bytes()
    (root / "more.zip").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=r"more.zip' is no whole zip file \(a download cut short\?\)"):
        Source(root)


def test_zip_files_in_a_zip_file_are_refused(root):
    """They would be passed over, and all images with them; beside images they may be anything."""
    zipped(root / "more")
    beside = zipped(root)
    assert [name for name in names(Source(beside)) if "more" in name] == []
    assert any(name.endswith("images/one.jpg") for name in names(Source(beside)))
    with zipfile.ZipFile(beside) as archive:
        inside = {name: archive.read(name) for name in archive.namelist() if not name.endswith(".jpg")}
    packed = beside.with_name("packed.zip")
    with zipfile.ZipFile(packed, "w") as archive:
        for name, data in inside.items():
            archive.writestr(name, data)
    beside.unlink()
    with pytest.raises(UserError, match=rf"^'{packed}' holds zip files itself \('.*/more.zip'\); unpack it once"):
        Source(packed.parent)


def test_damage_inside_a_zip_file_is_an_os_error(root):
    path = zipped(root / "more")
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 40] = bytes(40)
    path.write_bytes(data)
    with pytest.raises(OSError, match="damaged in the zip file"):
        Source(root).files[2].read()


@pytest.mark.parametrize("how", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_whatever_the_unpacker_says_of_damage_is_one(tmp_path, how):
    content = np.random.default_rng(0).integers(0, 4, 4000, np.uint8).tobytes()
    with zipfile.ZipFile(tmp_path / "a.zip", "w", how) as archive:
        archive.writestr("a.png", content)
    whole = (tmp_path / "a.zip").read_bytes()
    for place in range(40, 400, 7):
        data = bytearray(whole)
        data[place : place + 9] = b"\xff" * 9
        (tmp_path / "a.zip").write_bytes(data)
        (file,) = Source(tmp_path / "a.zip").files
        with pytest.raises(OSError):
            file.read()


def test_backslashes_in_a_zip_file_part_folders(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("set\\images\\1.jpg", b"one")
        archive.writestr("set/images/b\\2.jpg", b"two")  # of a tool that knows slashes: a letter like others
        archive.writestr("caf\u00e9\\3.jpg", b"three+")  # written as UTF-8, and said so
        archive.writestr("__.jpg", b"four++++")
    content = (tmp_path / "a.zip").read_bytes().replace(b"__.jpg", "\u8868".encode("shift_jis") + b".jpg")
    (tmp_path / "a.zip").write_bytes(content)  # whose second byte is a backslash's
    first, second, third, fourth = sorted(Source(tmp_path).files, key=lambda f: f.size + ("b" in f.path.name))
    assert third.path == PurePosixPath("caf\u00e9/3.jpg") and third.read() == b"three+"
    assert len(fourth.path.parts) == 1 and fourth.folders == ("a",) and fourth.read() == b"four++++"
    assert first.path == PurePosixPath("set/images/1.jpg") and first.folders == ("a", "set", "images")
    assert second.path == PurePosixPath("set/images/b\\2.jpg") and (first.read(), second.read()) == (b"one", b"two")
    write(tmp_path / "set/images/1.jpg", "one")  # unpacked beside it
    assert [f.member for f in Source(tmp_path).files if f.path == first.path] == [None]


def test_an_image_left_out_for_one_in_another_folder_is_known(tmp_path):
    for name in ("optical/1.jpg", "sar/1.jp2", "optical/1.gif", "sar/2.jp2", "radar/3.bmp", "sar/3.bmp"):
        write(tmp_path / name, "x")
    source = Source(tmp_path)
    assert [str(f.path) for f in source.images] == ["optical/1.jpg", "radar/3.bmp", "sar/2.jp2", "sar/3.bmp"]
    assert [str(f.path) for f in source.passed_over] == ["sar/1.jp2"]
