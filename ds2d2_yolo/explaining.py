"""What the method sees in one image: bands, scale weight, feature differences and prediction gaps of a pair (DS2D2).

python val.py explain=image.jpg model=student.pt teacher=best.pt
"""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

import torch
from torch import Tensor
from ultralytics.utils import LOGGER
from ultralytics.utils.checks import check_imgsz
from ultralytics.utils.nms import non_max_suppression

from ds2d2_yolo.detectors.faster_rcnn import FasterRCNNDetect, convert_to_rows
from ds2d2_yolo.distill.amplifiers import Step
from ds2d2_yolo.distill.gaps import gap_maps
from ds2d2_yolo.distill.levels import detect_head
from ds2d2_yolo.engine import settings as method_settings
from ds2d2_yolo.engine.pair import METHOD, Pair, load_pair, maps_of
from ds2d2_yolo.errors import UserError
from ds2d2_yolo.method.explicit import channel_scale, standardized
from ds2d2_yolo.method.scale_weight import density_independent_scale_weight
from ds2d2_yolo.method.wavelet import dwt2, high_frequency_map
from ds2d2_yolo.plausible import check_settings
from ds2d2_yolo.report.bands import Bands, Explanation, LevelView, draw, table
from ds2d2_yolo.report.pictures import picture_folder, place_for
from ds2d2_yolo.report.seen import Seen, neighbours, see

OWN = ("explain", "model", "teacher", "imgsz", "level", "amplifier", "device", "save_dir", "project", "name")
SURE = 0.25  # confidence from which a teacher's detection stands for an object that is not labelled
FITTED_ON = 16  # images from which a missing adapter is fitted


def explain(settings: dict) -> Path:
    """Draw what the method sees in an image, say in words how it was made, and return the picture's path.

    Args:
        settings: ``explain`` (the image), ``model`` (a student's .pt), ``teacher`` (default: the one that the student's
            run names), ``imgsz`` (default: the student's), ``level`` (a stride in pixels, several joined by commas;
            default: every shared one), ``amplifier`` (a file; default: the one beside the teacher), ``save_dir`` or
            ``project`` and ``name`` (default: runs/explain), ``device``, and DS2D2's settings of how features are
            compared (default: those of the student's run).

    Raises:
        UserError: An unknown setting, an image or a model that cannot be read, or models that cannot meet.
    """
    given = _known({k: v for k, v in settings.items() if v not in (None, "")})
    image = Path(str(given["explain"]))
    see(image)  # before the models are loaded
    pair = load_pair(
        given.get("model"),
        given.get("teacher"),
        given.get("amplifier"),
        {k: given[k] for k in METHOD if k in given},
        str(given.get("device", "")),
    )
    seen = see(image, pair.channels, _size(given.get("imgsz", pair.imgsz), pair.stride), pair.stride)
    chosen = _chosen(given.get("level"), [level.stride for level in pair.levels])
    if pair.adapters is None:
        _fit_adapters(pair, image, seen)
    LOGGER.info(f"looking at {image}")
    explanation = explained(pair, seen, f"{image}", chosen)
    path = draw(explanation, _target(image, picture_folder(given, "explain")))
    print("\n".join(["", *explanation.notes, "", table(explanation), "", f"picture  {path}"]))
    return path


def _target(image: Path, folder: Path) -> Path:
    """The picture's file; among the images themselves it takes no name that one of them may have, and no other's."""
    name = f"{image.stem}{'-explained' if folder.resolve() == image.parent.resolve() else ''}.png"
    return place_for(folder / name, image)


def _known(settings: dict) -> dict:
    check_settings(settings)
    for key in settings:
        if key not in (*OWN, *METHOD):
            nearest = get_close_matches(key, (*OWN, *METHOD))
            hint = f"; did you mean {' or '.join(nearest)}?" if nearest else f"; it knows {', '.join((*OWN, *METHOD))}"
            raise UserError(f"explain= does not know the setting '{key}'{hint}")
    return method_settings.check({k: v for k, v in settings.items() if k in METHOD}) | {
        k: v for k, v in settings.items() if k in OWN
    }


def _size(imgsz, stride: int) -> int:
    imgsz = max(imgsz) if isinstance(imgsz, (list, tuple)) and imgsz else imgsz
    if isinstance(imgsz, bool) or not isinstance(imgsz, int) or imgsz < 1:
        raise UserError(f"imgsz={imgsz} must be a whole number of pixels, such as imgsz=640")
    return check_imgsz(imgsz, stride, max_dim=1)


def _chosen(level, strides: list[int]) -> list[int]:
    """Places of the levels to draw."""
    if level is None:
        return list(range(len(strides)))
    wanted = [str(v).strip() for v in (level if isinstance(level, (list, tuple)) else str(level).split(","))]
    for stride in wanted or [""]:
        if stride not in map(str, strides):
            raise UserError(
                f"level={stride} is no stride that both models have; those are {', '.join(map(str, strides))}"
            )
    return [i for i, stride in enumerate(strides) if str(stride) in wanted]


def _fit_adapters(pair: Pair, image: Path, seen: Seen) -> None:
    LOGGER.info(f"fitting adapters to up to {FITTED_ON} other images of {image.parent}")
    others = []
    for file in neighbours(image, FITTED_ON):
        try:
            others.append(see(file, pair.channels, max(seen.tensor.shape[2:]), pair.stride).tensor)
        except UserError:
            continue  # one of other channels, or a broken one
    pair.fit_adapters(others or [seen.tensor])
    where = (
        f"{len(others)} other images of its folder" if others else "this image itself, so differences look too small"
    )
    pair.notes.append(
        "The checkpoint holds no adapters from student to teacher channels (a released one never does; an unfinished "
        f"run's last.pt does): they were fitted by least squares to {where}."
    )


