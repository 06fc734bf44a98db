"""The digest of a data set's labels, and the amplifier that is named by it."""

import os
import shutil

import pytest
import torch
from ultralytics.data.utils import check_det_dataset
from ultralytics.utils import YAML

from ds2d2_yolo.engine import amplifier_file, amplifier_trainer
from ds2d2_yolo.engine.trainer import DS2D2Trainer
from ds2d2_yolo.errors import UserError
from ds2d2_yolo.labels import labels_digest
from tests.helpers.training import listening


@pytest.fixture
def own(data, tmp_path):
    """A copy of the data set, its YAML file."""
    shutil.copytree(data.parent, tmp_path / "own")
    YAML.save(tmp_path / "own" / "data.yaml", {k: v for k, v in YAML.load(data).items() if k != "path"})
    return tmp_path / "own" / "data.yaml"


def digest(yaml):
    return labels_digest(check_det_dataset(str(yaml)))


def some(folder):
    return sorted(folder.iterdir())[0]


def first_label(root):
    return some(root / "labels" / "train")


def less_a_box(root):
    label = first_label(root)
    label.write_text("".join(label.read_text().splitlines(keepends=True)[1:]))


def another_class(root):
    label = first_label(root)
    before = label.stat()
    text = label.read_text()
    label.write_text(("1" if text[0] == "0" else "0") + text[1:])
    os.utime(label, ns=(before.st_atime_ns, before.st_mtime_ns))  # neither size nor time give it away


def swapped(root):
    one, other = sorted((root / "labels" / "train").iterdir())[:2]
    texts = one.read_text(), other.read_text()
    other.write_text(texts[0])
    one.write_text(texts[1])


def another_image(root):
    image = some(root / "images" / "train")
    image.write_bytes(image.read_bytes() + b"more")


def copied_image(root):
    image = some(root / "images" / "train")
    shutil.copy(image, image.with_name(f"copy{image.suffix}"))


CHANGES = [
    less_a_box,
    another_class,
    swapped,
    lambda root: first_label(root).unlink(),
    lambda root: some(root / "images" / "train").unlink(),
    lambda root: some(root / "images" / "train").rename(root / "images" / "train" / "renamed.jpg"),
    another_image,
    copied_image,
]


@pytest.mark.parametrize("change", CHANGES)
def test_it_differs_once_something_has_changed(own, change):
    before = digest(own)
    change(own.parent)
    assert digest(own) != before


def test_it_stays_the_same_for_all_else(own, tmp_path):
    before = digest(own)
    for path in own.parent.rglob("*"):
        os.utime(path, (1, 1))
    some(own.parent / "labels" / "val").write_text("")
    (own.parent / "labels" / "train.cache").write_text("cache")
    assert digest(own) == before
    assert digest(own.parent.rename(tmp_path / "moved") / "data.yaml") == before
    (tmp_path / "link").symlink_to(tmp_path / "moved")
    assert digest(tmp_path / "link" / "data.yaml") == before


def test_lists_of_images_are_read(own):
    files = sorted((own.parent / "images" / "train").iterdir())
    for name, chosen in (("a", files[:5]), ("b", files[5:])):
        (own.parent / f"{name}.txt").write_text("".join(f"./images/train/{file.name}\n" for file in chosen))
    by_folder = digest(own)
    YAML.save(own, {**YAML.load(own), "train": ["b.txt", "a.txt"]})
    assert digest(own) == by_folder
    another_class(own.parent)
    assert digest(own) != by_folder


def test_a_data_set_outside_its_root(own, tmp_path):
    apart = tmp_path / "root" / "data.yaml"
    YAML.save(apart, {**YAML.load(own), "train": "../own/images/train", "val": "../own/images/val"})
    before = digest(apart)
    less_a_box(own.parent)
    assert digest(apart) != before


# ---- the amplifier's name


@pytest.fixture
def wanted(make, own, monkeypatch):
    """The name of the amplifier that a run on the data set's copy would train."""
    monkeypatch.setattr(amplifier_trainer, "_train", lambda student, name: name)

    def name(yaml=own, **changes):
        trainer = make(data=str(yaml), im_high=1, **changes)
        return amplifier_trainer.ensure_amplifier(trainer, trainer.load_teacher())

    return name


