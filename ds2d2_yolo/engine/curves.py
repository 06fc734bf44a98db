"""``results.png``: Ultralytics' plot with DS2D2's terms and their shares of the gradient among its curves."""

from __future__ import annotations

import tempfile
from pathlib import Path

from ultralytics.utils.plotting import plot_results

from ds2d2_yolo.engine import settings

KINDS = {"train": "loss", "share": "metric"}  # Ultralytics draws the columns that call themselves loss or metric
WANTED = ("detection", *settings.TERMS, "amplifier")


def plot(csv: Path, folder: Path) -> Path | None:
    """Draw ``results.png`` into ``folder`` from ``results.csv``; return its path, None where there is no such term."""
    import polars as pl

    table = pl.read_csv(csv.read_bytes(), infer_schema_length=None)
    names = {c: f"{c} ({KINDS[c.partition('/')[0]]})" for c in table.columns if c.endswith(WANTED)}
    used = {c for c in names if table[c].abs().sum() > 0}
    if not used:
        return None
    with tempfile.TemporaryDirectory() as draft:
        table.rename({c: names[c] for c in used}).write_csv(Path(draft) / "results.csv")
        plot_results(file=Path(draft) / "results.csv")
        picture = folder / "results.png"
        picture.write_bytes((Path(draft) / "results.png").read_bytes())
    return picture
