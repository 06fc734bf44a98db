"""What a conversion has done already, so that the same command goes on from there, and no other one mixes in."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import product
from pathlib import Path

from ds2d2_yolo.datasets.objects import Job, Plan
from ds2d2_yolo.errors import UserError

JOURNAL = "conversion.jsonl"
_FIELDS = {"split", "image", "images", "boxes", "counts", "problems"}  # that each line has


class Journal:
    """The images of a conversion that are done, one JSON line each, behind a line that says which conversion it is.

    Raises:
        UserError: The folder holds another conversion or anything else, is damaged, or cannot be written.
    """

    def __init__(self, dest: Path, header: dict):
        self.path, self._file = dest / JOURNAL, None
        try:
            dest.mkdir(parents=True, exist_ok=True)
            held = sorted(p.name for p in dest.iterdir())
            lines = self.path.read_bytes().splitlines(keepends=True) if self.path.is_file() else []
        except OSError as error:
            raise UserError(f"'{dest}' cannot be a data set folder ({error.strerror}); choose another") from error
        if held and not lines:
            raise UserError(f"'{dest}' already holds '{held[0]}'; give a new or empty folder as DEST")
        lines = [self._parsed(number, line) for number, line in enumerate(lines) if line.endswith(b"\n")]
        if lines and (differing := _differing(lines[0], header)):
            raise UserError(
                f"'{dest}' holds a conversion with another {', '.join(differing)}; give another DEST, or delete it"
            )
        older = next((record for record in lines[1:] if "state" not in record and not record.get("skipped")), None)
        tiling, difficult = (header["options"].get(key) for key in ("tiling", "difficult"))
        if older and tiling and (not difficult or tiling["empty"] < 1):  # what these say has changed
            raise UserError(
                f"'{dest}' was begun by an earlier version, for which difficult=drop and empty= meant something else; "
                "give another DEST, or delete it"
            )
        # What was left out is tried again: a file may have been mended since
        self.header, self.records = header, [record for record in lines[1:] if not record.get("skipped")]
        self._forgotten = []

    @property
    def done(self) -> set[tuple[str, str]]:
        """Split and name of the images that are done."""
        return {(record["split"], record["image"]) for record in self.records}

    def _parsed(self, number: int, line: bytes) -> dict:
        """A line's content; one cut short was never finished, and does not come here."""
        try:
            content = json.loads(line.decode())
        except ValueError:
            content = None
        if not isinstance(content, dict) or (number and not content.keys() >= _FIELDS):
            raise UserError(
                f"'{self.path}' is damaged in line {number + 1}; delete '{self.path.parent}', or give another DEST"
            )
        return content

    def check(self, plan: Plan, workers: int) -> None:
        """Compare what is done with what is to be done.

        Raises:
            UserError: An image is in another split now or not to be converted any more, or its annotation has changed.
        """
        dest, jobs = self.path.parent, {(job.split, job.stem): job for job in plan.jobs}
        way_out = f"give another DEST, or delete '{dest}'"
        if gone := sorted(self.done - jobs.keys()):
            split, stem = gone[0]
            now = " and ".join(sorted(other for other, name in jobs if name == stem))
            where = f"is in {now} now" if now else "is not to be converted any more"
            older = any("stamp" not in record for record in self.records)
            who = f"'{dest}' was begun by an earlier version, or the source" if older else "the source"
            raise UserError(f"{who} has changed: {split}/{stem} {where}, one of {len(gone)} such images; {way_out}")
        states = {(r["split"], r["image"]): r["state"] for r in self.records if "state" in r}  # older ones have none
        with ThreadPoolExecutor(workers) as pool:
            found = dict(zip(states, pool.map(_state, map(jobs.get, states)), strict=True))
        changed = [key for key, state in states.items() if found[key] != state]
        if changed:
            raise UserError(
                f"the source has changed: the annotation of {'/'.join(changed[0])} is another now, one of "
                f"{len(changed)}; {way_out}"
            )

    def forget_replaced(self, plan: Plan) -> int:
        """Forget images whose files are others now, by time and size, and return how many: they are made again.

        Lines of earlier versions do not say what the files were: what they are now counts from now on.
        """
        stamps = {(job.split, job.stem): list(job.image.stamp) for job in plan.jobs}
        for record in self.records:
            record.setdefault("stamp", stamps[record["split"], record["image"]])
        return self._forget(lambda record: record["stamp"] != stamps[record["split"], record["image"]])

    def forget_lost(self) -> None:
        """Forget images whose files are not there any more, links to what has moved among them: they are made again."""
        splits, folders = {record["split"] for record in self.records}, ("images", "labels")
        there = {(kind, split): _stems(self.path.parent / kind / split) for kind in folders for split in splits}
        self._forget(
            lambda record: any(name not in there[kind, record["split"]] for name in _made(record) for kind in folders)
        )

    def _forget(self, which: Callable[[dict], bool]) -> int:
        again = [which(record) for record in self.records]
        self._forgotten += [record for record, one in zip(self.records, again, strict=True) if one]
        self.records = [record for record, one in zip(self.records, again, strict=True) if not one]
        return sum(again)

    def _clear(self) -> None:
        """Remove what is left of images that are to be made again: of another size they have other tiles."""
        names = defaultdict(set)
        for record in self._forgotten:
            names[record["split"]].update(_made(record))
        for split, kind in product(names, ("images", "labels")):
            with suppress(FileNotFoundError), os.scandir(self.path.parent / kind / split) as entries:
                for entry in [e for e in entries if e.name.rpartition(".")[0] in names[split]]:
                    os.unlink(entry)

    def __enter__(self) -> Journal:
        self._clear()
        lines = [self.header, *self.records]
        part = self.path.with_suffix(".part")
        part.write_text("".join(json.dumps(line) + "\n" for line in lines))
        part.replace(self.path)
        self._file = self.path.open("a")
        return self

    def __exit__(self, *_) -> None:
        self._file.close()

    def add(self, record: dict) -> None:
        """Note an image as finished."""
        self.records.append(record)
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()


def _differing(held: dict, header: dict) -> list[str]:
    """The settings in which two conversions differ; spaces around class names were kept by earlier versions."""
    one, other = ({**made, "names": [str(name).strip() for name in made.get("names", ())]} for made in (held, header))
    return [key for key in {**other, **one} if one.get(key) != other.get(key)]


def _made(record: dict) -> list[str]:
    """Names of an image's files, without suffix."""
    return [row[0] for row in record["tiles"]] if "tiles" in record else [record["image"]] * record["images"]


def _stems(folder: Path) -> set[str]:
    """The names of a folder's files without what follows the last dot."""
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        return {entry.name.rpartition(".")[0] for entry in entries if entry.is_file()}
    return set()


def _state(job: Job) -> str | None:
    try:
        return job.objects().state()
    except ValueError:
        return None
