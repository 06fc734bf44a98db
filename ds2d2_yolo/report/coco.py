"""What anything that Ultralytics can load finds in a data set, in the original images, and what it is worth.

predicted = predict("best.pt", "my.yaml", imgsz=640)
print(rate(predicted.truth, predicted.found, predicted.max_det))
"""

from __future__ import annotations

import re
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from ultralytics.data.base import BaseDataset
from ultralytics.models.yolo.detect import DetectionValidator
from ultralytics.nn.autobackend import default_class_names
from ultralytics.utils import LOGGER
from ultralytics.utils.checks import check_imgsz

import ds2d2_yolo.restricted  # noqa: F401  so that checkpoints run nothing
from ds2d2_yolo.detectors.registry import DetectorModel
from ds2d2_yolo.errors import UserError, one_line
from ds2d2_yolo.plausible import check_class_numbers
from ds2d2_yolo.report.detections import Detections, Truth
from ds2d2_yolo.report.onnx_file import onnx_layout, onnx_parameters
from ds2d2_yolo.report.rating import Rating, rate
from ds2d2_yolo.stages import refuse_stage
from ds2d2_yolo.unhurried import whole_nms

_CHANNELS = re.compile(r"to have (\d+) channels, but got (\d+) channels")


@dataclass(frozen=True, kw_only=True)
class Evaluation(Rating):
    """What `evaluate` found: a `Rating`, and the `parameters` that inference carries (batch norms folded into the
    convolutions), None for formats that do not tell."""

    parameters: int | None


@dataclass(frozen=True)
class Predicted:
    """What `predict` found.

    parameters: as in `Evaluation`;  speed: ms an image of preprocess, inference and postprocess, as Ultralytics times
    them;  max_det: the most detections that an image was allowed;  imgsz: height and width that were asked for, or
    that the file is bound to;  floor, overlap: the score that a detection must exceed and the IoU of NMS, where these
    are part of the head (RetinaNet, Faster R-CNN);  rect: whether images came in batches of their own shapes;  doubt:
    what `check_classes` has to say;  damaged: images of the split that Ultralytics left out.
    """

    truth: Truth
    found: Detections
    parameters: int | None
    speed: dict[str, float]
    max_det: int
    imgsz: tuple[int, int]
    floor: float | None = None
    overlap: float | None = None
    rect: bool | None = None
    doubt: str | None = None
    damaged: tuple[str, ...] = ()


def evaluate(
    model_path, data_yaml, imgsz=640, batch=16, device="", split="val", conf=0.001, max_det=300, **overrides
) -> Evaluation:
    """Rates what `predict` finds, with the same arguments, as COCO does."""
    seen = predict(model_path, data_yaml, imgsz, batch, device, split, conf, max_det, **overrides)
    return Evaluation(**vars(rate(seen.truth, seen.found, seen.max_det)), parameters=seen.parameters)


def predict(
    model_path, data_yaml, imgsz=640, batch=16, device="", split="val", conf=0.001, max_det=300, **overrides
) -> Predicted:
    """Runs Ultralytics' own validation of a detector (.pt, .onnx, ...; also a loaded module) and keeps its detections.

    `max_det` is the most detections an image may have; where the data hold more objects in an image than the default
    300, Ultralytics raises it to that. `overrides` are further Ultralytics arguments (iou, rect, workers, verbose ...).
    Images and labels that Ultralytics finds damaged are named in the log and left out, as in training; what fails only
    when it is decoded raises FileNotFoundError. The images stand in the order of their paths, whatever the model.
    Nothing is written but the labels' cache. Raises UserError for a missing file, a model that is no detector, classes
    that do not fit and a split that the data lack.
    """
    named = isinstance(model_path, str | Path)
    for kind, path in (("model", model_path), ("data", data_yaml)):
        if (kind == "data" or named) and not Path(path).exists():
            raise UserError(f"{kind} file '{path}' does not exist")
    args = {"imgsz": imgsz, "batch": batch, "device": device, "split": split, "conf": conf, "max_det": max_det}
    args = {"rect": True, "plots": False, **args, **overrides, "data": str(data_yaml), "mode": "val", "task": "detect"}
    model = str(model_path) if named else model_path
    exported = onnx_layout(model) if named and Path(model).suffix == ".onnx" else None
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit\.", FutureWarning)
        validator = CocoValidator(save_dir=Path(folder), args={**args, "model": model if named else None})
        if exported and not exported.described:
            validator.fit_to(exported)
        try:
            validator(model=model)
        except RuntimeError as error:  # PyTorch's; on a GPU it comes before anything can be checked
            if channels := _CHANNELS.search(str(error)):
                check_channels(*map(int, channels.groups()), model)
            raise
    truth, found = validator.gathered()
    parameters = onnx_parameters(model) if exported else validator.parameters
    speed = {part: validator.speed[part] for part in ("preprocess", "inference", "postprocess")}
    size = validator.args.imgsz
    size = (size, size) if isinstance(size, int) else tuple(int(edge) for edge in size)
    own = {"rect": bool(validator.args.rect), "doubt": validator.doubt, "damaged": validator.damaged()}
    return Predicted(truth, found, parameters, speed, int(validator.args.max_det), size, *validator.inside, **own)


