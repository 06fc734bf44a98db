"""The report as one HTML file that needs nothing else: tables, charts and pictures, opened from a disk, offline.

write_report("report.html", Report(data="my.yaml", models=(Model("teacher", "teacher", rating.as_dict()), ...)))
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import jinja2
from markupsafe import Markup

from ds2d2_yolo.errors import UserError
from ds2d2_yolo.report import files
from ds2d2_yolo.report.examples import Illustration
from ds2d2_yolo.report.recovery import Share
from ds2d2_yolo.report.sections import sections

TEMPLATES = Path(__file__).parent / "templates"
LIMIT = 5_000_000  # bytes of the file


@dataclass(frozen=True)
class Model:
    """A row of the report.

    `role` is "teacher", "baseline", "student" or ""; `rating` and `cost` are `Rating.as_dict()` and `Cost.as_dict()`
    (points 0 to 100; None where unknown); `group` is what the seeds of one setting share, its name where there is one.
    """

    name: str
    role: str = ""
    rating: Mapping = field(default_factory=dict)
    cost: Mapping = field(default_factory=dict)
    group: str = ""


@dataclass(frozen=True)
class Recovery:
    """The gap that one student (or the mean of its seeds) recovered, over all, by size and by class."""

    student: str
    shares: tuple[Share, ...]


@dataclass(frozen=True)
class Verdict:
    """A difference of two models in points with its interval; `verdict` is "ahead", "behind", "within noise" or why
    there is none."""

    student: str
    baseline: str
    measure: str
    difference: float
    low: float | None
    high: float | None
    verdict: str


@dataclass(frozen=True)
class Listing:
    """A further table of ready texts, such as mean and spread over the seeds."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


@dataclass(frozen=True)
class Report:
    """All that the page shows; what is empty is left out.

    `settings` and `notes` are shown as they are. `intervals`: by student (its group's name) and class index, a mapping
    with "low" and "high", the interval of the class's gain in AP. `level` is that of all intervals.
    """

    data: str
    models: tuple[Model, ...]
    title: str = "Detectors side by side"
    settings: Mapping[str, object] = field(default_factory=dict)
    recovered: tuple[Recovery, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    level: float = 0.95
    intervals: Mapping[str, Mapping[int, Mapping]] = field(default_factory=dict)
    listings: tuple[Listing, ...] = ()
    illustration: Illustration = field(default_factory=Illustration)
    notes: tuple[str, ...] = ()


def write_report(path: str | Path, report: Report, limit: int = LIMIT) -> Path:
    """Write the page, whole or not at all, and return its path.

    Pictures are left out from the last on until the file has at most `limit` bytes; the page says so.
    Raises UserError where the file cannot be written.
    """
    path, page, shown = Path(path), render(report), report.illustration
    for kept in range(len(shown.examples) - 1, -1, -1):
        if len(page) <= limit:
            break
        note = f"{len(shown.examples) - kept} of the pictures are left out to keep this file small."
        fewer = replace(report, illustration=replace(shown, examples=shown.examples[:kept]))
        page = render(replace(fewer, notes=(*report.notes, note)))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.replace(path, lambda file: file.write(page))
    except OSError as error:
        raise UserError(f"cannot write the report to '{path}' ({error.strerror or error})") from error
    return path


def render(report: Report) -> bytes:
    """The page in UTF-8. Names of files and classes may hold anything; what UTF-8 cannot say is shown as an escape."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    script = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = environment.get_template("report.html.j2").render(
        report=report,
        script=Markup(script),
        digest=digest,
        **sections(report),
    )
    return page.encode("utf-8", "backslashreplace")
