"""Image files as they are found: what they are, whether they are whole, and their pixels as 8-bit BGR."""

from __future__ import annotations

import io
import struct
import threading
from collections.abc import Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import ExifTags, Image, ImageOps
from ultralytics.data.utils import exif_size
from ultralytics.utils.patches import _image_open as open_image  # Pillow's own: theirs asks for a HEIF package

from ds2d2_yolo.datasets.source import UNREAD, File, reading

# What Ultralytics reads as it is; of TIFF files it stacks pages and bands instead
_PLAIN = {"RGB", "L", "P", "1", "RGBA", "LA", "CMYK", "YCbCr"}
_TIFF = {"RGB", "L"}
_STARTS = (b"\xff\xd8", b"\x89PNG", b"BM", b"II", b"MM", b"RIFF", b"\0\0\0\x0cjP  ", b"\xffO\xffQ")
_END = b"\xff\xd9"  # of a JPEG
_TIFFS = (".tif", ".tiff")
_AVIF = ".avif"
_NO_DATA = 42113
_FOREIGN = ": a TIFF cut short, or of bands and bits not read here (gdal_translate -b 1 -b 2 -b 3 -ot Byte -scale)"
# What Pillow raises on files that are damaged
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, LookupError, MemoryError, OverflowError, ImportError, TypeError)
_BROKEN += (struct.error,)
_FILLS = (-9999, -32768, -99999, -32767)  # no-data values that files hold without a tag that says so
_PLAIN_BYTES = 3  # a pixel at the peak of decoding
_OTHER_BYTES = 14  # as measured: 12 of 16 bits and of floats, 14 of what Pillow makes RGB of
_BLOCK = 2**20  # values of an image that are scaled at a time
_SAMPLE = 10**6  # values that its scale is told by
_FLAGS = cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH
Image.MAX_IMAGE_PIXELS = None  # aerial images of 30,000 x 30,000 pixels are no attack


@dataclass(frozen=True)
class Picture:
    """What the head of an image file says.

    Attributes:
        width, height: Of the image as it is read, its EXIF rotation applied.
        kind: Mode and bit depth, such as ``RGB`` or ``I;16``.
        plain: Whether Ultralytics reads the file as it is.
    """

    width: int
    height: int
    kind: str
    plain: bool

    @property
    def memory(self) -> int:
        """Bytes that decoding it takes at its peak, a file's own bytes aside."""
        return self.width * self.height * (_PLAIN_BYTES if self.plain else _OTHER_BYTES)


def inspect(file: File) -> Picture:
    """Read an image's head and check that the file is whole, without decoding it.

    Raises:
        ValueError: It is no image, one of a format that is not read, or cut short.
        UserError: As ``reading``.
    """
    suffix = file.path.suffix.lower()
    if suffix in UNREAD:
        way = {".jfif": "rename it to .jpg", ".jpe": "rename it to .jpg", ".j2k": "rename it to .jp2"}.get(suffix)
        raise ValueError(f"image of a format that is not read here ({suffix[1:]}; {way or 'write it as PNG or JPEG'})")
    try:
        with reading(file), file.open() as stream:
            start = stream.read(8)
            if not start.startswith(_STARTS) and (suffix, start[4:]) != (_AVIF, b"ftyp"):
                raise ValueError("unreadable image")
            stream.seek(0)
            with open_image(stream) as image:
                kind, form = image.mode, image.format
                if kind in _PLAIN and ";16" in str(image.tile):  # Pillow shows only their upper halves
                    kind += ";16"
                pages = image.n_frames if form == "TIFF" else 1  # the only one that is stacked
                flat = form != "TIFF" or _flat(image)
                needed = _bytes_needed(image)
                image.verify()
                width, height = exif_size(image)  # before that it would decode a PNG
                turned = form == "WEBP" and image.getexif().get(274) in (5, 6, 7, 8)
            whole = _ends_as_jpeg(stream) if form in ("JPEG", "MPO") else stream.seek(0, 2) >= needed
            if not whole:
                raise ValueError("unreadable image: cut short")
    except _BROKEN as error:
        if isinstance(error, ValueError) and str(error).startswith("unreadable"):
            raise
        raise ValueError(f"unreadable image{_FOREIGN * (suffix in _TIFFS)}") from error
    if turned:  # there Ultralytics' function needs the file's name, and not every OpenCV turns it
        width, height = decode(file).shape[1::-1]
    plain = kind in _TIFF and pages == 1 and flat if form == "TIFF" else kind in _PLAIN
    if form == "JPEG2000":  # Pillow does not tell its depth, Ultralytics cannot read all of them, and they load slowly
        kind, plain = f"{kind} in JPEG 2000", False
    return Picture(width, height, kind, plain)