class CocoValidator(DetectionValidator):
    """Ultralytics' detection validator that keeps every detection, in pixels of the original image.

    Each is a row of six float32: 24 MB for a million.
    """

    outputs = None

    def fit_to(self, exported):
        """Goes by the shapes (`Layout`) of an ONNX file that says nothing else about itself."""
        if exported.batch not in (None, 1):
            raise UserError(
                f"model '{self.args.model}' takes {exported.batch} images at a time and does not say for what it is "
                "made; export it with batch=1 or dynamic=True"
            )
        self.args.imgsz = list(exported.imgsz) if exported.imgsz else self.args.imgsz
        self.outputs = exported.classes

    def get_dataloader(self, dataset_path, batch_size):
        """Square images of a size that the model's stride divides; Ultralytics itself goes by 32, and P6 has 64."""
        if isinstance(self.args.imgsz, int) and not self.args.rect:
            self.args.imgsz = check_imgsz(self.args.imgsz, stride=self.stride, max_dim=1)
        return super().get_dataloader(dataset_path, batch_size)

    def build_dataset(self, img_path, mode="val", batch=None):
        """Says why where there is nothing to rate."""
        try:
            return super().build_dataset(img_path, mode, batch)
        except FileNotFoundError as error:
            why = one_line(str(error.__cause__ or error)).partition(". Supported formats")[0]
            raise UserError(f"nothing to rate in the split '{self.args.split}' of '{self.args.data}': {why}") from error

    def init_metrics(self, model):
        """Checks that the model fits the data before a single image is run."""
        super().init_metrics(model)
        module = model.model if getattr(model, "format", "pt") == "pt" else None
        refuse_stage(module, f"model '{self.args.model}'")
        task = getattr(module if module is not None else model, "task", None)
        if task not in {None, "detect"}:
            raise UserError(f"model '{self.args.model}' is made for the task '{task}', not for detection")
        if self.args.single_cls and isinstance(module, DetectorModel):
            module.set_head_attr(agnostic_nms=True)  # as Ultralytics' own NMS does: all classes count as one
        check_channels(getattr(model, "channels", None), self.data.get("channels", 3), self.args.model)
        check_class_numbers(self.args.classes, self.data["names"])
        self.doubt = check_classes(model.names, self.data["names"], self.args.model, single=self.args.single_cls)
        if self.outputs not in (None, len(self.data["names"])):
            count = len(self.data["names"])
            raise UserError(f"model '{self.args.model}' tells {self.outputs} classes apart, and the data have {count}")
        self.parameters = None if module is None else sum(p.numel() for p in module.parameters())
        options = getattr(getattr(module, "model", [None])[-1], "options", None)
        self.inside = getattr(options, "score", None), getattr(options, "nms_iou", None)
        self._found, self._shapes = [], []
        # A model of one class knows those that were merged into it under another number
        self._wanted = None if self.args.single_cls and len(model.names) == 1 else self.args.classes
        self._order = list(self.dataloader.sampler)

    def postprocess(self, preds):
        """Looks at every image, however long that takes."""
        with whole_nms():
            return super().postprocess(preds)

    def update_metrics(self, preds, batch):
        """Keeps the batch's detections besides what Ultralytics counts itself; of the classes asked for alone."""
        if self._wanted is not None:  # as the labels are
            wanted = torch.as_tensor(self._wanted, device=self.device).flatten()
            kept = [torch.isin(pred["cls"], wanted.to(pred["cls"].dtype)) for pred in preds]
            preds = [{k: v[keep] for k, v in pred.items()} for pred, keep in zip(preds, kept, strict=True)]
        super().update_metrics(preds, batch)
        for i, pred in enumerate(preds):
            pred = self.scale_preds(self._prepare_pred(pred), self._prepare_batch(i, batch))
            columns = (pred["cls"][:, None], pred["conf"][:, None], pred["bboxes"])
            self._found.append(torch.cat([column.float() for column in columns], 1).cpu().numpy())
            self._shapes.append(batch["ori_shape"][i])

    def damaged(self) -> tuple[str, ...]:
        """The images of the split that are no part of what was rated."""
        dataset = self.dataloader.dataset
        whole = SimpleNamespace(prefix="", fraction=dataset.fraction)  # all that the method asks of a data set
        return tuple(sorted(set(BaseDataset.get_img_files(whole, dataset.img_path)) - set(dataset.im_files)))

    def gathered(self) -> tuple[Truth, Detections]:
        """All objects and detections, with the images by path."""
        labels, order = self.dataloader.dataset.labels, self._order[: len(self._shapes)]
        files = [str(labels[i]["im_file"]) for i in order]
        by_path = sorted(range(len(files)), key=files.__getitem__)
        shapes = np.array([self._shapes[i] for i in by_path], np.int64).reshape(-1, 2)
        names = {0: "item"} if self.args.single_cls else self.data["names"]  # as in training with single_cls
        real = truth_of([labels[order[i]] for i in by_path], shapes, names)
        found = [self._found[i] for i in by_path]
        image = np.repeat(np.arange(len(found)), [len(rows) for rows in found])
        rows = np.concatenate([np.zeros((0, 6), np.float32), *found])
        return real, Detections(image, rows[:, 0], rows[:, 1], rows[:, 2:])


