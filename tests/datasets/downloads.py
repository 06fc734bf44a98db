"""Data sets as they are distributed, drawn small."""

import zipfile
from pathlib import Path

import cv2
import numpy as np

from ds2d2_yolo.datasets import dior
from ds2d2_yolo.datasets.source import Source


def file_of(path):
    """What a source says of the file."""
    return next(f for f in Source(path.parent).files if f.path.name == path.name)


def picture(path, width=64, height=48, seed=0, channels=3, dtype=np.uint8):
    """An image file of noise, and its pixels (BGR)."""
    top = np.iinfo(dtype).max
    shape = (height, width, channels) if channels > 1 else (height, width)
    pixels = np.random.default_rng(seed).integers(0, top, shape, dtype, endpoint=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels)
    return pixels


def xml(objects, size=(64, 48), rotated=False):
    """A VOC annotation of (name, x1, y1, x2, y2) or (name, eight numbers) rows."""
    rows = []
    for name, *values in objects:
        if rotated:
            corners = ("left_top", "right_top", "right_bottom", "left_bottom")
            tags = [f"{axis}_{corner}" for corner in corners for axis in "xy"]
            box = "robndbox"
        else:
            tags, box = ["xmin", "ymin", "xmax", "ymax"], "bndbox"
        inner = "".join(f"<{t}>{v}</{t}>" for t, v in zip(tags, values, strict=True))
        rows.append(f"<object><name>{name}</name><{box}>{inner}</{box}></object>")
    width, height = size
    return f"<annotation><size><width>{width}</width><height>{height}</height></size>{''.join(rows)}</annotation>"


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def dior_folder(root, splits=None):
    """DIOR with a few images: {split: {stem: objects}}; every object also as a rotated one."""
    splits = splits or {
        "train": {"00001": [("ship", 1, 2, 11, 22), ("vehicle", 30, 30, 34, 33)], "00002": [("dam", 0, 0, 64, 48)]},
        "val": {"00003": []},
        "test": {"11726": [("airplane", 5, 5, 15, 15)]},
    }
    for split, images in splits.items():
        write(root / f"ImageSets/Main/{split}.txt", "".join(f"{stem}\n" for stem in images))
        for stem, objects in images.items():
            folder = "JPEGImages-test" if split == "test" else "JPEGImages-trainval"
            picture(root / folder / f"{stem}.jpg", seed=int(stem))
            write(root / "Annotations" / dior.FOLDERS["horizontal"] / f"{stem}.xml", xml(objects))
            turned = [(n, x1, y1, x2, y1, x2, y2, x1, y2) for n, x1, y1, x2, y2 in objects]
            write(root / "Annotations" / dior.FOLDERS["rotated"] / f"{stem}.xml", xml(turned, rotated=True))
    return root


HEADER = "imagesource:GoogleEarth\ngsd:0.146343590398\n"


def label_txt(objects, header=True):
    """A labelTxt file of (corners, class, difficult) rows."""
    lines = [f"{' '.join(f'{v:g}' for v in np.ravel(c))} {name} {int(hard)}\n" for c, name, hard in objects]
    return (HEADER if header else "") + "".join(lines)


CATEGORIES = [{"id": 7, "name": "ship"}, {"id": 2, "name": "car"}]


def coco(images, annotations=(), categories=CATEGORIES):
    """Content of a COCO file: images by id and name, annotations as (image id, category id, bbox, further keys)."""
    images = [{"id": i, "file_name": n, "width": 40, "height": 30} for i, n in images]
    rows = [
        {"id": 100 + k, "image_id": i, "category_id": c, "bbox": b, **dict(*more)}
        for k, (i, c, b, *more) in enumerate(annotations)
    ]
    return {"images": images, "annotations": rows, "categories": categories}


def zipped(folder: Path):
    """Replace a folder by the zip file of its content."""
    path = folder.with_name(f"{folder.name}.zip")
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(p for p in folder.rglob("*") if p.is_file()):
            archive.write(file, Path(folder.name) / file.relative_to(folder))
            file.unlink()
    for empty in sorted((p for p in folder.rglob("*") if p.is_dir()), reverse=True):
        empty.rmdir()
    folder.rmdir()
    return path


def tree(root):
    """Every file below a folder with its content."""
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}