def explained(pair: Pair, seen: Seen, title: str, chosen: list[int]) -> Explanation:
    """Return what a pair sees in an image, at the ``chosen`` ones of its shared levels."""
    image = seen.tensor.to(pair.device)
    student, output = maps_of(pair.student, image)
    teacher, judged = maps_of(pair.teacher, image)
    boxes, notes = _objects(pair, seen, judged)
    student = [student[level.student] for level in pair.levels]
    teacher = [teacher[level.teacher] for level in pair.levels]
    adapted = pair.adapted(student, teacher)
    step = Step(_batch(image, boxes), _regions(pair, output))
    asked = student if pair.own.published else adapted
    gaps = {"gap_full": [None] * len(pair.levels), "gap_high": [None] * len(pair.levels)}
    if pair.full is not None:
        gaps["gap_full"] = gap_maps(pair.full, asked, teacher, step)
    if pair.high is not None:
        how = method_settings.high_pass(pair.own)
        high = [[high_frequency_map(m, *how) for m in s] for s in (asked, teacher)]
        gaps["gap_high"] = gap_maps(pair.high, *high, step)
    views = tuple(
        _view(pair, i, adapted[i], teacher[i], boxes, image.shape[2:], {k: v[i] for k, v in gaps.items()})
        for i in chosen
    )
    size = f"Seen at {image.shape[3]} x {image.shape[2]} px by student {pair.paths[0]} and teacher {pair.paths[1]}."
    return Explanation(title, seen.picture, seen.content, boxes.cpu().numpy(), views, (size, *notes, *pair.notes))


def _objects(pair: Pair, seen: Seen, judged) -> tuple[Tensor, list[str]]:
    """The boxes that the scale weight is made of, and where they come from."""
    if seen.boxes is not None:
        return seen.boxes.to(pair.device), [f"Objects: {len(seen.boxes)} from {seen.labels}."]
    head = detect_head(pair.teacher)
    ready = getattr(pair.teacher, "end2end", False)
    found = non_max_suppression(judged, SURE, 0.7, nc=head.nc, end2end=ready)[0][:, :4]
    there = "cannot be read as labels" if seen.labels.is_file() else "is not there"
    return found, [f"Objects: the teacher's {len(found)} detections above {SURE}, for {seen.labels} {there}."]


def _batch(image: Tensor, boxes: Tensor) -> dict:
    height, width = image.shape[2:]
    scale = boxes.new_tensor([width, height])
    relative = torch.cat([(boxes[:, :2] + boxes[:, 2:]) / 2 / scale, (boxes[:, 2:] - boxes[:, :2]) / scale], 1)
    nothing = boxes.new_zeros(len(boxes))
    return {"img": image, "bboxes": relative, "cls": nothing[:, None], "batch_idx": nothing}


def _regions(pair: Pair, output) -> dict:
    """What Faster R-CNN's box head is asked about: the regions that the student proposes."""
    head = detect_head(pair.student)
    if type(head) is not FasterRCNNDetect:
        return {}
    o = head.options
    rois, taken = head.propose(output[1], o.test_proposals_before_nms, o.test_proposals)
    return {"rois": convert_to_rows([r[t] for r, t in zip(rois, taken, strict=True)])}


@torch.no_grad()
def _view(pair: Pair, i: int, student: Tensor, teacher: Tensor, boxes: Tensor, size, gaps: dict) -> LevelView:
    own = pair.own
    s, t = _comparable(student.float(), teacher.float(), own.normalize)
    bands = [dwt2(m, own.wavelet, own.wavelet_padding) for m in (s, t, s - t)]
    (s_low, s_high), (t_low, t_high), (low, high) = bands
    image = torch.zeros(len(boxes), dtype=torch.long, device=boxes.device)
    maps = {"difference": _rms(s - t), "low_difference": _rms(low), "high_difference": _rms(high)}
    maps |= {k: None if v is None else v[0] for k, v in gaps.items()}
    ratios = {}
    for name, values in maps.items():
        if values is not None:
            covered = density_independent_scale_weight(boxes, image, 1, size, values.shape)[0, 0] > 1
            ratios[name] = _ratio(values, covered)
    return LevelView(
        pair.levels[i].stride,
        Bands(*(_rms(m).cpu().numpy() for m in (t, t_low, t_high))),
        Bands(*(_rms(m).cpu().numpy() for m in (s, s_low, s_high))),
        density_independent_scale_weight(boxes, image, 1, size, low.shape[2:])[0, 0].cpu().numpy(),
        **{k: None if v is None else v.cpu().numpy() for k, v in maps.items()},
        on_objects=ratios,
    )


def _comparable(student: Tensor, teacher: Tensor, normalize: str) -> tuple[Tensor, Tensor]:
    """Both sides on the scale on which the explicit stream compares them."""
    if normalize == "channel":
        return standardized(student), standardized(teacher)
    if normalize == "teacher":
        return student / channel_scale(teacher), teacher / channel_scale(teacher)
    return student, teacher


def _rms(x: Tensor) -> Tensor:
    """Root mean square over channels, and bands where there are some, of the one image: (h, w)."""
    return x.square().flatten(1, -3).mean(1).sqrt()[0]


def _ratio(values: Tensor, covered: Tensor) -> float | None:
    if covered.all() or not covered.any():
        return None
    background = values[~covered].mean().item()
    return values[covered].mean().item() / background if background > 0 else None
