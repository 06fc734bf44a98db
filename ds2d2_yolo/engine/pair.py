"""A trained student beside its teacher, with adapters and amplifiers, to be looked at (DS2D2)."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from ultralytics.nn.distill_model import DistillationModel
from ultralytics.nn.tasks import load_checkpoint
from ultralytics.utils import YAML
from ultralytics.utils.torch_utils import select_device

import ds2d2_yolo.restricted  # noqa: F401  so that checkpoints run nothing
import ds2d2_yolo.threads  # noqa: F401  so that no core is idle
from ds2d2_yolo.detectors.faster_rcnn import FasterRCNNDetect
from ds2d2_yolo.distill.alongside import ALONGSIDE
from ds2d2_yolo.distill.amplifiers import Amplifier, as_set
from ds2d2_yolo.distill.levels import Level, detect_head, neck_channels, shared_levels, tapped
from ds2d2_yolo.distill.teacher import load_teacher
from ds2d2_yolo.engine import settings
from ds2d2_yolo.engine.alongside import FILE
from ds2d2_yolo.engine.amplifier_file import HIGH_PASS, amplifier_head
from ds2d2_yolo.engine.runs import stage_folder
from ds2d2_yolo.errors import UserError
from ds2d2_yolo.method.implicit import match_statistics
from ds2d2_yolo.paths import folder_instead

METHOD = (*HIGH_PASS, "adapter", "align", "normalize", "branch", "published", "implicit_box")
_RIDGE = 1e-3  # of the mean power of a channel: keeps the fit finite where channels say the same


@dataclass
class Pair:
    """Two detectors whose maps can be compared.

    Attributes:
        student: In eval mode, as is the teacher.
        teacher: The same input channels as the student.
        paths: Their files.
        levels: Where they meet, finest first.
        adapters: From the student's channels to the teacher's, one a level; ``None``: to be fitted.
        own: DS2D2's settings, those of ``METHOD`` as the student was trained.
        full: The teacher's head as amplifier, ``None`` where it cannot be asked.
        high: The high-frequency amplifier, ``None`` where there is none.
        imgsz: Image size that the student was trained with.
        notes: Sentences on what was found and what was not.
    """

    student: nn.Module
    teacher: nn.Module
    paths: tuple[str, str]
    levels: list[Level]
    adapters: nn.ModuleList | None
    own: SimpleNamespace
    full: Amplifier | None = None
    high: Amplifier | None = None
    imgsz: int = 640
    notes: list[str] = field(default_factory=list)

    @property
    def channels(self) -> int:
        """Input channels."""
        return self.student.yaml.get("channels", 3)

    @property
    def stride(self) -> int:
        """Pixels of which both sides of an image must be multiples."""
        return max(int(m.stride.max()) for m in (self.student, self.teacher))

    @property
    def device(self) -> torch.device:
        """Where both models are."""
        return next(self.student.parameters()).device

    @torch.no_grad()
    def adapted(self, student: list[Tensor], teacher: list[Tensor]) -> list[Tensor]:
        """Return the student's maps of the shared levels, ``(B, C, H, W)`` each, as training compares them."""
        maps = [adapter(m) for adapter, m in zip(self.adapters, student, strict=True)]
        return [match_statistics(s, t) for s, t in zip(maps, teacher, strict=True)] if self.own.align else maps

    @torch.no_grad()
    def fit_adapters(self, images: list[Tensor]) -> None:
        """Fit every adapter to images ``(1, C, H, W)`` by least squares.

        Means are left out of the fit where training leaves them out of the comparison.
        """
        centred = self.own.align or self.own.normalize == "channel"
        sums = [None] * len(self.levels)
        for image in images:
            ours, theirs = (maps_of(m, image.to(self.device))[0] for m in (self.student, self.teacher))
            for i, level in enumerate(self.levels):
                x, y = (m.double().flatten(2)[0].T for m in (ours[level.student], theirs[level.teacher]))
                ones = x.new_ones(len(x), 1)
                both, left = torch.cat([x, y, ones], 1), torch.cat([x, ones], 1)
                sums[i] = left.T @ both if sums[i] is None else sums[i] + left.T @ both
        adapters = [_least_squares(s, centred) for s in sums]
        self.adapters = nn.ModuleList(adapters).to(self.device).requires_grad_(False)


