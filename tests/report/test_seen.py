import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ds2d2_yolo.errors import UserError
from ds2d2_yolo.report.seen import neighbours, see


def scene(folder, height, width, box, label):
    """A black image with one white box (x1, y1, x2, y2), and its label file."""
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((height, width, 3), np.uint8)
    x1, y1, x2, y2 = box
    pixels[y1:y2, x1:x2] = 255
    cv2.imwrite(str(folder / "images" / "a.png"), pixels)
    (folder / "labels" / "a.txt").write_text(label)
    return folder / "images" / "a.png"


@settings(max_examples=40, deadline=None)
@given(data=st.data(), height=st.integers(20, 120), width=st.integers(20, 120), polygon=st.booleans())
def test_boxes_and_content_lie_where_the_picture_has_them(tmp_path_factory, data, height, width, polygon):
    x1, y1 = data.draw(st.integers(0, width - 11)), data.draw(st.integers(0, height - 11))
    x2, y2 = data.draw(st.integers(x1 + 10, width)), data.draw(st.integers(y1 + 10, height))
    a, b, c, d = x1 / width, y1 / height, x2 / width, y2 / height
    row = (a, b, c, b, c, d, a, d) if polygon else ((a + c) / 2, (b + d) / 2, c - a, d - b)
    file = scene(tmp_path_factory.mktemp("s"), height, width, (x1, y1, x2, y2), f"3 {' '.join(map(repr, row))}\n\n")
    seen = see(file, imgsz=128, stride=32)
    tall, wide = seen.picture.shape[:2]
    assert max(tall, wide) == 128 and tall % 32 == wide % 32 == 0 and seen.tensor.shape == (1, 3, tall, wide)
    assert np.abs(seen.tensor[0].permute(1, 2, 0).numpy() * 255 - seen.picture).max() < 0.01
    left, top, right, bottom = seen.content
    outside = np.ones((tall, wide), bool)
    outside[top:bottom, left:right] = False
    assert (seen.picture[outside] == 114).all() and (right - left == 128 or bottom - top == 128)
    white = np.argwhere(seen.picture[top:bottom, left:right, 0] > 127)
    (y1, x1), (y2, x2) = white.min(0) + (top, left), white.max(0) + (top + 1, left + 1)
    # Half a pixel of the original on either side, magnified, and rounding
    assert seen.boxes.numpy() == pytest.approx(np.array([[x1, y1, x2, y2]]), abs=1 + 128 / max(height, width))


def test_labels_that_are_empty_missing_or_none_at_all(tmp_path):
    file = scene(tmp_path, 40, 40, (0, 0, 9, 9), "")
    assert see(file, imgsz=64).boxes.shape == (0, 4)
    label = tmp_path / "labels" / "a.txt"
    label.write_bytes(b"\xef\xbb\xbf0 0.5 0.5 0.5 0.5\n")  # a mark that Windows tools begin with
    assert see(file, imgsz=64).boxes.shape == (1, 4)
    for text in ("a caption of the picture", "0 0.5 0.5 0.1", "0 0.5 0.5 0.1 0.1 0.9"):
        label.write_text(text)
        assert see(file, imgsz=64).boxes is None
    label.unlink()
    assert see(file, imgsz=64).boxes is None and see(file, imgsz=64).labels == label


def test_colours_and_gray(tmp_path):
    cv2.imwrite(str(tmp_path / "red.png"), np.full((32, 32, 3), (0, 0, 255), np.uint8))
    assert see(tmp_path / "red.png", imgsz=32).tensor[0, :, 5, 5].tolist() == [1, 0, 0]
    gray = see(tmp_path / "red.png", channels=1, imgsz=32)
    assert gray.tensor.shape == (1, 1, 32, 32) and gray.picture.shape == (32, 32, 3)


def test_what_is_no_image(tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    (tmp_path / "empty.png").write_bytes(b"")
    cv2.imwrite(str(tmp_path / "rgb.png"), np.zeros((9, 9, 3), np.uint8))
    for name, channels, said in (
        ("missing.jpg", 3, "there is no image"),
        ("broken.jpg", 3, "cannot be read"),
        ("empty.png", 3, "cannot be read"),
        ("", 3, "is a folder"),
        ("rgb.png", 5, "has 3 channels and the model takes 5"),
    ):
        with pytest.raises(UserError, match=said):
            see(tmp_path / name, channels)


def test_neighbours_are_other_images_of_the_folder(tmp_path):
    for i in range(50):
        (tmp_path / f"{i:02}.jpg").touch()
    (tmp_path / "notes.txt").touch()
    found = [p.name for p in neighbours(tmp_path / "00.jpg", 8)]
    assert "00.jpg" not in found and found[0] == "01.jpg" and found[-1] > "40.jpg" and 6 <= len(found) <= 8
    assert len(neighbours(tmp_path / "00.jpg", 100)) == 49
    (tmp_path / "alone").mkdir()
    assert neighbours(tmp_path / "alone" / "a.jpg", 8) == []
