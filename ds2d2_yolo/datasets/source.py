"""The files of a data set as it was downloaded: folders, zip files, or both, read as one tree that is never written."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import shutil
import threading
import unicodedata
import zipfile
import zlib
from collections import defaultdict
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from lzma import LZMAError
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from ds2d2_yolo.errors import UserError

_UNUSUAL = {".mpo", ".jp2", ".avif"}
IMAGES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", *_UNUSUAL}
# Images as well, which the table names instead of calling them missing
UNREAD = {".heic", ".heif", ".dng", ".gif", ".jfif", ".jpe", ".j2k", ".jxl", ".pgm", ".ppm"}
_DAMAGE = (zipfile.BadZipFile, zlib.error, LZMAError, EOFError, NotImplementedError, RuntimeError, ValueError)
_open = threading.local()  # a zip file may be read by one thread at a time
_MOST_OPEN = 8  # zip files a thread: with many of both the file handles would run out
_IN_CONTENT = {None, errno.EINVAL, errno.EOVERFLOW}  # errno where a damaged file names a place that it does not have


@dataclass(frozen=True)
class File:
    """A file of a ``Source``.

    Attributes:
        path: Where it lies, as names are compared (see ``path_of``), the names of zip files left out:
            ``images/part1.zip`` counts as ``images`` (see ``folders``).
        size: Bytes, unpacked.
        where: The file itself, or the zip file that it is in.
        member: Its name in the zip file, else None.
        depth: How many folders that names.
        stamp: What is another number once its content is another: size and time, in a zip file size and checksum.
    """

    path: PurePosixPath
    size: int = field(compare=False)
    where: Path
    member: str | None = None
    depth: int = field(default=0, compare=False)
    stamp: tuple[int, ...] = field(default=(), compare=False)

    def __str__(self) -> str:
        return f"{self.where}/{self.member}" if self.member else str(self.where)

    @property
    def is_image(self) -> bool:
        """Whether its name is an image's, if one of a format that is not read."""
        return self.path.suffix.lower() in IMAGES | UNREAD

    @cached_property
    def folders(self) -> tuple[str, ...]:
        """The folders above it, the name of its zip file among them, outermost first."""
        *folders, _ = self.path.parts
        if self.member:
            folders.insert(len(folders) - self.depth, str(path_of(self.where.stem)))
        return tuple(folders)

    @property
    def long_stem(self) -> str:
        """Its folders and its name in one, without suffix, for an image whose name alone is another's."""
        return "_".join(self.path.with_suffix("").parts)

    def under(self, *folders: str) -> bool:
        """Whether a folder above it has one of these names; case does not matter."""
        return not {f.lower() for f in folders}.isdisjoint(part.lower() for part in self.path.parts[:-1])

    def read(self) -> bytes:
        """Return its content.

        Raises:
            OSError: Its zip file is damaged there.
            UserError: As ``reading``.
        """
        with reading(self):
            if self.member is None:
                return self.where.read_bytes()
            try:
                return _archive(self.where).read(self.member)
            except _DAMAGE as error:
                raise OSError(f"damaged in the zip file ({error})") from error

    def open(self) -> BinaryIO:
        """Open it for reading; what is in a zip file is read first, with the errors of ``read``."""
        return io.BytesIO(self.read()) if self.member else open(self.where, "rb")

    def place(self, target: Path) -> None:
        """Put it at ``target``, as a link where the file system has them, else as a copy; out of a zip file a copy."""
        with suppress(FileNotFoundError):
            target.unlink()
        if self.member is None:
            for link in (os.symlink, os.link):
                with suppress(OSError, NotImplementedError):
                    return link(self.where.resolve(), target)
        # Not of the name itself, which may be as long as names can be
        part = target.with_name(f".{hashlib.sha256(os.fsencode(target.name)).hexdigest()[:16]}.part")
        if self.member is None:
            shutil.copyfile(self.where, part)
        else:
            part.write_bytes(self.read())
        part.replace(target)


def path_of(name: str) -> PurePosixPath:
    """Return a path, or a line that names one, as all of them are compared: letters with accents in one form (NFC).

    macOS and its zip files write them as letter and accent, most lists and JSON files as one.
    """
    return PurePosixPath(unicodedata.normalize("NFC", name))


@contextmanager
def reading(file: File):
    """Tell what fails while a file is read from what is wrong in it, which stays the error that it is.

    Raises:
        UserError: The machine cannot read it now: a disk that is gone, no permission, no more file handles.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _IN_CONTENT:
            raise
        raise UserError(
            f"'{error.filename or file}' cannot be read: {error.strerror or error}; the same command goes on from here"
        ) from error


def _archive(path: Path) -> zipfile.ZipFile:
    """This thread's open zip file; of many the one that was opened first is closed."""
    archives = vars(_open).setdefault("archives", {})
    if path not in archives:
        if len(archives) >= _MOST_OPEN:
            archives.pop(next(iter(archives))).close()
        archives[path] = zipfile.ZipFile(path)
    return archives[path]