def test_the_amplifier_is_named_by_labels_and_recipe(wanted, own, tmp_path):
    before = wanted()
    assert wanted() == wanted(epochs=9) == before
    names = {before, wanted(amplifier_epochs=7), wanted(fraction=0.5), wanted(imgsz=64)}
    less_a_box(own.parent)
    names.add(changed := wanted())
    assert len(names) == 5
    assert wanted(own.parent.rename(tmp_path / "moved") / "data.yaml") == changed


def test_a_damaged_amplifier_is_trained_anew_and_one_that_cannot_be_read_now_is_kept(wanted, teacher_pt, monkeypatch):
    def broken_disk(path):
        raise OSError(5, "Input/output error of the device")

    path = teacher_pt.with_name(wanted())
    path.write_bytes(b"cut short")
    try:
        with listening() as lines:
            assert wanted() == path.name  # the name alone: it was trained
        assert any(f"amplifier '{path}' is damaged (" in line for line in lines)
        monkeypatch.setattr(amplifier_file, "load_tensors", broken_disk)
        with pytest.raises(UserError, match="cannot be read now: .*device"):
            wanted()
    finally:
        path.unlink()


def test_an_amplifier_is_reused_until_the_labels_change(wanted, own, teacher_pt):
    path = teacher_pt.with_name(wanted())
    torch.save({"format": amplifier_file.FORMAT, "ap50": 0.5}, path)
    assert wanted() == str(path)
    renamed = path.rename(path.with_name(path.name.replace(teacher_pt.stem, "earlier", 1)))  # as its teacher was since
    assert wanted() == str(renamed)
    path.write_bytes(b"cut short")
    assert wanted() == str(renamed)
    renamed.replace(path)
    another_class(own.parent)
    assert wanted() not in (path.name, str(path))


def test_images_left_out_for_their_labels_are_warned_of_once(arguments, own, teacher_pt, tmp_path):
    """Of both stages: the amplifier's trains on the same images."""
    for file in sorted((own.parent / "labels/train").glob("*.txt"))[:5]:
        file.write_text("0 48 48 20 20\n")
    shutil.copy(teacher_pt, tmp_path / "teacher.pt")
    files = {"data": str(own), "teacher": str(tmp_path / "teacher.pt")}
    sizes = {"epochs": 1, "amplifier_epochs": 1, "im_high": 0.3, "val": False, "workers": 0}
    with listening() as log:
        DS2D2Trainer(overrides={**arguments, **files, **sizes, "project": str(tmp_path)}).train()
    (line,) = [line for line in log if "are left out" in line]
    assert "5 of the 8 images of" in line and "5 of 5 label files hold coordinates beyond 0 to 1" in line


def test_the_digest_of_a_split_is_its_own(own):
    before, data = digest(own), check_det_dataset(str(own))
    assert labels_digest(data) == before != labels_digest(data, "val")
    less_a_box(own.parent)
    assert labels_digest(data, "val") == labels_digest(check_det_dataset(str(own)), "val")
    some(own.parent / "labels" / "val").write_text("")
    assert labels_digest(data, "val") not in {labels_digest(data), before}


def test_a_label_that_has_changed_behind_its_first_line(own):
    label = sorted((own.parent / "labels" / "train").iterdir())[0]
    label.write_text("0 0.5 0.5 0.2 0.2\n1 0.3 0.3 0.1 0.1\n")
    before = digest(own)
    label.write_text("0 0.5 0.5 0.2 0.2\n0 0.3 0.3 0.1 0.1\n")
    assert digest(own) != before


def test_images_are_found_by_a_suffix_in_capitals(own):
    """As Ultralytics finds them."""
    image = sorted((own.parent / "images" / "train").iterdir())[0]
    image.rename(image.with_suffix(image.suffix.upper()))
    label = own.parent / "labels" / "train" / f"{image.stem}.txt"
    before = digest(own)
    label.write_text("1 0.3 0.3 0.1 0.1\n")
    assert digest(own) != before
