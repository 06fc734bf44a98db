"""VisDrone-DET as it is distributed, drawn small."""

import numpy as np
import pytest
import yaml

from ds2d2_yolo import cli
from ds2d2_yolo.converting import main
from ds2d2_yolo.datasets import visdrone
from ds2d2_yolo.datasets.source import Source
from ds2d2_yolo.errors import UserError
from tests.datasets.downloads import picture, write, zipped

CAR, MOTOR = "10,20,8,4,1,4,0,0", "30,5,6,12,1,10,1,2,"  # lines may end in a comma
LEFT_OUT = ("0,0,30,30,0,0,0,0", "1,1,5,5,1,11,0,0", "2,2,5,5,0,4,0,0")  # a region, of others, not to be rated


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "VisDrone as downloaded"
    notes = {
        "train": {"0000002_00005_d_0000014": [CAR, *LEFT_OUT, MOTOR], "0000002_00448_d_0000015": []},
        "val": {"0000001_02999_d_0000005": [MOTOR]},
        "test-dev": {"0000006_00159_d_0000001": [CAR]},
    }
    for split, images in notes.items():
        folder = root / f"VisDrone2019-DET-{split}"
        for i, (stem, lines) in enumerate(images.items()):
            picture(folder / f"images/{stem}.jpg", seed=i)
            write(folder / f"annotations/{stem}.txt", "".join(f"{line}\n" for line in lines))
    return root


def planned(root, **more):
    return visdrone.plan(Source(root), **more)


def content(plan):
    return {
        f"{job.split}/{job.stem}": [
            (plan.names[kind], *corners[[0, 2]].ravel().tolist())
            for kind, corners in zip(job.objects().classes, job.objects().corners, strict=True)
        ]
        for job in plan.jobs
    }


FOUND = {
    "train/0000002_00005_d_0000014": [("car", 10, 20, 18, 24), ("motor", 30, 5, 36, 17)],
    "train/0000002_00448_d_0000015": [],
    "val/0000001_02999_d_0000005": [("motor", 30, 5, 36, 17)],
    "test/0000006_00159_d_0000001": [("car", 10, 20, 18, 24)],
}


def test_images_objects_and_splits(root):
    plan = planned(root)
    assert content(plan) == FOUND
    assert plan.yaml == {"train": ["train"], "val": ["val"], "test": ["test"]}
    assert plan.jobs[0].objects().problems == {
        "region to be ignored (left out)": 1,
        "object of the class 'others' (left out)": 1,
        "object that is not to be rated, score 0 (left out)": 1,
    }
    assert plan.problems["train is not the official split of 6,471 images"] == ["2 in it"]


def test_zip_files_as_downloaded(root):
    for folder in list(root.iterdir()):
        zipped(folder)
    assert content(planned(root)) == FOUND
    assert all(job.image.member for job in planned(root).jobs)


CHALLENGE = "image of the challenge, which nobody annotated (left out, as there is another test folder)"


@pytest.mark.parametrize("packed", [False, True])
def test_the_challenge_is_a_test_split_where_there_is_no_other(root, packed):
    """Its numbers are those of other images."""
    challenge = root / "VisDrone2019-DET-test-challenge"
    for stem in ("9999938", "0000006_00159_d_0000001"):
        picture(challenge / f"images/{stem}.jpg", 32, 32)
    if packed:
        zipped(challenge)
    plan = planned(root)
    assert content(plan) == FOUND and "test-dev" in str(plan.jobs[-1].image)
    assert plan.problems[CHALLENGE] == ["0000006_00159_d_0000001", "9999938"]
    assert not any(names for reason, names in plan.problems.items() if "official" not in reason and reason != CHALLENGE)
    (root / "VisDrone2019-DET-test-dev/images/0000006_00159_d_0000001.jpg").unlink()
    assert not any(job.split == "test" for job in planned(root).jobs)  # no annotation is that of another image
    for file in (root / "VisDrone2019-DET-test-dev").rglob("*.*"):
        file.unlink()
    jobs = [job for job in planned(root).jobs if job.split == "test"]
    assert [job.stem for job in jobs] == ["0000006_00159_d_0000001", "9999938"] and not any(job.read for job in jobs)


def test_a_challenge_with_annotations_counts(root):
    """As other sets of this format may have one."""
    challenge = root / "VisDrone2019-DET-test-challenge"
    picture(challenge / "images/0000006_00159_d_0000001.jpg", 32, 32)
    write(challenge / "annotations/0000006_00159_d_0000001.txt", MOTOR)
    expected = {job.stem: (job.image.path.parts[0][17:], len(job.objects())) for job in planned(root).jobs}
    del expected["0000002_00448_d_0000015"], expected["0000002_00005_d_0000014"], expected["0000001_02999_d_0000005"]
    second = "VisDrone2019-DET-test-dev_images_0000006_00159_d_0000001"
    assert expected == {"0000006_00159_d_0000001": ("test-challenge", 1), second: ("test-dev", 1)}


