"""Images of formats that Ultralytics names besides the usual ones: read, or named as what is not read here."""

import json

import cv2
import numpy as np
import pytest
from PIL import Image
from ultralytics.data.utils import IMG_FORMATS
from ultralytics.utils.patches import imread

from ds2d2_yolo.datasets import coco_json, dior, dota, voc
from ds2d2_yolo.datasets.convert import convert
from ds2d2_yolo.datasets.one_image import Options
from ds2d2_yolo.datasets.pictures import decode, inspect
from ds2d2_yolo.datasets.source import IMAGES, UNREAD, Source
from tests.datasets.downloads import coco, dior_folder, file_of, label_txt, picture, write, xml, zipped

NOT_READ = "image of a format that is not read here (heic; write it as PNG or JPEG)"


def smooth(width=60, height=40):
    rows = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    return cv2.resize(rows, (width, height), interpolation=cv2.INTER_CUBIC)


def saved(path, image, **kwargs):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image[..., ::-1]).save(path, **kwargs)
    return file_of(path)


def test_every_format_of_ultralytics_is_known():
    assert {f".{name}" for name in IMG_FORMATS} <= IMAGES | UNREAD and not IMAGES & UNREAD


@pytest.mark.parametrize("suffix", [".mpo", ".avif"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize("packed", [False, True])
def test_what_ultralytics_reads_as_it_is(tmp_path, suffix, orientation, packed):
    image = smooth()
    exif = Image.Exif()
    exif[274] = orientation
    more = {"save_all": True, "append_images": [Image.fromarray(image[::2, ::2])]} if suffix == ".mpo" else {}
    file = saved(tmp_path / "in" / f"a{suffix}", image, exif=exif, quality=95, **more)
    theirs = imread(file.where)
    if packed:
        zipped(tmp_path / "in")
        (file,) = Source(tmp_path).files
    head, seen = inspect(file), np.rot90(image, {1: 0, 3: 2, 6: -1}[orientation])
    assert (head.height, head.width, head.plain) == (*seen.shape[:2], True)
    assert np.abs(decode(file, head).astype(int) - seen).mean() < 4
    np.testing.assert_array_equal(decode(file, head), theirs)


@pytest.mark.parametrize("bits", [8, 12])
@pytest.mark.parametrize("bare", [False, True])
def test_jpeg_2000_is_written_anew(tmp_path, bits, bare):
    image, path = smooth(), tmp_path / "a.jp2"
    if bits == 8:
        saved(path, image, no_jp2=bare)
    else:
        lossless = [cv2.IMWRITE_JPEG2000_COMPRESSION_X1000, 1000]
        assert cv2.imwrite(str(path), (image.astype(np.uint16) << 4) | 15, lossless)
    head = inspect(file_of(path))
    assert (head.width, head.height, head.kind, head.plain) == (60, 40, "RGB in JPEG 2000", False)
    assert np.abs(decode(file_of(path), head).astype(int) - image).max() <= 1


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.float32])
@pytest.mark.parametrize("packed", [False, True])
def test_one_band_of_many_bits_is_read_without_a_word(tmp_path, capfd, dtype, packed):
    """OpenCV prints errors of its own, past Python's streams."""
    values = np.arange(24 * 32, dtype=dtype).reshape(24, 32)
    values[:6] = 7
    write(tmp_path / "in" / "a.tif", "")
    assert cv2.imwrite(str(tmp_path / "in" / "a.tif"), values)
    if packed:
        zipped(tmp_path / "in")
    (file,) = Source(tmp_path).files
    capfd.readouterr()
    np.testing.assert_array_equal(decode(file, inspect(file))[..., 1], values // 4)
    assert capfd.readouterr() == ("", "")


def test_a_value_for_nothing_holds_in_one_band_of_floats(tmp_path):
    values = np.tile(np.float32([7, 100, 200, -1]), (40, 40))
    Image.fromarray(values).save(tmp_path / "a.tif", tiffinfo={42113: "-1"})
    assert decode(file_of(tmp_path / "a.tif"))[0, :4, 0].tolist() == [7, 100, 200, 0]


@pytest.mark.parametrize("suffix", [".avif", ".jp2", ".mpo"])
def test_what_was_cut_short(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    saved(path, smooth())
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.6)])
    with pytest.raises(ValueError, match="^unreadable image"):
        decode(file_of(path), inspect(file_of(path)))