def _least_squares(products: Tensor, centred: bool) -> nn.Conv2d:
    """The 1x1 convolution that turns x into y, from the sums of ``[x 1]^T [x y 1]``, (c + 1, c + d + 1)."""
    c, count = len(products) - 1, products[-1, -1]
    xx, xy = products[:c, :c] / count, products[:c, c:-1] / count
    if centred:
        mean = products[-1] / count
        xx, xy = xx - torch.outer(mean[:c], mean[:c]), xy - torch.outer(mean[:c], mean[c:-1])
    ridge = (_RIDGE * xx.diagonal().mean() + 1e-12) * torch.eye(c, dtype=xx.dtype, device=xx.device)
    weight = torch.linalg.solve(xx + ridge, xy).T
    adapter = nn.Conv2d(c, len(weight), 1, bias=False)
    adapter.weight.data = weight.float()[..., None, None]
    return adapter


@torch.no_grad()
def maps_of(model: nn.Module, image: Tensor) -> tuple[list[Tensor], object]:
    """Return the maps that a model's head receives for ``(B, C, H, W)``, and what the model returns."""
    with tapped(detect_head(model)) as maps:
        output = model(image)
    return list(maps), output


def load_pair(model, teacher=None, amplifier=None, changes: dict | None = None, device: str = "") -> Pair:
    """Load a student and its teacher, with what belongs to them.

    Args:
        model: A .pt file of the student. An unfinished run's ``last.pt`` holds the adapters as they were trained.
        teacher: The teacher's; default: the one that the student's run names.
        amplifier: The high-frequency amplifier's file; ``None`` or ``auto``: the one that the run names or that lies
            beside the teacher.
        changes: Settings of ``METHOD`` that replace those of the student's run.
        device: As Ultralytics takes it.

    Raises:
        UserError: A file that is missing or no detector, models that cannot meet, or an amplifier of another teacher.
    """
    device = select_device(device, verbose=False)
    student, projector, learned, run = _student(model)
    teacher = teacher or run.get("teacher")
    if not teacher:
        raise UserError(f"'{model}' was trained without a teacher, so there is nothing to compare; say teacher=best.pt")
    master = load_teacher(teacher, channels=student.yaml.get("channels", 3))
    own = SimpleNamespace(**{**settings.defaults(), **{k: run[k] for k in METHOD if k in run}, **(changes or {})})
    own.single_cls = bool(run.get("single_cls"))
    same = len(master.names) > 1 if own.single_cls else dict(student.names) == dict(master.names)
    asked = run.get("classes") if same else None
    numbers = asked if isinstance(asked, (list, tuple)) else [asked or 0]
    # A teacher of other data than the run's may not have so many
    own.classes = asked if max(numbers, default=0) < len(master.names) else None
    levels = shared_levels(student, master)
    size = run.get("imgsz", 640)
    pair = Pair(student, master, (str(model), str(teacher)), levels, None, own)
    pair.imgsz = size if isinstance(size, int) else max(size)
    _add_adapters(pair, projector, run.get("teacher"))
    if any(getattr(own, k) != run.get(k, getattr(own, k)) for k in HIGH_PASS):
        learned = None  # from other high frequencies
    _add_amplifiers(pair, amplifier, run.get("amplifier"), learned)
    if dict(student.names) != dict(master.names):
        pair.notes.append("The two were trained for different classes; their features are compared all the same.")
    pair.student.to(device)
    pair.teacher.to(device)
    for part in filter(None, (pair.full, pair.high)):
        part.to(lambda t: t.to(device))
    if pair.adapters is not None:
        pair.adapters.to(device)
    return pair


def _student(path) -> tuple[nn.Module, nn.ModuleList | None, nn.Module | None, dict]:
    """The model, adapters and amplifier where the checkpoint holds them, and the arguments of its run."""
    if not path:
        raise UserError("no model given; say model=student.pt")
    file = Path(str(path))
    if not file.is_file():
        missing = f"'{path}' does not exist; give the path of a trained .pt file"
        raise UserError(f"model {folder_instead(path) or missing}")
    if file.suffix != ".pt":
        raise UserError(f"model '{path}' is no .pt checkpoint: its feature maps cannot be reached")
    try:
        model, checkpoint = load_checkpoint(file)
    except UserError:
        raise
    except Exception as error:  # whatever a broken or foreign file makes the unpickler raise
        said = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(f"model '{path}' cannot be loaded: {said}") from error
    projector = learned = None
    if isinstance(model, DistillationModel):
        model._remove_feature_hooks()
        model, projector, learned = model.student_model, model.projector, getattr(model, "amplifier", None)
    detect_head(model, f"model '{path}'")
    beside = file.parent.parent / "args.yaml"
    run = YAML.load(beside) if file.parent.name == "weights" and beside.is_file() else {}
    return model.eval().requires_grad_(False), projector, learned, {**run, **(checkpoint.get("train_args") or {})}


