"""How long detectors take for an image: several of them timed turn by turn, in one process, on the same images.

pictures = sample("images/val")
runners = [prepare("teacher.pt", pictures), prepare("student.onnx", pictures)]
for latency in latencies(runners):
    print(latency.runtime, latency.inference.median)
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torchvision  # noqa: F401  Ultralytics takes its NMS where it is imported, as it is in every validation
from torch import Tensor
from ultralytics.data.augment import LetterBox
from ultralytics.utils import TQDM
from ultralytics.utils.checks import check_imgsz
from ultralytics.utils.nms import non_max_suppression
from ultralytics.utils.ops import scale_boxes
from ultralytics.utils.torch_utils import time_sync

from ds2d2_yolo.errors import UserError
from ds2d2_yolo.report.exported import list_images, read_images
from ds2d2_yolo.report.runtimes import Loaded, load

WARM_UP = 3  # turns at least, and seconds at least, before the first that counts
WARM_UP_S = 0.3
_HELD = 512_000_000  # bytes of images that `sample` reads


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of some rounds, in ms an image."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Latency:
    """What an image took at one batch size, in ms; reading its file is not in it.

    `preprocess`: letterboxing, and the way to the device; `postprocess`: NMS, or the choice by confidence where NMS is
    part of the model, and boxes in pixels of the original image; `total`: of the three.
    """

    runtime: str
    device: str
    batch: int
    rounds: int
    preprocess: Spread
    inference: Spread
    postprocess: Spread
    total: Spread


@dataclass(frozen=True)
class NMS:
    """Which detections are kept, as Ultralytics' predictor has it by default."""

    conf: float = 0.25
    iou: float = 0.7
    max_det: int = 300


DEFAULT_NMS = NMS()


class Runner:
    """One detector at one batch size, which takes its images in turn from `images` (H, W, C) uint8, over and over."""

    def __init__(self, loaded: Loaded, images: Sequence[np.ndarray], imgsz, batch: int, nms: NMS):
        if batch < 1:
            raise UserError(f"batch={batch}: latency is measured at a batch of one image or more")
        size = loaded.size or tuple(check_imgsz(imgsz, stride=loaded.stride, min_dim=2))
        self.loaded, self.images, self.nms = loaded, images, nms
        self.size, self.batch = size, loaded.batch or batch
        self._letterbox = LetterBox(size, auto=False)
        self._turn = 0

    def at(self, batch: int) -> Runner:
        """The same model at another batch size."""
        return Runner(self.loaded, self.images, self.size, batch, self.nms)

    @torch.inference_mode()
    def once(self) -> tuple[float, float, float]:
        """Run the next batch: ms an image of pre-processing, inference and post-processing."""
        first, self._turn = self._turn * self.batch, self._turn + 1
        images = self.pick(first)
        stamps = [time_sync(self.loaded.device)]
        result = images
        for step in (self.preprocess, self.loaded.run, partial(self.postprocess, images)):
            result = step(result)
            stamps.append(time_sync(self.loaded.device))
        return tuple(1000 * float(seconds) / self.batch for seconds in np.diff(stamps))

    def pick(self, first: int = 0) -> list[np.ndarray]:
        """One batch of the images, from this one on; after the last comes the first."""
        return [self.images[i % len(self.images)] for i in range(first, first + self.batch)]

    def warm_up(self) -> None:
        """Run until memory, caches and clocks have settled."""
        begun, turns = time.perf_counter(), 0
        while turns < WARM_UP or time.perf_counter() - begun < WARM_UP_S:
            self.once()
            turns += 1
        self._turn = 0

    def letterbox(self, images: list[np.ndarray]) -> np.ndarray:
        """Images (H, W, C) as they are, scaled and padded: (B, *size, C) uint8."""
        return np.stack([self._letterbox(image=image) for image in images])

    def preprocess(self, images: list[np.ndarray]) -> Tensor:
        """Images (H, W, C), BGR where C is 3, as Ultralytics' predictor feeds them: (B, C, *size) RGB in [0, 1]."""
        x = torch.from_numpy(self.letterbox(images)).to(self.loaded.device)
        x = x.permute(0, 3, 1, 2).contiguous()
        x = x.flip(1) if x.shape[1] == 3 else x
        return x.to(self.loaded.dtype).div_(255)

    def postprocess(self, images: list[np.ndarray], outputs) -> list[Tensor]:
        """The detections (N, 6) of each image: xyxy in its own pixels, score, class."""
        rule = self.nms
        raw = outputs[0] if isinstance(outputs, list | tuple) else outputs
        found = non_max_suppression(raw.float(), rule.conf, rule.iou, max_det=rule.max_det)
        for detections, image in zip(found, images, strict=True):
            detections[:, :4] = scale_boxes(self.size, detections[:, :4], image.shape)
        return found


def sample(source, channels: int = 3, most: int = 32) -> list[np.ndarray]:
    """Up to `most` readable images (H, W, C) of a folder, file, glob or list of these, spread evenly.

    Fewer where they are so large that 512 MB are full; always one.

    Raises:
        UserError: None can be read.
    """
    paths = list_images(source)
    step = max(1, len(paths) // most)
    images, held = [], 0
    for path in [*paths[::step], *(p for i, p in enumerate(paths) if i % step)]:
        read = read_images([path], channels, 1)[0]
        images += read
        held += sum(image.nbytes for image in read)
        if len(images) == most or held >= _HELD:
            break
    if not images:
        what = "none of the images can be read" if paths else "there are no images"
        where = f"'{source}'" if isinstance(source, str | Path) else "the list of images"
        raise UserError(f"{what} in {where}; latency is measured on real images, of {channels} channels for this model")
    return images


def prepare(model_path, images, imgsz=640, batch: int = 1, device="", nms: NMS = DEFAULT_NMS, **how) -> Runner:
    """Load a detector for timing: .pt files in PyTorch, .onnx files in ONNX Runtime, others as Ultralytics does.

    A file that is bound to an image or batch size runs at that, whatever is asked for.

    Args:
        model_path: The file.
        images: Arrays (H, W, C) as from `sample`, or what `sample` takes.
        imgsz: Edge, or height and width, that images are letterboxed to.
        batch: Images at a time.
        device: As Ultralytics has it: cpu, 0, ...
        nms: What post-processing keeps.
        how: See ``load``: end2end, fp16.

    Raises:
        UserError: There is no such file, it is no detector, it does not load, or there are no images.
    """
    loaded = load(model_path, device, **how)
    arrays = isinstance(images, list | tuple) and len(images) and isinstance(images[0], np.ndarray)
    return Runner(loaded, images if arrays else sample(images, loaded.channels), imgsz, batch, nms)


def latencies(runners: Sequence[Runner], rounds: int = 20, verbose=False) -> list[Latency]:
    """Time runners in turns, for so many rounds, after each has warmed up; `verbose` shows a bar."""
    if rounds < 1:
        raise UserError(f"rounds={rounds}: latency needs one round or more")
    for runner in runners:
        runner.warm_up()
    turns = TQDM(range(rounds), desc="latency", disable=not verbose)
    times = np.array([[runner.once() for runner in runners] for _ in turns]).reshape(rounds, len(runners), 3)
    return [_latency(runner, times[:, i]) for i, runner in enumerate(runners)]


def _latency(runner: Runner, times: np.ndarray) -> Latency:
    columns = np.column_stack([times, times.sum(1)])
    spreads = [Spread(*map(float, np.percentile(column, (50, 25, 75)))) for column in columns.T]
    return Latency(runner.loaded.runtime, runner.loaded.hardware, runner.batch, len(times), *spreads)
