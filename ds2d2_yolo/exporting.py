"""Export: a trained detector in, a file of any format Ultralytics offers out, checked against PyTorch before it counts.

The file is made in a temporary folder beside the checkpoint and moved to its place at the end: a failed or interrupted
export leaves behind neither half a file nor a gap where a good one was.
"""

from __future__ import annotations

import shutil
import tempfile
import warnings
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from ultralytics import YOLO
from ultralytics.cfg import get_cfg
from ultralytics.data.utils import check_det_dataset
from ultralytics.nn.distill_model import DistillationModel
from ultralytics.utils import LOGGER
from ultralytics.utils.checks import check_imgsz
from ultralytics.utils.torch_utils import select_device

import ds2d2_yolo.threads  # noqa: F401  so that no core is idle
from ds2d2_yolo import formats
from ds2d2_yolo.detectors.exporting import fit_head
from ds2d2_yolo.detectors.registry import DetectorModel
from ds2d2_yolo.engine.signals import sigterm_interrupts
from ds2d2_yolo.errors import UserError, explain_device
from ds2d2_yolo.formats import EXACT, MUST_RUN, base_name, has_float32, is_calibrated, known_format, why_failed
from ds2d2_yolo.mistakes import OF_EXPORT, check_known
from ds2d2_yolo.paths import folder_instead
from ds2d2_yolo.plausible import LEGACY, check_data_file, check_settings, data_file
from ds2d2_yolo.report import exported, files
from ds2d2_yolo.report.agreement import SCORE_TOLERANCE, Selection
from ds2d2_yolo.restricted import trusted
from ds2d2_yolo.scripting import for_any_device
from ds2d2_yolo.stages import refuse_stage

CHECK_IMAGES = 8
PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
_SUFFIX = ".exported-student"  # Ultralytics replaces a model's suffix all over its path: one that no folder has


def run(settings: dict) -> Path:
    """Exports a detector and checks the file.

    Args:
        settings: `model` (a .pt checkpoint of a detector, an interrupted run's last.pt too: its student is exported),
            `format` (default onnx) and every other export argument of Ultralytics; and `images` (file, folder or glob
            to check on; default: validation images of the checkpoint's own data set, else drawn scenes), `check`
            (default true), `save` (true: a picture beside the file of what it finds in the image that shows most; or
            the picture's path), `trust` (true: the checkpoint may run what it brings along).

    Returns:
        The exported file or folder, beside the checkpoint.

    Raises:
        UserError: bad setting, format or checkpoint, missing packages, or a file that disagrees with PyTorch.
    """
    args, own = _read_settings(settings)
    with trusted(own["trust"]), sigterm_interrupts():
        return _run(args, own)


def _run(args: dict, own: dict) -> Path:
    given = Path(str(args.pop("model"))).expanduser()
    if hint := folder_instead(given):
        raise UserError(hint)
    checkpoint = given.absolute()
    yolo = _load(checkpoint)
    plan = _resolve(args, yolo)
    images = _images(own["images"], plan.data, yolo.model) if own["check"] or own["save"] else []
    try:
        with _reporting(checkpoint) as staging:
            return _export(yolo, checkpoint, staging, args, plan, own, images)
    except OSError as error:
        raise UserError(f"cannot write the export into {checkpoint.parent}: {exported.reason(error)}") from error


def _export(yolo, checkpoint: Path, staging: Path, args: dict, plan, own: dict, images: list[np.ndarray]) -> Path:
    """Makes and checks the file in `staging`, then moves it to the checkpoint's folder and draws what it finds."""
    made = _convert(yolo, staging, checkpoint.stem, args)
    if own["check"]:
        _check(made, yolo.model, images, plan)
    target = checkpoint.parent / made.relative_to(staging)
    entries = {made.relative_to(staging).parts[0]}
    if plan.format == "pb":  # Ultralytics looks for the graph's class names in the folder it was frozen from
        entries |= {folder.name for folder in staging.glob("*_saved_model")}
    for name in entries:
        files.take_place(staging / name, checkpoint.parent / name, staging)
    print(f"exported {target}")
    if own["save"]:
        picture = target.with_name(f"{target.stem}_check.jpg") if own["save"] is True else Path(str(own["save"]))
        _draw(target, images, plan, picture.expanduser(), staging)
    return target