def _add_adapters(pair: Pair, projector: nn.ModuleList | None, taught_by: str) -> None:
    ours, theirs = (neck_channels(m, pair.channels) for m in (pair.student, pair.teacher))
    wanted = [(ours[level.student], theirs[level.teacher]) for level in pair.levels]
    held = [] if projector is None else projector
    if [_channels(adapter, *one) for adapter, one in zip_longest(held, wanted, fillvalue=(0, 0))] == wanted:
        pair.adapters = projector.eval().requires_grad_(False)
        pair.notes.append(f"Student features pass the adapters that the run has trained so far, taught by {taught_by}.")
        return
    lost = pair.own.adapter == "always" or pair.own.published  # the run had some, also between equal channels
    if not lost and all(one == other for one, other in wanted):
        pair.adapters = nn.ModuleList(nn.Identity() for _ in wanted)
        pair.notes.append("Student and teacher have the same channels, and are compared without an adapter.")


def _channels(adapter: nn.Module, ours: int, theirs: int) -> tuple[int, int]:
    """What an adapter of this package takes and gives; an identity takes what there is."""
    if isinstance(adapter, nn.Conv2d):
        return adapter.in_channels, adapter.out_channels
    return (ours, ours) if isinstance(adapter, nn.Identity) else (0, 0)


def _add_amplifiers(pair: Pair, given, of_run, learned: nn.Module | None) -> None:
    head, places = detect_head(pair.teacher), [level.teacher for level in pair.levels]
    if type(head) is FasterRCNNDetect and type(detect_head(pair.student)) is not FasterRCNNDetect:
        pair.notes.append(
            "No prediction gaps: Faster R-CNN's heads are asked about the student's regions, and this student has none."
        )
        return
    try:
        pair.full = as_set(head, places, pair.own)
    except UserError as error:  # no head can be asked about maps that the student lacks
        pair.notes.append(f"No prediction gaps: {error}.")
        return
    high, note = _high_frequency_head(pair, given, of_run, learned)
    pair.notes.append(note)
    if high is not None:
        pair.high = as_set(high, places, pair.own, learned=True)


def _high_frequency_head(pair: Pair, given, of_run, learned: nn.Module | None) -> tuple[nn.Module | None, str]:
    asked = (pair.teacher, *settings.high_pass(pair.own))
    if given not in (None, "auto"):
        return amplifier_head(given, *asked), f"High-frequency amplifier: {given}."
    if learned is not None and learned.fingerprint == pair.teacher.fingerprint:  # another may have been named
        head = deepcopy(detect_head(pair.teacher)).float()
        head.load_state_dict(learned.model.head.state_dict())
        return head, "High-frequency amplifier: as far as it has learned alongside this student."
    student, teacher = map(Path, pair.paths)
    folders = (teacher.parent, stage_folder(student.absolute().parent.parent) / "weights")
    files = [p for folder in folders for p in folder.glob("*-amplifier-*.pt")]
    files = sorted(files, key=lambda p: p.stat().st_mtime, reverse=True)
    named = student.parent / FILE if of_run == ALONGSIDE else Path(of_run or "auto")
    named = [named] if named.is_file() else []
    fitting = []
    for path in (*named, *files):
        try:
            fitting.append((path, amplifier_head(path, *asked)))
        except UserError:
            continue  # of another teacher or wavelet
    if not fitting:
        return None, (
            f"No high-frequency amplifier of this teacher for {pair.own.wavelet} with {pair.own.wavelet_padding} "
            f"padding (high_frequency={pair.own.high_frequency}) lies in {folders[0]}, so its prediction gap is left "
            "out (training makes one, or amplifier=)."
        )
    path, head = fitting[0]
    more = f", the newest of {len(fitting)} that fit" if len(fitting) > 1 and not named else ""
    return head, f"High-frequency amplifier: {path}{more}."
