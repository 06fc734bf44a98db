"""What the export of a detector fixed in its file, so that no setting of a run changes it."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ultralytics.nn.backends.base import BaseBackend

_NMS_HEADS = ("RetinaNetDetect", "FasterRCNNDetect")  # of this package
DEFAULT_CONF = 0.25  # of Ultralytics' export with NMS


@dataclass(frozen=True)
class Fixed:
    """What an exported file settles by itself.

    Attributes:
        nms: Whether NMS is inside.
        final: Whether what it gives are detections, with NMS inside or by a head that needs none.
        conf: What that NMS does not let pass: scores up to this. None: not known.
        most: Detections an image that it gives at the most. None: as many as are asked for, or not known.
        head: Of this package's detectors, whose NMS is a part of them.
        score: What such an NMS does not let pass: scores up to this. None: no such head, or an older file.
        overlap: The IoU from which on it drops a box, likewise.
    """

    nms: bool = False
    conf: float | None = None
    most: int | None = None
    final: bool = False
    head: str | None = None
    score: float | None = None
    overlap: float | None = None

    def low_scores_lost(self, conf: float) -> str | None:
        """Return one line if detections of less than ``conf`` are asked for and the file has none of them."""
        known = self.conf is not None
        if not self.nms or (self.conf if known else DEFAULT_CONF) <= np.float32(conf):
            return None
        floor = f"scores up to {self.conf:g}" if known else f"scores below its own threshold, {DEFAULT_CONF} unless set"
        low = "come out too low" if known else "come out too low unless that is less"
        return (
            f"the model was exported with nms=True, which drops {floor}: conf={conf:g} cannot bring them back, so "
            f"recall and AP {low}; export it without nms=True"
        )

    def unheard(self, asked: dict) -> str | None:
        """Return one line if settings (None: not given) are for an NMS that has the numbers of its export."""
        own = {"conf": self.score, "iou": self.overlap}
        lost = {k: v for k, v in asked.items() if v is not None and v != own[k]}
        if own["conf"] is not None and lost.get("conf", 0.0) > own["conf"]:
            del lost["conf"]  # a higher one is heard
        if not (self.head and lost):
            return None
        given = " ".join(f"{key}={value:g}" for key, value in lost.items())
        rules = "the conf and iou of its export" if self.score is None else f"conf={self.score:g} iou={self.overlap:g}"
        return (
            f"NMS is part of the exported model ({self.head}), with {rules}: {given} cannot bring back what that "
            f"drops; export it anew with {given}"
        )

    def crowded(self, counts, max_det: int, what: str = "tiles") -> str | None:
        """Return one line if tiles have as many detections (``counts``) as the file gives, and more are wanted."""
        if self.most is None or max_det <= self.most or not (full := int((counts >= self.most).sum())):
            return None
        return (
            f"{self.most} detections in {full} of {len(counts)} {what}, the most that the exported model gives, "
            f"whatever max_det={max_det} says: objects may be missing; export it with a larger max_det, or without NMS"
        )


def fixed_by_export(path: str | Path) -> Fixed:
    """Read what a detector's whole file settles by itself: nothing where it is a .pt file."""
    path = Path(path)
    if path.suffix.lower() == ".pt":
        return Fixed()
    metadata = BaseBackend.read_metadata(path)
    args = metadata.get("args") or {}
    nms = bool((ast.literal_eval(args) if isinstance(args, str) else args).get("nms"))
    final = nms or str(metadata.get("end2end")) == "True"
    head = metadata["head"] if metadata.get("head") in _NMS_HEADS else None
    told = head and "score" in metadata
    rules = (head, float(metadata["score"]), float(metadata["nms_iou"])) if told else (head, None, None)
    if not final or path.suffix.lower() != ".onnx":
        return Fixed(nms, None, None, final, *rules)
    import onnx

    graph = onnx.load(str(path), load_external_data=False).graph
    most = graph.output[0].type.tensor_type.shape.dim[1].dim_value  # (images, detections, 6)
    return Fixed(nms, _threshold(graph) if nms else None, most or None, final, *rules)


def _threshold(graph) -> float | None:
    """The number that scores are compared with first; the metadata do not tell it."""
    from onnx import numpy_helper

    known = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            known[node.output[0]] = next((a.t for a in node.attribute if a.name == "value"), None)
        elif node.op_type == "Greater" and (bound := known.get(node.input[1])) is not None:
            value = numpy_helper.to_array(bound)
            return float(value.reshape(-1)[0]) if value.size == 1 else None
    return None
