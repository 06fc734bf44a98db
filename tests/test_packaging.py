"""What is installed: the wheel and what it finds, the dependencies it names, and what importing it sets."""

import ast
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import ds2d2_yolo
from ds2d2_yolo import paths

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# Import names whose distribution is called otherwise.
DISTRIBUTIONS = {"google": "protobuf", "cv2": "opencv-python", "PIL": "pillow", "pywt": "PyWavelets", "yaml": "PyYAML"}


def python(code, **environment):
    """Output of a fresh interpreter that stands in no checkout."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("YOLO_", "PYTHONPATH", "PYTEST"))}
    arguments = [sys.executable, "-c", code]
    done = subprocess.run(arguments, cwd="/", env=kept | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


# ---- the wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of this checkout, built with what is installed."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", str(ROOT), "--no-deps", "--no-build-isolation", "--no-index"]
    built = subprocess.run([*command, "-w", str(folder)], capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    (file,) = folder.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The folder that the wheel was unpacked into."""
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def test_the_wheel_holds_every_file(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = {"ds2d2_yolo/cfg/ds2d2.yaml", "ds2d2_yolo/data/demo.yaml"}
    wanted |= {str(path.relative_to(ROOT)) for path in (ROOT / "ds2d2_yolo").rglob("*.py")}
    shipped = [path for folder in ("cfg", "data") for path in (ROOT / folder).rglob("*.yaml")]
    wanted |= {f"ds2d2_yolo/{path.relative_to(ROOT)}" for path in shipped}
    assert wanted <= names
    tops = {name.partition("/")[0] for name in names}
    assert tops == {"ds2d2_yolo", f"ds2d2_yolo-{ds2d2_yolo.__version__}.dist-info"}


def test_the_wheel_carries_licence_and_command(installed):
    info = installed / f"ds2d2_yolo-{ds2d2_yolo.__version__}.dist-info"
    assert (info / "licenses" / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    assert "ds2d2 = ds2d2_yolo.cli:main" in (info / "entry_points.txt").read_text()
    described = metadata.Distribution.at(info).metadata
    assert described["License-Expression"] == "AGPL-3.0-only"
    assert described["Requires-Python"] == ">=3.11"
    assert described["Version"] == ds2d2_yolo.__version__ == "0.1.0"


def test_an_installed_package_finds_its_files(installed):
    code = """
from pathlib import Path
import ds2d2_yolo
from ds2d2_yolo import paths
print(Path(ds2d2_yolo.__file__).parent)
print(paths.find_config("ds2d2.yaml", "cfg"))
print(paths.find_config("demo.yaml", "data"))
print(paths.find_config("dior-retinanet-r101-r18.yaml", "cfg"))
print(paths.find_config("retinanet-r18.yaml", "model"))
"""
    package = installed / "ds2d2_yolo"
    found = [str(package), str(package / "cfg" / "ds2d2.yaml"), str(package / "data" / "demo.yaml")]
    found.append(str(package / "cfg" / "recipes" / "dior-retinanet-r101-r18.yaml"))
    found.append(str(package / "cfg" / "models" / "retinanet-r18.yaml"))
    assert python(code, PYTHONPATH=str(installed)) == found


def test_the_installed_command_line_names_its_own_settings_file(installed):
    code = "import sys; from ds2d2_yolo.cli import main; sys.exit(main(['--help']))"
    output = "\n".join(python(code, PYTHONPATH=str(installed)))
    assert f"{installed / 'ds2d2_yolo' / 'cfg'}: ds2d2.yaml" in output


def test_a_checkout_finds_its_files():
    assert paths.CFG / "ds2d2.yaml" == ROOT / "cfg" / "ds2d2.yaml" and (paths.CFG / "ds2d2.yaml").is_file()
    assert paths.DATA / "demo.yaml" == ROOT / "data" / "demo.yaml" and (paths.DATA / "demo.yaml").is_file()


# ---- dependencies


def test_what_is_installed_is_in_the_ranges():
    wanted = [Requirement(text) for text in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]]
    outside = {r.name: metadata.version(r.name) for r in wanted if not r.specifier.contains(metadata.version(r.name))}
    assert outside == {}


def test_every_range_is_bounded():
    """A range without an upper end claims releases that nobody has tried."""
    for text in PROJECT["dependencies"]:
        operators = {specifier.operator for specifier in Requirement(text).specifier}
        assert operators in ({">=", "<"}, {">=", "<="}), text


def test_what_the_package_imports_is_declared():
    declared = {Requirement(text).name.lower() for text in PROJECT["dependencies"]}
    undeclared = set()
    for path in sorted((ROOT / "ds2d2_yolo").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            for top in {name.partition(".")[0] for name in names} - sys.stdlib_module_names - {"ds2d2_yolo"}:
                if DISTRIBUTIONS.get(top, top).lower().replace("_", "-") not in declared:
                    undeclared.add(f"{path.relative_to(ROOT)}: {top}")
    assert undeclared == set()


def test_the_licence_is_the_gnu_text():
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert re.match(r"\s+GNU AFFERO GENERAL PUBLIC LICENSE\s+Version 3, 19 November 2007\n", text)
    assert len(text.splitlines()) == 661


# ---- importing it


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, ds2d2_yolo; print(sorted({'torch', 'ultralytics', 'numpy', 'cv2'} & set(sys.modules)))"
    assert python(code, PYTHONPATH=str(ROOT)) == ["[]"]


def test_the_trainer_is_imported_when_it_is_asked_for():
    from ds2d2_yolo.engine.trainer import DS2D2Trainer

    assert ds2d2_yolo.DS2D2Trainer is DS2D2Trainer
    assert "DS2D2Trainer" in dir(ds2d2_yolo)
    with pytest.raises(AttributeError, match="no_such_name"):
        ds2d2_yolo.no_such_name  # noqa: B018


def test_ultralytics_neither_phones_nor_installs(tmp_path):
    """In a fresh interpreter, for Ultralytics keeps quiet by itself where it sees pytest."""
    code = """
import socket, subprocess
hosts, commands = [], []
def refusing(log):
    def refuse(*arguments, **_):
        log.append(str(arguments[0]))
        raise OSError("refused")
    return refuse
socket.getaddrinfo = socket.create_connection = refusing(hosts)
import ds2d2_yolo
from ultralytics import utils
from ultralytics.utils import checks, events
subprocess.check_output = subprocess.run = subprocess.Popen = refusing(commands)
checks.check_pip_update_available()
checks.check_requirements("no-such-package-of-ours")
checks.check_apt_requirements(["no-such-package-of-ours"])
events.events(utils.IterableSimpleNamespace(mode="train", task="detect", model=None), "cpu")
print(utils.TESTS_RUNNING, utils.ONLINE, utils.AUTOINSTALL, events.events.enabled, hosts, commands)
"""
    said = python(code, PYTHONPATH=str(ROOT), YOLO_CONFIG_DIR=str(tmp_path))[-1]
    # dpkg -l only asks whether the system package is there
    assert said == "False False False False [] [\"['dpkg', '-l', 'no-such-package-of-ours']\"]"


def test_the_switches_are_what_keeps_it_quiet(tmp_path):
    """The same without this package: the two constants are on, so they are what the switches turn off."""
    code = """
import socket
socket.getaddrinfo = lambda *_, **__: []
from ultralytics import utils
print(utils.ONLINE, utils.AUTOINSTALL)
"""
    assert python(code, YOLO_CONFIG_DIR=str(tmp_path))[-1] == "True True"


def test_the_user_has_the_last_word():
    code = "import os, ds2d2_yolo; print(os.environ['YOLO_OFFLINE'], os.environ['YOLO_AUTOINSTALL'])"
    assert python(code, PYTHONPATH=str(ROOT), YOLO_OFFLINE="false") == ["false false"]
    assert python(code, PYTHONPATH=str(ROOT), YOLO_AUTOINSTALL="true") == ["true true"]