def _flat(image: Image.Image) -> bool:
    """Whether a TIFF's pixels are one or three bands of 8 bits.

    Raises:
        ValueError: They are bands that lie apart, of which Pillow and OpenCV would show the first, or noise.
    """
    bits, bands, apart = (image.tag_v2.get(tag) for tag in (258, 277, 284))
    bits = set(bits) if isinstance(bits, tuple) else {bits}
    if apart == 2 and (bands or 1) > 1 and (bits != {8} or image.mode == "L"):
        raise ValueError("unreadable image: bands that lie apart (write it with INTERLEAVE=PIXEL, or as 8-bit RGB)")
    return bits == {8} and bands in (None, 1, 3)


def _bytes_needed(image: Image.Image) -> int:
    """How long the file of a TIFF, or of a BMP without compression, must be to hold its pixels; else 0."""
    if image.format == "TIFF":
        tags = image.tag_v2
        places, sizes = ([*(tags.get(a) or tags.get(b) or ())] for a, b in ((273, 324), (279, 325)))
        if len(places) == 1 and tags.get(259, 1) == 1:  # there its size is often wrong, and libtiff looks no more
            bits = sum(tags.get(258, (1,))) * (1 if len(tags.get(258, (1,))) > 1 else tags.get(277, 1))
            sizes = [-(-image.width * bits // 8) * image.height]
        if tags.get(259) == 7 and 347 not in tags:  # JPEG without common tables: its strips have some, or none are left
            image.load()
        return max(map(sum, zip(places, sizes, strict=False)), default=0)
    if image.format == "BMP" and image.tile and image.tile[0].codec_name == "raw":
        return image.tile[0].offset + image.tile[0].args[1] * image.height
    if image.format == "AVIF":  # only its decoder knows
        image.load()
    return 0


def _ends_as_jpeg(stream) -> bool:
    """Whether the end's marker is there: at the very end, or before what cameras and phones append."""
    stream.seek(0, 2)
    stream.seek(-min(stream.tell(), 64), 2)
    if _END in stream.read():
        return True
    stream.seek(2)
    while len(head := stream.read(4)) == 4 and head[0] == 0xFF:
        if head[1] == 0xDA:  # from here on the marker is no part of the pixels, nor of a thumbnail in the head
            return _END in stream.read()
        stream.seek(int.from_bytes(head[2:]) - 2, 1)
    return False


def decode(file: File, picture: Picture | None = None) -> np.ndarray:
    """Return the pixels ``(h, w, 3)``, BGR, 8 bits.

    Other depths become 8 bits as ``to_bytes`` has it; more than three bands leave the first three, and transparency is
    dropped. With ``picture``, what ``inspect`` says of the file, no second copy of the pixels is held.

    Raises:
        ValueError: It cannot be decoded.
        UserError: As ``reading``.
    """
    suffix = file.path.suffix.lower()
    foreign, turned, nothing = _tiff_tags(file) if suffix in _TIFFS else (False, False, None)
    # OpenCV multiplies with opacity, perhaps infrared, complains of a band of 32 bits, and turns AVIF in its own way
    if foreign or suffix == _AVIF:
        return to_bytes(_decode_with_pillow(file), nothing)
    # Nor does it read a TIFF whose sides change places, but from memory
    direct = not file.member and not turned and _is_text(file.where)
    image = _decode_into(file, picture) if picture and picture.plain and direct else None
    with suppress(cv2.error):
        if image is None and not direct:
            image = cv2.imdecode(np.frombuffer(file.read(), np.uint8), _FLAGS)
        elif image is None:  # from the disk: the packed bytes need not lie beside the pixels
            image = cv2.imread(str(file.where), _FLAGS)
    return to_bytes(_decode_with_pillow(file) if image is None else image, nothing)


def _is_text(path: Path) -> bool:
    """Whether OpenCV can be given a path: it dies, with the process, of a name that is no UTF-8."""
    return not any("\ud800" <= letter <= "\udfff" for letter in str(path))


def _decode_into(file: File, picture: Picture) -> np.ndarray | None:
    """Pixels decoded to where they stay, which takes half the memory; None where OpenCV cannot."""
    pixels = np.zeros((picture.height, picture.width, 3), np.uint8)
    mark = pixels[0] = np.arange(picture.width * 3, dtype=np.uint64).reshape(-1, 3) * 2654435761 >> 7 & 255
    with suppress(cv2.error):
        found = cv2.imread(str(file.where), pixels, _FLAGS)
        # OpenCV gives the array back as it was if it knows no such file
        return None if found is None or np.array_equal(found[0], mark) else found
    return None


def _tiff_tags(file: File) -> tuple[bool, bool, float | None]:
    """Whether OpenCV cannot have it, whether width and height are exchanged, and GDAL's value for nothing seen."""
    foreign, turned, nothing = False, False, None
    with suppress(*_BROKEN), reading(file):
        with open_image(io.BytesIO(file.read()) if file.member else file.where) as image:
            foreign = image.mode in ("RGBA", "RGBX", "LA", "I", "F") and ";16" not in str(image.tile)
            tags = getattr(image, "tag_v2", {})
            turned = tags.get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
            value = str(tags.get(_NO_DATA, "")).strip("\0 ")
        nothing = float(value)
    return foreign, turned, nothing


def _decode_with_pillow(file: File) -> np.ndarray:
    try:
        # By a path Pillow maps the rows of a TIFF without compression as if they were turned already
        with reading(file), file.open() as stream, open_image(stream) as image:
            ImageOps.exif_transpose(image, in_place=True)
            deep = image.mode.startswith(("I", "F"))
            pixels = np.asarray(image if deep else image.convert("RGB"))
    except _BROKEN as error:
        raise ValueError("unreadable image") from error
    return pixels[..., None] if deep else pixels[..., ::-1]


def to_bytes(image: np.ndarray, nothing: float | None = None) -> np.ndarray:
    """Scale ``(h, w, 3)``, or one band ``(h, w, 1)``, of any depth to 8 bits ``(h, w, 3)``, some rows at a time.

    Whole numbers by a power of two, shares of full brightness by 255, and what lies below 0, such as decibels, from its
    1st to its 99th percentile. Where there is no number, ``nothing``, or one of the usual fills, it becomes black.
    The power of two is that of all values above 0 but the brightest thousandth, which become white if they need more
    bits: a detector's dead pixels do not make the rest black, and a few bright ships stay ships, but lose their shades.
    65535, which is saturated or no data, does not count.
    """
    if image.dtype == np.uint8:
        return np.ascontiguousarray(image)
    fills = _FILLS if nothing is None else (nothing, *_FILLS)
    rows = _BLOCK // max(image[:1].size, 1) + 1
    blocks = [slice(y, y + rows) for y in range(0, len(image), rows)]
    low, factor = _scale(image, blocks, fills)
    result = np.empty((*image.shape[:2], 3), np.uint8)
    for block in blocks:
        values, seen = _numbers(image[block], fills)
        if low:
            values = (values - low) * seen
        values *= factor
        result[block] = np.clip(values, 0, 255, out=values)  # which one band becomes three by
    return result


def _numbers(values: np.ndarray, fills: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Return values as float32, 0 where they stand for nothing, and where they do not."""
    # GDAL's usual no-data value is the lowest of all
    seen = np.abs(values) < 1e30 if values.dtype.kind == "f" else np.ones(values.shape, bool)
    for fill in fills:
        seen &= values != fill
    return np.where(seen, values, 0).astype(np.float32), seen


def _scale(image: np.ndarray, blocks: list[slice], fills: Sequence[float]) -> tuple[float, float]:
    """Return what is to be taken off an image's values, and what they are to be multiplied with then."""
    step = image.size // _SAMPLE + 1
    step += step % 3 == 0  # of all bands
    values, seen = _numbers(image.reshape(-1)[::step], fills)
    values = values[seen]
    low, high = (float(v) for v in np.percentile(values, (1, 99))) if values.size else (0.0, 0.0)
    if low < 0:
        return low, 255.0 / max(high - low, 1e-6)
    if high < 8 and (values % 1).any():  # a share of full brightness, sometimes of more than that
        return 0.0, 255.0 / max(high, 1.0)
    return 0.0, 2.0 ** (8 - _bits(image, blocks, fills))


def _bits(image: np.ndarray, blocks: list[slice], fills: Sequence[float]) -> int:
    """How many bits, at least 8, hold the values above 0 but for one in 1000, and for 65535: saturated, or no data."""
    bright, needing = 0, np.zeros(129, np.int64)
    for block in blocks:
        values, _ = _numbers(image[block], (*fills, 65535))
        bright += np.count_nonzero(values > 0)
        needing += np.bincount(np.frexp(np.ceil(values[values >= 256]))[1], minlength=129)
    above = needing[::-1].cumsum()[::-1]  # so many bits or more
    return 8 + int((above[9:] * 1000 > bright).sum())


class Budget:
    """Lets threads hold so many bytes between them; who wants more than all of it waits to be alone."""

    def __init__(self, size: float):
        self.total = self.left = size
        self._free = threading.Condition()

    @contextmanager
    def hold(self, size: float):
        """Wait for room, and give it back."""
        size = min(size, self.total)
        with self._free:
            self._free.wait_for(lambda: self.left >= size)
            self.left -= size
        try:
            yield
        finally:
            with self._free:
                self.left += size
                self._free.notify_all()
