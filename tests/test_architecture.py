"""The rules of the house: imports only point downwards, and no file outgrows its reader."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "ds2d2_yolo"
FILES = sorted(PACKAGE.rglob("*.py"))

# What a part must not import. Parts that are not named here (cli, demo, val, exporting) stand at the top and may
# import everything.
TOP = {"cli", "demo", "val", "given", "exporting", "formats", "converting", "explaining", "mistakes"}
PARTS = {"method", "detectors", "distill", "engine", "report", "datasets"}
FORBIDDEN = {
    "method": TOP | {"engine", "distill", "detectors", "report", "datasets"},
    "detectors": TOP | {"engine", "distill", "report", "datasets"},
    "distill": TOP | {"engine", "report", "datasets"},
    "engine": TOP | {"report", "datasets"},
    "report": TOP | {"engine", "distill"},
    "datasets": TOP | {"engine", "distill"},
    **dict.fromkeys(("errors", "importing"), TOP | PARTS | {"paths"}),
    **dict.fromkeys(("plausible", "mislabelled", "labels", "paths", "threads", "stages", "unhurried"), TOP | PARTS),
    **dict.fromkeys(("restricted", "pickles", "familiar"), TOP | PARTS),
}
METHOD_MAY_IMPORT = {"ds2d2_yolo", "torch", "pywt"} | sys.stdlib_module_names


def imported(source, module, is_package=False):
    """Dotted names of all that `source`, the text of `module`, imports anywhere in it; `from a import b` is a.b."""
    parent = module if is_package else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = parent.rsplit(".", node.level - 1)[0] if node.level > 1 else parent
                base = f"{above}.{base}".rstrip(".")
            yield from (f"{base}.{alias.name}" for alias in node.names)


def violations(source, module, is_package=False):
    """The imports of `module` that break the rules."""
    part = (module.split(".") + [""])[1] if not module.endswith(".__main__") else "cli"  # a command stands at the top
    names = list(imported(source, module, is_package))
    bad = [name for name in names if _inner_part(name) in FORBIDDEN.get(part, set())]
    if part == "method":
        bad += [name for name in names if name.partition(".")[0] not in METHOD_MAY_IMPORT]
    return bad


def _inner_part(name):
    """method for ds2d2_yolo.method.wavelet.dwt2, "" for what is not of this package."""
    package, _, rest = name.partition(".")
    return rest.partition(".")[0] if package == "ds2d2_yolo" else ""


def module_of(path):
    """Dotted name, and whether it is a package's __init__."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return (".".join(parts[:-1]), True) if parts[-1] == "__init__" else (".".join(parts), False)


def test_the_package_is_seen():
    seen = {path.relative_to(PACKAGE).parts[0] for path in FILES}
    assert {"method", "distill", "engine", "datasets", "report", "cli.py"} <= seen


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_downwards(path):
    assert violations(path.read_text(encoding="utf-8"), *module_of(path)) == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_file_outgrows_its_reader(path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines < (200 if "method" in path.relative_to(PACKAGE).parts else 300)


@pytest.mark.parametrize(
    "module, source",
    [
        ("ds2d2_yolo.method.explicit", "import numpy"),
        ("ds2d2_yolo.method.explicit", "from ultralytics.utils import ops"),
        ("ds2d2_yolo.method.explicit", "def f():\n    from ds2d2_yolo.distill.levels import x"),
        ("ds2d2_yolo.method.explicit", "from ..engine import trainer"),
        ("ds2d2_yolo.distill.model", "import ds2d2_yolo.engine.trainer"),
        ("ds2d2_yolo.distill.model", "from ds2d2_yolo import engine"),
        ("ds2d2_yolo.detectors.registry", "from ds2d2_yolo.distill import levels"),
        ("ds2d2_yolo.engine.trainer", "from ds2d2_yolo.report.coco import ap"),
        ("ds2d2_yolo.engine.trainer", "from .. import report"),
        ("ds2d2_yolo.engine.trainer", "from ds2d2_yolo.cli import run"),
        ("ds2d2_yolo.report.coco", "from ds2d2_yolo.engine import trainer"),
        ("ds2d2_yolo.datasets.demo", "from ds2d2_yolo.distill import model"),
    ],
)
def test_a_breach_is_found(module, source):
    assert len(violations(source, module)) == 1


@pytest.mark.parametrize(
    "module, source",
    [
        ("ds2d2_yolo.method.explicit", "import math, torch, pywt\nfrom .wavelet import dwt2"),
        (
            "ds2d2_yolo.distill.model",
            "from ds2d2_yolo.method import explicit\nfrom ..detectors import registry",
        ),
        (
            "ds2d2_yolo.engine.trainer",
            "from ds2d2_yolo.distill.model import Model\nfrom ..detectors import weights",
        ),
        ("ds2d2_yolo.cli", "from ds2d2_yolo.engine.train import train\nfrom ds2d2_yolo.report import tables"),
        ("ds2d2_yolo.engine.trainer", "import report, engine.distill"),
    ],
)
def test_what_is_allowed_passes(module, source):
    assert violations(source, module) == []


def test_relative_imports_of_a_package_are_resolved():
    assert list(imported("from .wavelet import dwt2", "ds2d2_yolo.method", True)) == ["ds2d2_yolo.method.wavelet.dwt2"]
    assert list(imported("from ..engine import a", "ds2d2_yolo.method.b")) == ["ds2d2_yolo.engine.a"]