def truth_of(labels, shapes, names) -> Truth:
    """Ultralytics' labels (cls (N, 1), bboxes (N, 4) xywh relative) of images of these heights and widths."""
    counts = [len(label["bboxes"]) for label in labels]
    image = np.repeat(np.arange(len(counts)), counts)
    box = np.concatenate([np.zeros((0, 4)), *(np.reshape(label["bboxes"], (-1, 4)) for label in labels)])
    box = box.astype(np.float64) * np.tile(shapes[image][:, ::-1], 2)
    box = _on_pixels(np.concatenate([box[:, :2] - box[:, 2:] / 2, box[:, :2] + box[:, 2:] / 2], 1), shapes[image])
    cls = np.concatenate([np.zeros(0), *(np.reshape(label["cls"], -1) for label in labels)]).astype(np.int64)
    known = {int(index): str(name) for index, name in dict(names).items()}
    return Truth(tuple(str(label["im_file"]) for label in labels), shapes, image, cls, box, known)


def _on_pixels(box, shapes):
    """Boxes (N, 4) whose edges lie on whole and half pixels again where they are no further off than six digits tell.

    Without, an object of 32 x 32 px is on either side of COCO's threshold, as its image's size has it.
    """
    whole = np.round(2 * box) / 2
    return np.where(np.abs(box - whole) <= 1e-6 * np.tile(shapes[:, ::-1], 2), whole, box)


def check_channels(taken: int | None, given: int, model=""):
    """UserError where a model takes images of other channels than the data have; None: it does not tell."""
    if taken not in (None, given):
        raise UserError(
            f"model '{model}' takes images of {taken} channel{'s' * (taken != 1)} and the data have {given} "
            "('channels' in the data file, 3 where it says nothing)"
        )


def check_classes(model_names, data_names, model="", single=False):
    """UserError where a class of the data can never be predicted, or stands at another index in the model.

    Returns:
        What to doubt, and says it: names that differ; None where all is well.
    """
    model_names, data_names = dict(model_names), dict(data_names)
    if single or model_names == default_class_names():
        return None  # an exported file without metadata: nothing to compare
    index = {name: i for i, name in model_names.items()}
    for i, name in data_names.items():
        if model_names.get(i) != name and index.get(name, i) != i:
            raise UserError(
                f"the classes of model '{model}' and of the data differ: '{name}' is number {index[name]} in the model "
                f"and {i} in the data; give the data file the model was trained with"
            )
    if len(model_names) < len(data_names):
        missing = ", ".join(f"'{data_names[i]}'" for i in sorted(set(data_names) - set(model_names))[:5])
        raise UserError(
            f"model '{model}' knows {len(model_names)} classes and the data {len(data_names)} (it lacks {missing}); "
            "give the data file the model was trained with"
        )
    other = [name for i, name in data_names.items() if model_names.get(i) != name]
    if not other:
        return None
    doubt = f"class names of model and data differ, taken by number: {', '.join(map(str, other[:5]))}"
    LOGGER.warning(doubt)
    return doubt


def ground_truth(labels, shapes, names) -> dict:
    """Ultralytics' labels (cls (N,1), bboxes (N,4) xywh relative) -> COCO data set in memory.

    `shapes`: (h, w) of the images by their number from 1 on; Ultralytics drops them from labels of rectangular batches.
    """
    images, annotations = [], []
    for image, label in enumerate(labels, 1):
        height, width = (int(v) for v in shapes[image])
        images.append({"id": image, "file_name": str(label["im_file"]), "height": height, "width": width})
        boxes = np.asarray(label["bboxes"], np.float64).reshape(-1, 4) * (width, height, width, height)
        boxes[:, :2] -= boxes[:, 2:] / 2
        for kind, box in zip(np.asarray(label["cls"]).reshape(-1).tolist(), boxes.tolist(), strict=True):
            annotations.append({"image_id": image, "category_id": int(kind), "bbox": box})
    categories = [{"id": int(i), "name": str(name)} for i, name in dict(names).items()]
    return {"images": images, "annotations": _numbered(annotations), "categories": categories}


def _numbered(annotations):
    """Ids from 1 (0 would mean unmatched) and the areas COCO's size ranges go by."""
    return [{**a, "id": i, "area": a["bbox"][2] * a["bbox"][3], "iscrowd": 0} for i, a in enumerate(annotations, 1)]