@contextmanager
def _reporting(checkpoint: Path):
    """A temporary folder beside the checkpoint that Ultralytics' log speaks of as if it were the checkpoint's own.

    What would stand beside the line that says how it ended is left out: Ultralytics' report of success before the file
    is checked, of failure and the advertisement with it, and PyTorch's deprecation of TorchScript.
    """

    def edited(record) -> bool:
        text = record.getMessage()
        record.msg, record.args = text.replace(folder, str(checkpoint.parent)).replace(_SUFFIX, ".pt"), ()
        return not any(part in text for part in ("export failure", "Results saved to", "in the cloud with Ultralytics"))

    with tempfile.TemporaryDirectory(prefix=".export-", dir=checkpoint.parent) as folder:
        LOGGER.addFilter(edited)
        try:
            with warnings.catch_warnings(), for_any_device():
                warnings.filterwarnings("ignore", r"`torch\.jit\.", FutureWarning)
                warnings.filterwarnings("ignore", "Exporting to ONNX opset version")  # what comes of it is said
                yield Path(folder)
        finally:
            LOGGER.removeFilter(edited)


def _read_settings(settings: dict) -> tuple[dict, dict]:
    """The export arguments for Ultralytics, and this package's own settings."""
    check_settings(settings)
    check_known("export", settings)
    if not settings.get("model"):
        raise UserError("which checkpoint? Name it: model=runs/.../best.pt")
    own = {name: settings.get(name, default) for name, default in OF_EXPORT.items()}
    if not isinstance(own["check"], bool):
        raise UserError(f"check={own['check']}: must be True or False")
    if not isinstance(own["save"], bool) and Path(str(own["save"])).suffix.lower() not in PICTURES:
        raise UserError(f"save={own['save']}: must be True, False or the path of a picture, such as save=found.jpg")
    args = {name: value for name, value in settings.items() if name not in OF_EXPORT and name != "mode"}
    args["format"] = known_format(args.get("format") or "onnx")
    return args, own


def _load(checkpoint: Path) -> YOLO:
    """The checkpoint's detector; of a training state that holds a teacher too, the student."""
    if not checkpoint.is_file():
        raise UserError(f"model={checkpoint}: no such file")
    if checkpoint.suffix != ".pt":
        raise UserError(f"model={checkpoint}: only a trained checkpoint, a .pt file, can be exported")
    try:
        yolo = YOLO(checkpoint)
    except UserError:
        raise
    except Exception as error:  # whatever unpickling a foreign file raises
        why = exported.reason(error) if isinstance(error, ImportError) else "it is broken or not one of Ultralytics"
        raise UserError(f"model={checkpoint}: cannot be read as a checkpoint, {why}") from error
    if yolo.task != "detect":
        raise UserError(f"model={checkpoint}: a model for task {yolo.task}, but only detectors can be exported here")
    refuse_stage(yolo.model, f"model={checkpoint}")
    wrapper = yolo.model
    if isinstance(wrapper, DistillationModel):
        wrapper._remove_feature_hooks()  # as Ultralytics does where it releases a student
        student = wrapper.student_model.float().eval()
        student.args = wrapper.args
        student.task, student.names, student.stride = wrapper.task, wrapper.names, wrapper.stride
        yolo.model = student
    return yolo


def _resolve(args: dict, yolo: YOLO) -> SimpleNamespace:
    """Every setting as Ultralytics will see it, checked. In `args` renames `LEGACY` and fills in calibration data."""
    trained = yolo.model.args
    try:
        plan = get_cfg(overrides={"batch": 1, "imgsz": trained.get("imgsz", 640), **args, "mode": "export"})
        plan.imgsz = tuple(check_imgsz(plan.imgsz, stride=yolo.model.stride, min_dim=2))
    except (SyntaxError, TypeError, ValueError) as error:
        raise UserError(exported.reason(error)) from error
    if not isinstance(plan.batch, int) or plan.batch < 1:
        raise UserError(f"batch={plan.batch}: an export is made for a whole number of images, 1 or more")
    if LEGACY & args.keys():
        args["quantize"], args["nms"] = plan.quantize, plan.nms
        for name in LEGACY & args.keys():
            del args[name]
    if isinstance(yolo.model, DetectorModel):
        fit_head(yolo, args, plan)
    formats.check_nms_and_opset(args, plan, isinstance(yolo.model, DetectorModel) or yolo.model.end2end)
    formats.check_half_nms(plan, len(yolo.model.names))
    plan.conf = 0.25 if plan.conf is None else plan.conf
    if plan.data:
        plan.data = args["data"] = data_file(plan.data)
        check_data_file(plan.data, "val")
        if not is_calibrated(plan.format, plan.quantize):
            del args["data"]  # for the check alone
    else:
        plan.data = trained.get("data")
        if is_calibrated(plan.format, plan.quantize):
            if not _data(plan.data):
                raise UserError(f"{plan.format} with integers is calibrated on images: name a set, data=my.yaml")
            args["data"] = plan.data
    return plan


