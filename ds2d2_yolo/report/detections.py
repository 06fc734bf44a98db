"""Objects and detections of a split as plain arrays: what every figure of a report is computed from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Truth:
    """The objects of a split, in pixels of the original images.

    `images`: the files; `shapes`: (images, 2) height and width; `image`: (N,) place in `images`; `cls`: (N,) class
    index; `box`: (N, 4) xyxy float64; `names`: class names by index.
    """

    images: tuple[str, ...]
    shapes: np.ndarray
    image: np.ndarray
    cls: np.ndarray
    box: np.ndarray
    names: dict[int, str]


@dataclass(frozen=True)
class Detections:
    """What one model finds, in any order: `image` (N,) place in `Truth.images`, `cls` (N,), `score` (N,) in [0, 1] and
    `box` (N, 4) xyxy in pixels of the original image."""

    image: np.ndarray
    cls: np.ndarray
    score: np.ndarray
    box: np.ndarray

    def __len__(self) -> int:
        return len(self.score)

    def __post_init__(self):
        for name, dtype in (("image", np.int32), ("cls", np.int32), ("score", np.float32)):
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype).reshape(-1))
        object.__setattr__(self, "box", np.asarray(self.box, np.float32).reshape(-1, 4))

    def of(self, image: int) -> Detections:
        """Those of one image."""
        chosen = self.image == image
        return Detections(self.image[chosen], self.cls[chosen], self.score[chosen], self.box[chosen])

    def save(self, path: str | Path) -> None:
        """Write them as a compressed .npz; the file appears whole or not at all."""
        path = Path(path)
        draft = path.with_name(f".{path.stem}.part.npz")
        try:
            np.savez_compressed(draft, image=self.image, cls=self.cls, score=self.score, box=self.box)
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | Path) -> Detections:
        """Read what `save` wrote; ValueError or OSError where the file is none of it."""
        with np.load(path, allow_pickle=False) as data:
            return cls(*(data[name] for name in ("image", "cls", "score", "box")))