class Source:
    """All files under a folder, those in its zip files among them, in the order of their paths.

    Args:
        root: A folder, or one zip file.

    Raises:
        UserError: It does not exist, cannot be read, or holds a zip file that is broken or holds zip files.
    """

    def __init__(self, root: str | Path):
        self.root = Path(root).expanduser()
        if not self.root.exists():
            raise UserError(f"source '{root}' does not exist; give the folder (or zip file) as it was downloaded")
        try:
            found = list(_unzipped(self.root, PurePosixPath())) if self.root.is_file() else list(_walk(self.root))
        except OSError as error:
            raise UserError(f"source '{error.filename or root}' cannot be read: {error.strerror or error}") from error
        # What was unpacked beside its zip file is there once
        unpacked = {(f.path, f.size) for f in found if f.member is None}
        found = [f for f in found if f.member is None or unpacked.isdisjoint((p, f.size) for p in _unpacked_to(f))]
        self.files = sorted(found, key=lambda f: (f.path, str(f)))
        if not self.files:
            raise UserError(f"source '{root}' holds no files")

    @property
    def images(self) -> list[File]:
        """All image files; of those of one name in a split (a.tif, a.jp2 and a.gif) the ones in the usual formats."""
        return [f for f, rank, best, _ in self._ranked() if rank == best]

    @property
    def passed_over(self) -> list[File]:
        """Image files that ``images`` lacks for one of their name in another folder: perhaps images of their own."""
        return [f for f, rank, best, folders in self._ranked() if rank > best and f.path.parent not in folders]

    def _ranked(self) -> list[tuple[File, int, int, set[PurePosixPath]]]:
        """Image files, how unusual each is, how the most usual of its name in its split is, and where such lie."""
        images, best = [(f, _rank(f), _place(f)) for f in self.files if f.is_image], {}
        for _, rank, place in images:
            best[place] = min(rank, best.get(place, rank))
        folders = defaultdict(set)
        for file, rank, place in images:
            if rank == best[place]:
                folders[place].add(file.path.parent)
        return [(file, rank, best[place], folders[place]) for file, rank, place in images]


def _rank(image: File) -> int:
    suffix = image.path.suffix.lower()
    return 2 if suffix in UNREAD else int(suffix in _UNUSUAL)


def _place(image: File) -> tuple[str | None, str]:
    from ds2d2_yolo.datasets.splits import split_of_folders  # which needs this module

    return split_of_folders(image.folders), image.path.stem


def _walk(root: Path):
    """The files below a folder. Links to folders are followed, but not to one that they lie in: that has no end."""
    above = {os.fspath(root): {_identity(root)}}
    for folder, names, files in os.walk(root, followlinks=True, onerror=_raise):
        place, own = path_of(Path(folder).relative_to(root).as_posix()), above.pop(folder)
        inner = {n: _identity(Path(folder, n)) for n in sorted(names) if not n.startswith(".") and n != "__MACOSX"}
        names[:] = [name for name, identity in inner.items() if identity not in own]
        above |= {os.path.join(folder, name): own | {inner[name]} for name in names}
        for name in files:
            if not name.startswith("."):
                yield from _file(Path(folder, name), place)


def _identity(folder: Path) -> tuple[int, int]:
    found = os.stat(folder)
    return found.st_dev, found.st_ino


def _file(path: Path, place: PurePosixPath):
    """A file below a place, or those in it."""
    if path.suffix.lower() == ".zip":
        yield from _unzipped(path, place)
    else:
        found = path.stat()
        yield File(place / path_of(path.name), found.st_size, path, stamp=(found.st_size, found.st_mtime_ns))


def _unpacked_to(file: File) -> list[PurePosixPath]:
    """Where a file of a zip file lies once that is unpacked: beside it, or in a folder of its name.

    Name and size alone would not do: two versions of a label can be alike in both.
    """
    place, member = file.path.parts[: -file.depth - 1], file.path.parts[-file.depth - 1 :]
    return [file.path, PurePosixPath(*place, path_of(file.where.stem), *member)]


def _raise(error: OSError):
    raise error


def _named(member: zipfile.ZipInfo) -> str:
    """The name as it was packed: zip on Linux writes UTF-8 without saying so, and Python then reads code page 437."""
    name, known = member.filename, bool(member.flag_bits & 0x800)
    if not known:
        with suppress(UnicodeError):
            name, known = name.encode("cp437").decode(), True
    # Some tools on Windows part folders by backslashes, which in letters of Shift JIS and GBK are second bytes
    return name.replace("\\", "/") if known and "/" not in name else name


def _unzipped(path: Path, place: PurePosixPath):
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except zipfile.BadZipFile as error:
        raise UserError(f"'{path}' is no whole zip file (a download cut short?): {error}") from error
    nested, images = None, False
    for member in members:
        name = path_of(_named(member))
        if member.is_dir() or "__MACOSX" in name.parts or name.name.startswith("."):
            continue
        if member.flag_bits & 1:
            raise UserError(f"'{path}' is encrypted; unpack it first")
        if name.suffix.lower() == ".zip":
            nested = nested or name
            continue
        size, above = member.file_size, len(name.parts) - 1
        file = File(place / name, size, path, member.filename, above, (size, member.CRC))
        images |= file.is_image
        yield file
    if nested and not images:
        raise UserError(f"'{path}' holds zip files itself ('{nested}'); unpack it once, those in it may stay packed")
