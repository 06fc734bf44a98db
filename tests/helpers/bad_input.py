"""A command with something wrong in it, and the files that are wrong with it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from ultralytics.utils import YAML

from tests.datasets.downloads import picture, write, xml
from tests.helpers.training import RECIPE

GOOD = {
    "train": {**RECIPE, "data": "{scenes}", "model": "{small}", "epochs": 1, "project": "{tmp}/runs", "name": "run"},
    "val": {"model": "{teacher}", "data": "{scenes}", "imgsz": 96, "workers": 0, "device": "cpu", "latency": False}
    | {"save_dir": "{tmp}/report"},
    "explain": {"explain": "{image}", "model": "{teacher}", "teacher": "{teacher}", "save_dir": "{tmp}/seen"},
    "curves": {"save_dir": "{tmp}/curves"},
    "export": {"model": "{teacher}", "imgsz": 96},
    "datasets": {},
}


@dataclass(frozen=True)
class Case:
    """`given`: arguments, with spaces between, in place of those in `GOOD`; `said`: part of the line that must come;
    `files`: makes what is needed in a folder, and knows the scenes' YAML file.

    In arguments {scenes}, {small}, {teacher} and {image} stand for good files, {tmp} for the folder.
    """

    command: str
    given: str
    said: str
    files: Callable[[Path, Path], None] | None = None
    name: str = ""

    def __str__(self) -> str:
        return f"{self.command} {self.name or self.given}"[:80]

    def argv(self, places: dict) -> list[str]:
        """The whole command line; `places`: what the names in braces stand for."""
        given = self.given.format(**places).split()
        if self.command == "datasets":
            return given
        keys = {argument.partition("=")[0] for argument in given}
        return [f"{k}={v}".format(**places) for k, v in GOOD[self.command].items() if k not in keys] + given


def text_file(text: str | bytes, name: str = "mine.yaml") -> Callable:
    content = text.encode() if isinstance(text, str) else text
    return lambda tmp, scenes: (tmp / name).write_bytes(content)


def data_file(**changes) -> Callable:
    """mine.yaml: the scenes' file with other keys; None leaves a key out."""

    def make(tmp, scenes):
        data = {**YAML.load(scenes), "path": str(scenes.parent), **changes}
        YAML.save(tmp / "mine.yaml", {key: value for key, value in data.items() if value is not None})

    return make


def every(folder: str, spoil: Callable) -> Callable:
    """A copy of the scenes in which all images or labels are spoilt."""

    def make(tmp, scenes):
        shutil.copytree(scenes.parent, tmp / "set", ignore=shutil.ignore_patterns("*.cache"))
        YAML.save(tmp / "mine.yaml", {**YAML.load(scenes), "path": str(tmp / "set")})
        for path in sorted((tmp / "set" / folder).rglob("*.*")):
            spoil(path)

    return make


def _replaced(content: str | bytes) -> Callable:
    return lambda path: path.write_bytes(content.encode() if isinstance(content, str) else content)


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to("/nowhere")


def _narrow(path: Path) -> None:
    cv2.imwrite(str(path), np.zeros((5, 96, 3), np.uint8))


def _gone(path: Path) -> None:
    path.unlink()


# A folder of the scenes, and what becomes of every file in it
SPOILT = {
    "labels that are no UTF-8": ("labels", _replaced(b"\xff\xfe0 0.5\n")),
    "labels with nan": ("labels", _replaced("0 nan nan nan nan\n")),
    "labels with an infinite class": ("labels", _replaced("1e400 0.5 0.5 0.1 0.1\n")),
    "labels below 0": ("labels", _replaced("0 -0.5 0.5 0.1 0.1\n")),
    "labels of classes that are not there": ("labels", _replaced("99 0.5 0.5 0.1 0.1\n")),
    "labels with half a class": ("labels", _replaced("0.5 0.5 0.5 0.1 0.1\n")),
    "labels of six columns": ("labels", _replaced("0 0.5 0.5 0.1 0.1 0.3\n")),
    "labels with words": ("labels", _replaced("ship 0.5 0.5 0.1 0.1\n")),
    "empty images": ("images", _replaced(b"")),
    "text as images": ("images", _replaced("no image\n")),
    "images cut short": ("images", lambda path: path.write_bytes(path.read_bytes()[:300])),
    "images of 5 pixels": ("images", _narrow),
    "folders as images": ("images", _folder),
    "links to nowhere as images": ("images", _dangling),
    "no images": ("images", _gone),
}


def image_list(content: str) -> Callable:
    """A data set whose images are those of a list."""

    def make(tmp, scenes):
        (tmp / "list.txt").write_text(content)
        data_file(train=str(tmp / "list.txt"), val=str(tmp / "list.txt"))(tmp, scenes)

    return make


def voc_folder(tmp: Path, scenes: Path) -> None:
    picture(tmp / "src/images/0.jpg", seed=0)
    write(tmp / "src/annotations/0.xml", xml([("ship", 1, 2, 11, 22)]))


def coco_folder(content: str) -> Callable:
    def make(tmp, scenes):
        picture(tmp / "src/images/0.jpg", seed=0)
        write(tmp / "src/annotations/instances_train.json", content)

    return make
