"""Image files as they are found: what they are, whether they are whole, and their pixels as 8-bit BGR."""

from __future__ import annotations

import io
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image
from ultralytics.data.utils import exif_size

from ds2d2_yolo.datasets.source import File, reading

# What Ultralytics reads as it is; of TIFF files it stacks pages and bands instead
_PLAIN = {"RGB", "L", "P", "1", "RGBA", "LA", "CMYK", "YCbCr"}
_TIFF = {"RGB", "L"}
_STARTS = (b"\xff\xd8", b"\x89PNG", b"BM", b"II", b"MM", b"RIFF")
_END = b"\xff\xd9"  # of a JPEG
_TIFFS = (".tif", ".tiff")
_FOREIGN = (
    ": a TIFF cut short, or of bands and bits that are not read here (gdal_translate -b 1 -b 2 -b 3 -ot Byte -scale)"
)
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


def inspect(file: File) -> Picture:
    """Read an image's head and check that the file is whole, without decoding it.

    Raises:
        ValueError: It is no image, or cut short.
        UserError: As ``reading``.
    """
    try:
        with reading(file), io.BytesIO(file.read()) if file.member else open(file.where, "rb") as stream:
            if not stream.read(8).startswith(_STARTS):  # Ultralytics' Pillow would ask for a HEIF package
                raise ValueError("unreadable image")
            stream.seek(0)
            with Image.open(stream) as image:
                kind, form = image.mode, image.format
                if kind in _PLAIN and ";16" in str(image.tile):  # Pillow shows only their upper halves
                    kind += ";16"
                pages = image.n_frames if form == "TIFF" else 1  # the only one that is stacked
                flat = form != "TIFF" or _flat(image)
                image.verify()
                width, height = exif_size(image)  # before that it would decode a PNG
            if form in ("JPEG", "MPO") and not _ends_as_jpeg(stream):
                raise ValueError("unreadable image: cut short")
    except (OSError, SyntaxError, ValueError, EOFError, LookupError, MemoryError, OverflowError, ImportError) as error:
        if isinstance(error, ValueError) and str(error).startswith("unreadable"):
            raise
        raise ValueError(f"unreadable image{_FOREIGN * (file.path.suffix.lower() in _TIFFS)}") from error
    plain = kind in _TIFF and pages == 1 and flat if form == "TIFF" else kind in _PLAIN
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

    Of 16-bit images the bits that the brightest pixel needs are scaled down to 8; more than three bands leave the
    first three, and transparency is dropped. With ``picture``, what ``inspect`` says of the file, no second copy of the
    pixels is held.

    Raises:
        ValueError: It cannot be decoded.
        UserError: As ``reading``.
    """
    if file.path.suffix.lower() in _TIFFS and _has_alpha(file):  # which OpenCV multiplies with: it may be infrared
        return to_bytes(_decode_with_pillow(file))
    image = _decode_into(file, picture) if picture and picture.plain and not file.member else None
    with suppress(cv2.error):
        if image is None and file.member:
            image = cv2.imdecode(np.frombuffer(file.read(), np.uint8), _FLAGS)
        elif image is None:  # from the disk: the packed bytes need not lie beside the pixels
            image = cv2.imread(str(file.where), _FLAGS)
    return to_bytes(_decode_with_pillow(file) if image is None else image)


def _decode_into(file: File, picture: Picture) -> np.ndarray | None:
    """Pixels decoded to where they stay, which takes half the memory; None where OpenCV cannot."""
    pixels = np.zeros((picture.height, picture.width, 3), np.uint8)
    mark = pixels[0] = np.arange(picture.width * 3, dtype=np.uint64).reshape(-1, 3) * 2654435761 >> 7 & 255
    with suppress(cv2.error):
        found = cv2.imread(str(file.where), pixels, _FLAGS)
        # OpenCV gives the array back as it was if it knows no such file
        return None if found is None or np.array_equal(found[0], mark) else found
    return None


def _has_alpha(file: File) -> bool:
    with suppress(OSError, SyntaxError, ValueError, ImportError), reading(file):
        image = Image.open(io.BytesIO(file.read()) if file.member else file.where)
        with image:
            return image.mode in ("RGBA", "RGBX", "LA") and ";16" not in str(image.tile)
    return False


def _decode_with_pillow(file: File) -> np.ndarray:
    try:
        with reading(file), Image.open(io.BytesIO(file.read()) if file.member else file.where) as image:
            deep = image.mode.startswith(("I", "F"))
            pixels = np.asarray(image if deep else image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, MemoryError, ImportError) as error:
        raise ValueError("unreadable image") from error
    return np.repeat(pixels[..., None], 3, 2) if deep else pixels[..., ::-1]


def to_bytes(image: np.ndarray) -> np.ndarray:
    """Scale ``(h, w, 3)`` of any depth to 8 bits."""
    if image.dtype == np.uint8:
        return np.ascontiguousarray(image)
    image = np.nan_to_num(image.astype(np.float32)).clip(0)
    top = float(image.max(initial=0))
    if top <= 1 and image.size and (image % 1).any():  # a share of full brightness
        scale = 255.0
    else:
        scale = 1.0 if top < 256 else 256.0 / 2 ** np.ceil(np.log2(top + 1))
    return (image * scale).clip(0, 255).astype(np.uint8)


class Budget:
    """Lets threads hold so many pixels between them; who wants more than all of it waits to be alone."""

    def __init__(self, pixels: float):
        self.total = self.left = pixels
        self._free = threading.Condition()

    @contextmanager
    def hold(self, pixels: float):
        """Wait for room, and give it back."""
        pixels = min(pixels, self.total)
        with self._free:
            self._free.wait_for(lambda: self.left >= pixels)
            self.left -= pixels
        try:
            yield
        finally:
            with self._free:
                self.left += pixels
                self._free.notify_all()