def test_another_format_under_the_name_of_a_jpeg(tmp_path):
    """Ultralytics goes by the name, and would not turn it."""
    saved(tmp_path / "a.avif", smooth()).where.rename(tmp_path / "a.jpg")
    with pytest.raises(ValueError, match="^unreadable image"):
        inspect(file_of(tmp_path / "a.jpg"))


def run(kind, root, dest):
    """The table's reasons and where they are, and the names of the images that were written."""
    source = Source(root)
    census = convert(kind.plan(source), dest, Options(), source.root, 1)
    written = sorted(path.name for path in (dest / "images").rglob("*.*"))
    return dict(zip(census.problems["reason"], census.problems["where"], strict=True)), written


def scene(root):
    """a.jp2, b.avif, c.png and d.heic, which is not read."""
    for name in ("a.jp2", "b.avif", "c.png"):
        saved(root / name, smooth())
    write(root / "d.heic", "whatever")
    return ["a.jp2", "b.avif", "c.png", "d.heic"]


def test_coco(tmp_path):
    names = scene(tmp_path / "in" / "images")
    picture(tmp_path / "in" / "images" / "d.png")  # the JSON file does not mean it
    notes = coco([*enumerate([*names, "e.heic"])], [(i, 7, [1, 1, 9, 9]) for i in range(5)])
    write(tmp_path / "in" / "train.json", json.dumps(notes))
    problems, written = run(coco_json, tmp_path / "in", tmp_path / "out")
    assert written == ["a.png", "b.avif", "c.png"]
    assert problems[NOT_READ] == ["train/d"] and problems["listed but missing"] == ["train: e.heic"]
    assert problems["image of mode RGB in JPEG 2000 (written as 8-bit RGB)"] == ["train/a"]


@pytest.mark.parametrize("listed", [False, True])
def test_voc(tmp_path, listed):
    root = tmp_path / "in"
    for name in scene(root / "JPEGImages"):
        write(root / "Annotations" / f"{name[0]}.xml", xml([("ship", 1, 1, 9, 9)], (60, 40)))
    if listed:
        write(root / "ImageSets" / "Main" / "train.txt", "a.jp2\nb\nc\nd.heic\n")
    problems, written = run(voc, root, tmp_path / "out")
    assert written == ["a.png", "b.avif", "c.png"]
    assert problems.pop(NOT_READ) == ["train/d"]
    assert not [reason for reason in problems if "missing" in reason or "without" in reason]


def test_dior_and_dota(tmp_path):
    root = dior_folder(tmp_path / "DIOR")
    (root / "JPEGImages-trainval" / "00001.jpg").rename(root / "JPEGImages-trainval" / "00001.heic")
    assert run(dior, root, tmp_path / "dior")[0][NOT_READ] == ["train/00001"]
    for name in scene(tmp_path / "DOTA" / "train" / "images"):
        note = label_txt([(((1, 1), (9, 1), (9, 9), (1, 9)), "ship", 0)])
        write(tmp_path / "DOTA" / "train" / "labelTxt" / f"{name[0]}.txt", note)
    problems, written = run(dota, tmp_path / "DOTA", tmp_path / "dota")
    assert problems[NOT_READ] == ["train/d"] and written == ["a.png", "b.avif", "c.png"]


@pytest.mark.parametrize("raw", ["JPEGImages", "raw"])
def test_what_is_not_read_stands_behind_an_image_of_the_name(tmp_path, raw):
    """As a camera leaves a.dng beside a.jpg."""
    root = tmp_path / "in"
    picture(root / "JPEGImages" / "a.jpg")
    write(root / raw / "a.dng", "whatever")
    write(root / "xml" / "a.xml", xml([("ship", 1, 1, 9, 9)]))
    assert run(voc, root, tmp_path / "out") == (
        {"data.yaml validates on training images, as there are no others": ["val"]},
        ["a.jpg"],
    )


def test_of_one_name_in_a_split_the_usual_format_is_taken(tmp_path):
    for name in ("train/0.jp2", "train/0.png", "train/1.gif", "val/0.gif", "val/1.png"):
        write(tmp_path / name, "whatever")
    taken = [str(image.path) for image in Source(tmp_path).images]
    assert taken == ["train/0.png", "train/1.gif", "val/0.gif", "val/1.png"]
