from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from ultralytics.engine.results import Results

from ds2d2_yolo.errors import UserError
from ds2d2_yolo.report import exported
from ds2d2_yolo.report.agreement import Selection
from ds2d2_yolo.report.exported import Graph, letterbox, list_images, read_images


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "deeper").mkdir()
    for name in ("b.png", "a.jpg", "deeper/c.bmp"):
        cv2.imwrite(str(tmp_path / name), rng.integers(0, 256, (20, 30, 3), np.uint8))
    (tmp_path / "notes.md").write_text("no image")
    (tmp_path / "list.txt").write_text("b.png\n\ndeeper/c.bmp\n")
    return tmp_path


def names(source, folder):
    return [path.relative_to(folder).as_posix() for path in list_images(source)]


def test_images_are_found_in_files_folders_globs_and_lists(folder, monkeypatch):
    assert names(folder, folder) == ["a.jpg", "b.png", "deeper/c.bmp"]
    assert names(folder / "b.png", folder) == ["b.png"]
    assert names(f"{folder}/*.*g", folder) == ["a.jpg", "b.png"]
    assert names(folder / "list.txt", folder) == ["b.png", "deeper/c.bmp"]
    assert names([folder / "deeper", folder / "b.png"], folder) == ["deeper/c.bmp", "b.png"]
    assert names(folder / "notes.md", folder) == []
    assert names(folder / "nowhere", folder) == []
    (folder / "marked.txt").write_bytes(b"\xef\xbb\xbfb.png\n")  # as Windows tools write it
    assert names(folder / "marked.txt", folder) == ["b.png"]
    monkeypatch.chdir(folder)
    (folder / "deeper/list.txt").write_text("b.png\n./c.bmp\ndeeper/c.bmp\n")  # from where we are, and from there
    assert list_images(folder / "deeper/list.txt") == [Path("b.png"), folder / "deeper/c.bmp", Path("deeper/c.bmp")]
    (folder / "captions.txt").write_text("word " * 90 + "\n" + "x" * 300 + ".png\n")  # longer than names can be
    assert list_images(folder / "captions.txt") == [folder / ("x" * 300 + ".png")]
    (folder / "latin.txt").write_bytes("bäume.png\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"latin.txt' is no list of images in UTF-8"):
        list_images(folder / "latin.txt")


def test_unreadable_images_are_named_and_the_others_read(folder):
    (folder / "aa.png").write_bytes(b"not an image")
    images, broken = read_images(list_images(folder), channels=3, most=8)
    assert [image.shape for image in images] == [(20, 30, 3)] * 3
    assert broken == [folder / "aa.png"]


def test_a_broken_image_is_replaced_by_another(folder):
    (folder / "aa.png").write_bytes(b"")
    images, _ = read_images(list_images(folder), channels=1, most=2)
    assert [image.shape for image in images] == [(20, 30, 1)] * 2


def test_letterbox_scales_centres_and_turns_to_rgb():
    image = np.zeros((16, 32, 3), np.uint8)
    image[..., 0] = 255  # blue, in OpenCV's order
    x = letterbox([image], (64, 64))
    assert x.shape == (1, 3, 64, 64)
    assert x.dtype == torch.float32
    blue = torch.tensor([0.0, 0.0, 1.0])[:, None, None]
    assert torch.equal(x[0, :, 16:48], blue.expand(3, 32, 64))
    assert torch.allclose(x[0, :, :16], torch.tensor(114 / 255))
    assert torch.allclose(x[0, :, 48:], torch.tensor(114 / 255))


def test_the_picture_is_of_the_image_in_which_most_is_found(tmp_path, monkeypatch):
    class Counting:
        """Finds as many objects as the image's shade says."""

        def __init__(self, path, task):
            pass

        def predict(self, image, **settings):
            box = torch.tensor([[1.0, 1, 5, 5, settings["conf"], 0]])
            return [Results(image, "image.png", {0: "ship"}, boxes=box.repeat(int(image[0, 0, 0]), 1))]

    monkeypatch.setattr(exported, "YOLO", Counting)
    for shades in ((0, 7, 3), (3, 0, 7), (7,), (0,)):
        images = [np.full((20, 30, 3), shade, np.uint8) for shade in shades]
        file = tmp_path / "found.png"
        settings = {"imgsz": (32, 32), "conf": 0.3, "device": "cpu"}
        assert exported.draw(tmp_path / "best.onnx", images, settings, file) == max(shades)
        assert (cv2.imread(str(file))[-1, 0] == max(shades)).all()


def test_of_two_detections_of_one_score_either_may_survive_the_nms():
    """Rounding ranks them, in ONNX Runtime otherwise than in PyTorch."""
    rows = torch.tensor(
        [
            [10, 10, 50, 50, 0.9, 0],
            [14, 10, 54, 50, 0.9 - 1e-6, 0],  # as good
            [120, 10, 160, 50, 0.8, 0],
            [124, 10, 164, 50, 0.7, 0],  # worse
            [10, 10, 50, 50, 0.6, 1],
        ]
    )
    graph, rule = Graph(end2end=True, nms=False, dynamic=False, batch=1), Selection(0.5, 0.05)
    for kept, good in (
        ([0, 2, 4], True),
        ([1, 2, 4], True),
        ([0, 3, 4], False),
        ([0, 2], False),
        ([0, 1, 2, 4], False),
    ):
        padded = torch.cat([rows[kept], torch.zeros(5 - len(kept), 6)])
        found = exported.compare(padded[None], rows[None], 2, graph, rule)
        assert (found.box, found.score, found.unmatched) == (0, 0, int(not good)), kept
    padded = torch.cat([rows[[0, 2]], torch.zeros(3, 6)])
    assert exported.compare(padded[None], rows[None], 2, graph, replace(rule, agnostic=True)).close
