"""Everything measured about some models, brought together: who gained what over whom, as tables, files and a page."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from ds2d2_yolo.datasets.tile_tables import scenes_of
from ds2d2_yolo.errors import UserError
from ds2d2_yolo.report import page
from ds2d2_yolo.report.bootstrap import Bootstrap, bootstrap, judge
from ds2d2_yolo.report.columns import CLOSED, classes_table, gap, gap_table, latency_table, models_table, recipes_table
from ds2d2_yolo.report.detections import Detections, Truth
from ds2d2_yolo.report.examples import illustrate
from ds2d2_yolo.report.files import replace_text
from ds2d2_yolo.report.rating import Rating
from ds2d2_yolo.report.recovery import Roles
from ds2d2_yolo.report.seeds import Group
from ds2d2_yolo.report.tables import Table

STEM = "results"
GAIN = "gain over the baseline with its interval over images (95 %)"
MEANS = f"Means over seeds, and the {GAIN}"
TRAINING_LUCK = (
    "Intervals hold what the choice of images explains, not the luck of a training: two trainings of one recipe that "
    "differ by their seed can lie further apart. Several seeds tell (student_s0, student_s1 ...)."
)

SCENES = "The images are tiles of {} scenes (tiles.csv): intervals come from drawing whole scenes, not single tiles."
NO_OBJECTS = "The split holds no labelled object, so there is no accuracy to tell."


@dataclass
class Results:
    """What `val.py` found. `ratings`, `costs`, `found` and `paths` are by model; `costs` may be empty.

    `bootstraps` compare each student (by its group's name) with the baseline; `notes` are what the reader must know.
    """

    data: str
    settings: dict
    truth: Truth
    found: dict[str, Detections]
    ratings: dict[str, Rating]
    costs: dict[str, dict]
    roles: Roles
    paths: dict[str, str]
    max_det: int
    bootstraps: dict[str, Bootstrap] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    scenes: int | None = None  # of which the images are tiles, once `compare` has drawn whole ones

    def __str__(self) -> str:
        parts = [f"{title}\n\n{table}" if title else str(table) for title, table in self.tables()]
        return "\n\n".join([self.heading, *parts, *self.remarks])

    @property
    def heading(self) -> str:
        """What was rated and how, in one line."""
        settings = ", ".join(f"{key}={value}" for key, value in self.settings.items())
        return f"{self.data}: {len(self.truth.images)} images with {len(self.truth.cls)} objects, {settings}"

    @property
    def remarks(self) -> tuple[str, ...]:
        """What the tables do not say of themselves."""
        single = self.bootstraps and not self._has_seeds()
        missing = () if len(self.truth.cls) else (NO_OBJECTS,)
        tiles = (SCENES.format(self.scenes),) if self.bootstraps and self.scenes else ()
        return (*missing, *self.notes, *tiles, *([TRAINING_LUCK] if single else []))

    def compare(self, draws: int, progress=None) -> None:
        """Compare every student with the baseline over resampled images, or scenes of tiles (see `bootstrap`)."""
        if self.roles.baseline is None:
            return
        judged, scenes = {}, scenes_of(self.truth.images)
        self.scenes = None if scenes is None else int(scenes.max()) + 1
        for group in self.roles.students:
            for name in (*group.models, *self.roles.baseline.models):
                judged.setdefault(name, judge(self.truth, self.found[name], self.max_det))
            sides = ([judged[name] for name in one.models] for one in (group, self.roles.baseline))
            self.bootstraps[group.name] = bootstrap(self.truth, *sides, draws=draws, progress=progress, scenes=scenes)

    def tables(self) -> list[tuple[str, Table]]:
        """The tables with their titles, the models' first."""
        tables = [("", models_table(self.ratings, self.costs, self.roles))]
        if self.bootstraps or self._has_seeds():
            title = MEANS if self._has_seeds() else GAIN.capitalize()
            tables.append((title, recipes_table(self.roles, self.ratings, self.bootstraps)))
        for group in self.roles.students:
            if recovery := gap(self.roles, group, self.ratings):
                tables.append((f"What {group.name} closed of the teacher's lead", gap_table(recovery)))
        if devices := sorted({entry["device"] for cost in self.costs.values() for entry in cost["latency"]}):
            edge = self.settings.get("imgsz")
            shape = f"square image ({edge} px)" if isinstance(edge, int) else "square image"  # as files are deployed
            title = f"Time for a {shape} in ms on {' and '.join(devices)}: median (quartiles)"
            tables.append((title, latency_table(self.costs)))
        if len(self.truth.names) > 1:
            tables.append(("AP50 by class", classes_table(self.ratings)))
        return tables

    def write(self, folder: str | Path, examples: int) -> list[Path]:
        """Write `results.csv`, `.md` and `.json`, and `report.html`; return their paths.

        Raises UserError where they cannot be written.
        """
        folder, tables = Path(folder), self.tables()
        parts = [f"{self.heading}\n"]
        parts += [f"## {title}\n\n{table.markdown()}" if title else table.markdown() for title, table in tables]
        parts += [f"{remark}\n" for remark in self.remarks]
        texts = {"csv": tables[0][1].csv(), "md": "\n".join(parts), "json": self.json()}
        paths = []
        try:
            for kind, text in texts.items():
                paths.append(folder / f"{STEM}.{kind}")
                replace_text(paths[-1], text)
        except OSError as error:
            raise UserError(f"cannot write the results to '{folder}' ({error.strerror or error})") from error
        return [*paths, page.write_report(folder / "report.html", self.page(examples))]

    def json(self) -> str:
        """All figures, unrounded; null where unknown."""
        models = {
            name: {
                "path": self.paths[name],
                "role": self.roles.of(name),
                "rating": rating.as_dict(),
                "cost": self.costs.get(name),
            }
            for name, rating in self.ratings.items()
        }
        whole = {"data": self.data, "settings": self.settings, "notes": self.remarks, "models": models}
        whole["gains"] = {name: found.as_dict() for name, found in self.bootstraps.items()}
        whole["closed"] = {g.name: r.as_dict() for g in self.roles.students if (r := gap(self.roles, g, self.ratings))}
        return json.dumps(whole, indent=1, ensure_ascii=False, allow_nan=False, default=str) + "\n"

    def page(self, examples: int) -> page.Report:
        """The page's content."""
        groups = {name: group.name for group in self._groups() for name in group.models}
        models = [
            page.Model(name, self.roles.of(name), rating.as_dict(), self.costs.get(name, {}), groups[name])
            for name, rating in self.ratings.items()
        ]
        # A place gives a model its colour: whatever their order was, teacher and baseline have theirs
        models.sort(key=lambda model: {"teacher": 0, "baseline": 1}.get(model.role, 2))
        intervals = {name: found.as_dict()["classes"] for name, found in self.bootstraps.items()}
        means = recipes_table(self.roles, self.ratings, self.bootstraps) if self._has_seeds() else None
        return page.Report(
            data=self.data,
            models=tuple(models),
            settings={"images": len(self.truth.images), "objects": len(self.truth.cls), **self.settings},
            recovered=tuple(self._recovered()),
            verdicts=tuple(self._verdicts()),
            intervals={name: {int(k): v for k, v in by.items()} for name, by in intervals.items()},
            listings=(page.Listing(MEANS, *means.texts()),) if means else (),
            illustration=self._illustration(examples),
            notes=self.remarks,
        )

    def _groups(self) -> list[Group]:
        roles = self.roles
        return [group for group in (roles.teacher, roles.baseline, *roles.students, *roles.others) if group]

    def _has_seeds(self) -> bool:
        return any(len(group.models) > 1 for group in self._groups())

    def _recovered(self):
        for group in self.roles.students:
            if recovery := gap(self.roles, group, self.ratings):
                yield page.Recovery(group.name, (*recovery.figures.values(), *recovery.classes))

    def _verdicts(self):
        for name, found in self.bootstraps.items():
            for key in ("ap", "ap50"):
                one: Mapping = found.as_dict()[key]
                values = (one[field] for field in ("difference", "low", "high", "verdict"))
                yield page.Verdict(name, self.roles.baseline.name, CLOSED[key], *values)

    def _illustration(self, n: int):
        """Pictures of the first model of each role."""
        student = min(self.roles.students, key=lambda group: group.ending not in ("", ".pt"), default=None)  # no export
        sides = {"teacher": self.roles.teacher, "baseline": self.roles.baseline, "student": student}
        names = {role: group.models[0] for role, group in sides.items() if group}
        found = {role: self.found[name] for role, name in names.items()}
        shown = illustrate(self.truth, found, {r: self.ratings[m].confidence for r, m in names.items()}, n, names)
        seeds = any(len(group.models) > 1 for group in sides.values() if group)
        several = {"students": len(self.roles.students) > 1, "seeds": seeds}
        what = " and ".join(kind for kind, many in several.items() if many)
        return replace(shown, choice=f"Of several {what} the first stands here." if what else "")