def test_one_folder_is_the_split_that_is_said(tmp_path, root):
    folder = root / "VisDrone2019-DET-val"
    folder.rename(tmp_path / "some")
    assert list(content(planned(tmp_path / "some"))) == ["train/0000001_02999_d_0000005"]
    assert list(content(planned(tmp_path / "some", split="val"))) == ["val/0000001_02999_d_0000005"]
    assert list(content(planned(root / "VisDrone2019-DET-test-dev"))) == ["test/0000006_00159_d_0000001"]


def test_what_does_not_belong_together_is_named(root):
    picture(root / "VisDrone2019-DET-val/images/lonely.jpg")
    write(root / "VisDrone2019-DET-train/annotations/lonely.txt", CAR)
    plan = planned(root)
    assert content(plan) == FOUND
    assert plan.problems["image without annotation (left out)"] == ["val/lonely"]
    assert plan.problems["annotation without image"] == ["train/lonely"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("1,2,3,4,1,4,0", "line that is no annotation"),
        ("1,2,3,4,1,nan,0,0", "line that is no annotation"),
        ("1,2,inf,4,1,4,0,0", "line that is no annotation"),
        ("4 0.5 0.5 0.1 0.1", "line that is no annotation"),
        ("1,2,3,4,1,12,0,0", "unknown class '12'"),
        ("1,2,3,4,1,4.5,0,0", "unknown class '4.5'"),
    ],
)
def test_lines_that_are_none_are_counted(line, reason):
    objects = visdrone.read_text(f"{CAR}\n{line}\n")
    assert len(objects) == 1 and objects.problems == {reason: 1}


def test_videos_are_refused(tmp_path):
    write(tmp_path / "VisDrone2019-VID-train/annotations/uav1.txt", "1,0,10,20,8,4,1,4,0,0\n")
    picture(tmp_path / "VisDrone2019-VID-train/sequences/uav1/0000001.jpg")
    with pytest.raises(UserError, match="no image .* has an annotation of its name; VisDrone-DET has a file an image"):
        planned(tmp_path)


@pytest.mark.parametrize("text", ["1,0,10,20,8,4,1,4,0,0\n", "4 0.5 0.5 0.1 0.1\n"], ids=["video", "yolo"])
def test_annotations_of_another_kind_are_refused_at_once(root, text):
    for file in root.rglob("*.txt"):
        file.write_text(text)
    with pytest.raises(UserError, match=r"is VisDrone-DET's \(4 x annotation without a single valid line\)"):
        planned(root)


@pytest.mark.parametrize(
    ("gone", "settings", "said"),
    [
        ("*.txt", {}, "holds no annotations/"),
        ("*.jpg", {}, "holds no images"),
        ("nothing", {"boxes": "rotated"}, "VisDrone has upright boxes alone"),
        ("nothing", {"split": "all"}, "split=all is none of train, val, test"),
    ],
)
def test_what_is_missing_is_named(root, gone, settings, said):
    for file in root.rglob(gone):
        file.unlink()
    with pytest.raises(UserError, match=said):
        planned(root, **settings)


def test_it_goes_where_ultralytics_own_file_looks(root, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("ultralytics.utils.DATASETS_DIR", tmp_path / "datasets")
    main(["visdrone", str(root)])
    made = tmp_path / "datasets/VisDrone"
    described = yaml.safe_load((made / "data.yaml").read_text())
    assert [described[key] for key in ("train", "val", "test")] == ["images/train", "images/val", "images/test"]
    assert list(described["names"].values()) == visdrone.NAMES
    rows = np.loadtxt(made / "labels/train/0000002_00005_d_0000014.txt")
    expected = [[3, 14 / 64, 22 / 48, 8 / 64, 4 / 48], [9, 33 / 64, 11 / 48, 6 / 64, 12 / 48]]
    np.testing.assert_allclose(rows, expected, atol=1e-5)
    assert "region to be ignored (left out)" in capsys.readouterr().out
    main(["visdrone", str(root), str(tmp_path / "tiles"), "tiles=True", "size=32", "overlap=8"])
    assert len(list((tmp_path / "tiles/images/train").iterdir())) > 2


def test_a_download_that_fails_names_the_way_without():
    line = "Download failure for https://host/VisDrone2019-DET-train.zip. Environment may be offline."
    assert "python -m ds2d2_yolo.datasets visdrone " in cli._how_to_prepare(line)