def _convert(yolo: YOLO, staging: Path, stem: str, args: dict) -> Path:
    """Ultralytics' own export, into `staging`."""
    yolo.model.pt_path = str(staging / (stem + _SUFFIX))  # what exports are named after
    try:
        made = Path(yolo.export(**args))
    except Exception as error:  # each of two dozen converters has its own ways to fail
        raise UserError(explain_device(error) or why_failed(args["format"], error)) from error
    if not made.exists():
        raise UserError(f"export to {args['format']} ended without a file")
    return made


def _data(yaml: str | None) -> list[Path]:
    """The validation images of a data set; none where it cannot be found any more."""
    if "://" in str(yaml):  # named by a checkpoint, which may come from anywhere, it would be fetched
        return []
    try:
        return exported.list_images(check_det_dataset(yaml, autodownload=False)["val"]) if yaml else []
    except Exception:  # missing, moved or broken: there are other images to check on
        return []


def _images(source, data: str | None, student: torch.nn.Module) -> list[np.ndarray]:
    """Images (H, W, C) to check on."""
    channels = student.yaml.get("channels", 3)
    if not source:
        images, _ = exported.read_images(_data(data), channels, CHECK_IMAGES)
        if not images:
            print("no readable image of the data set was found: checked on drawn scenes; images=FOLDER names others")
        return images or _scenes(channels)
    images, broken = exported.read_images(exported.list_images(source), channels, CHECK_IMAGES)
    for path in broken:
        print(f"skipped {path}: not a readable image of {channels} channels")
    if not images:
        raise UserError(f"images={source}: no readable image of {channels} channels there")
    return images


def _scenes(channels: int) -> list[np.ndarray]:
    """Drawn aerial scenes; channels beyond three repeat the first ones."""
    from ds2d2_yolo.datasets.scenes import draw_scene

    rng, bands = np.random.default_rng(0), np.arange(channels) % 3
    return [np.ascontiguousarray(draw_scene(rng, 640)[0][..., bands]) for _ in range(CHECK_IMAGES // 2)]


def _check(made: Path, student: torch.nn.Module, images: list[np.ndarray], plan) -> None:
    """Prints how far the file is from the student; raises UserError where that is further than rounding goes."""
    fmt = base_name(plan.format)
    full, device = has_float32(fmt, plan.quantize), _device(fmt, plan.device)
    slack = SCORE_TOLERANCE if full else 0.1
    rule = Selection(plan.iou, plan.conf, plan.max_det, plan.agnostic_nms, slack)
    try:
        agreement = exported.check(made, fmt, student, images, plan.imgsz, rule, device)
    except exported.CannotRun as error:
        if fmt in MUST_RUN:
            raise UserError(f"the exported {made.name} does not work: {error} (check=False keeps it anyway)") from error
        print(f"WARNING: {made.name} is not checked, it does not run here: {error}")
        return
    if agreement.close or not full:
        far = "" if full or agreement.near else "WARNING: "
        print(f"{far}{made.name}: {agreement}" + ("" if full else " (reduced precision, for information only)"))
    elif fmt in EXACT and device.type == "cpu":
        raise UserError(f"{made.name} disagrees with PyTorch, {agreement} (check=False keeps it anyway)")
    else:
        print(f"WARNING: {made.name}: {agreement}; float32 would be closer, its runtime seems to compute with less")


def _device(fmt: str, device) -> torch.device:
    """Where the exported file runs: where it was made; TensorRT on the first GPU."""
    if fmt == "engine" and (device is None or "dla" in str(device)):
        device = 0
    return torch.device("cpu") if device is None else select_device(device, verbose=False)


def _draw(target: Path, images: list[np.ndarray], plan, picture: Path, staging: Path) -> None:
    """The picture of what the exported file finds in the image that shows most."""
    draft = staging / f"picture{picture.suffix}"
    try:
        own = {key: getattr(plan, key) for key in ("imgsz", "conf", "iou", "max_det", "agnostic_nms")}
        count = exported.draw(target, images, {**own, "device": _device(base_name(plan.format), plan.device)}, draft)
        picture.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(draft, picture)
    except Exception as error:  # every runtime has its own ways to fail
        raise UserError(f"save={picture}: no picture, {exported.reason(error)}; {target} is complete") from error
    print(f"{count} boxes drawn into {picture}")
