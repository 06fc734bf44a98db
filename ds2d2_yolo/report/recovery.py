"""What distillation bought: the share of the teacher's lead over a plain student that a distilled student closed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ds2d2_yolo.errors import UserError
from ds2d2_yolo.report.seeds import Group, figure, groups, summarise

FIGURES = {
    "ap": "AP",
    "ap50": "AP50",
    "ap75": "AP75",
    "ap_small": "AP small",
    "ap_medium": "AP medium",
    "ap_large": "AP large",
    "ap50_small": "AP50 small",
    "ap50_medium": "AP50 medium",
    "ap50_large": "AP50 large",
}
LEAD = 1.0  # points; a share of less is mostly noise
NO_BASELINE = (
    "There is no baseline among the models: add the student trained plain (a run named plain...), or say baseline=..., "
    "for gains and the share of the teacher's lead that was closed."
)
_TEACHER = re.compile(r"teacher", re.I)
_BASELINE = re.compile(r"(?<![a-z])plain|baseline", re.I)
_STUDENT = re.compile(r"student|distil", re.I)


@dataclass(frozen=True)
class Roles:
    """Who is compared with whom, None where nobody is; all that is neither teacher nor baseline is a student.

    `notes`: what could not be told from the names, a sentence each; `others`: further files of the teacher's or the
    baseline's own training, such as its export: rated and timed, and compared with nobody.
    """

    teacher: Group | None
    baseline: Group | None
    students: tuple[Group, ...]
    notes: tuple[str, ...] = ()
    others: tuple[Group, ...] = ()

    def of(self, name: str) -> str:
        """The role of a model: "teacher", "baseline", "student", or "" where there is nobody to compare it with."""
        for role in ("teacher", "baseline"):
            group = getattr(self, role)
            if group and name in group.models:
                return role
        compared = (self.teacher or self.baseline) and any(name in group.models for group in self.students)
        return "student" if compared else ""


def roles(
    names: Sequence[str],
    paths: Sequence[str | Path] | None = None,
    teacher: str | Path | None = None,
    baseline: str | Path | None = None,
) -> Roles:
    """Who is teacher, who the plain student, and who the students that are measured by them.

    A model that is named as such is; else the one whose file or run folder is called so ("teacher"; "plain" or
    "baseline"). Models that differ by their seed alone share a role (see ``seeds.groups``).

    Args:
        names: What the models are called.
        paths: Their files.
        teacher: A name, a file or a group's name.
        baseline: Likewise.

    Raises:
        UserError: The teacher or the baseline is none of the models, or one is both.
    """
    paths = [str(path) for path in (paths or names)]
    every, notes = groups(names, paths), []
    called = dict(zip((str(name) for name in names), paths, strict=True))
    plain = _named("baseline", baseline, every, called) or _guess(
        "baseline", [g for g in every if _BASELINE.search(g.recipe)], called, notes
    )
    chosen = _named("teacher", teacher, every, called)
    if chosen is None:
        candidates = [g for g in every if _TEACHER.search(g.recipe) and g != plain]
        candidates = [g for g in candidates if not _BASELINE.search(g.recipe) and not _STUDENT.search(g.recipe)]
        chosen = _guess("teacher", candidates, called, notes)
    if chosen and chosen == plain and not baseline:  # the teacher was named, and happens to be called plain
        plain = None
    if chosen and chosen == plain:
        raise UserError(f"'{chosen.name}' cannot be both the teacher and the baseline")
    left = [g for g in every if g not in (chosen, plain)]
    others = [g for g in left if any(side and _same_training(g, side, called) for side in (chosen, plain))]
    if baseline and len(others) == len(left):  # asked for: a checkpoint against its own export
        others = []
    students = tuple(g for g in left if g not in others)
    if chosen and plain is None and students and not notes:  # else they say what keeps the baseline from being known
        notes.append(NO_BASELINE)
    return Roles(chosen, plain, students, tuple(notes), tuple(others))


def _same_training(group: Group, side: Group, paths: Mapping[str, str]) -> bool:
    """Whether they are files of one run, lying together or called teacher or plain alike: best.pt and its export."""
    folders, own = ({Path(paths[name]).parent for name in one.models} for one in (side, group))
    called = _TEACHER.search(group.recipe) or _BASELINE.search(group.recipe)
    return group.recipe == side.recipe and bool(own <= folders or (called and group.ending != side.ending))


def _named(role: str, wanted, every: tuple[Group, ...], paths: Mapping[str, str]) -> Group | None:
    if not wanted:
        return None
    wanted = str(wanted)
    for group in every:
        if wanted in (group.name, *group.models, *(paths[name] for name in group.models)):
            return group
    raise UserError(f"{role} '{wanted}' is none of the compared models ({', '.join(paths)})")


def _guess(role: str, candidates: list[Group], paths: Mapping[str, str], notes: list[str]) -> Group | None:
    """The only candidate, or the only one in PyTorch where the others are of its own training, such as its export."""
    first = next((g for g in candidates if g.ending in ("", ".pt")), candidates[0] if candidates else None)
    if all(g == first or _same_training(g, first, paths) for g in candidates):
        return first
    listed = ", ".join(f"'{g.name}'" for g in candidates)
    notes.append(f"Several models are called {role} ({listed}); say which is meant: {role}=...")
    return None


@dataclass(frozen=True)
class Share:
    """What the three reach in one figure (`label`), in points, and the `share` (1: all) of the teacher's lead over the
    baseline that the student closed; None, and `why`, where that says nothing."""

    label: str
    teacher: float | None
    baseline: float | None
    student: float | None
    share: float | None
    why: str = ""

    @property
    def gain(self) -> float | None:
        """Student minus baseline."""
        return None if self.student is None or self.baseline is None else self.student - self.baseline


@dataclass(frozen=True)
class Recovery:
    """Shares by figure (``FIGURES``), and of AP by class name in the order of the classes."""

    figures: dict[str, Share]
    classes: tuple[Share, ...]

    def as_dict(self) -> dict:
        """Plain values, for JSON."""
        return asdict(self)


def recovered(teacher, plain, student, threshold: float = LEAD) -> Recovery:
    """Share of the teacher's lead that the student closed, in all, by size and by class.

    Args:
        teacher: A rating or its ``as_dict()``, or several that differ by their seed: the means count.
        plain: Likewise, of the student trained without a teacher.
        student: Likewise, of the distilled one.
        threshold: The least lead, in points, of which a share is given.
    """
    sides = [_several(side) for side in (teacher, plain, student)]
    figures = {
        name: share(title, *(summarise(figure(row, name) for row in side).mean for side in sides), threshold)
        for name, title in FIGURES.items()
    }
    by_class = [[{_get(kind, "index"): kind for kind in _get(row, "classes") or ()} for row in side] for side in sides]
    shares = []
    for index, kind in by_class[2][0].items():
        values = (summarise(figure(row.get(index, {}), "ap") for row in side).mean for side in by_class)
        shares.append(share(str(_get(kind, "name")), *values, threshold))
    return Recovery(figures, tuple(shares))


def share(label: str, teacher: float | None, plain: float | None, student: float | None, threshold=LEAD) -> Share:
    """The share of one lead, or why there is none."""
    values = (label, teacher, plain, student)
    if None in values:
        return Share(*values, None, "no objects")
    lead = teacher - plain
    if lead <= 0:
        return Share(
            *values, None, f"the teacher is {-lead:.1f} points behind" if lead < 0 else "the teacher is not ahead"
        )
    if lead < threshold:
        return Share(*values, None, f"the teacher leads by {lead:.2g} points only")
    return Share(*values, (student - plain) / lead)


def _several(side) -> list:
    return list(side) if isinstance(side, Sequence) else [side]


def _get(row, name):
    return row.get(name) if isinstance(row, Mapping) else getattr(row, name, None)
