"""YAML files that would run code: as settings, as data sets, as models, beside a checkpoint."""

import pytest
import torch
from ultralytics.nn import tasks

from ds2d2_yolo.report.coco import predict
from ds2d2_yolo.restricted import Refusal, trusted
from tests.helpers.hostile import touch

TAGS = (
    "!!python/object/apply:os.system ['{command}']",
    "!!python/object/new:subprocess.Popen [['touch', '{canary}']]",
    "!!python/object/apply:builtins.eval [\"open('{canary}', 'w')\"]",
    "!!python/name:os.system",
)


@pytest.fixture
def canary(tmp_path):
    return tmp_path / "canary"


@pytest.fixture
def written(tmp_path, canary):
    """Writes a YAML file, the commands that make the canary filled in."""

    def write(text, name="hostile.yaml"):
        path = tmp_path / name
        path.write_text(text.replace("{command}", touch(canary)).replace("{canary}", str(canary)))
        return path

    return write


@pytest.mark.parametrize("tag", TAGS, ids=lambda tag: tag.split(" ")[0])
@pytest.mark.parametrize("key", ["data", "model", "cfg"])
def test_tags_of_python(key, tag, written, canary, enter, detector):
    file = written(f"train: images\nval: images\nnames: [a]\nepochs: {tag}\n")
    code, line = enter("train model", detector, f"{key}={file}")
    assert code == 2 and "python/" in line
    assert not canary.exists()


@pytest.mark.parametrize("key", ["data", "cfg"])
def test_tags_where_nothing_is_trained(key, written, canary, enter, detector):
    file = written(f"train: images\nval: images\nnames: [a]\niou: {TAGS[0]}\n")
    assert enter("val model", detector, f"{key}={file}")[0] == 2
    assert not canary.exists()


MODEL = """\
nc: 3
{extra}
backbone:
- [-1, 1, Conv, [8, 3, 2]]
- [-1, 1, {module}, {args}]
head:
- [[0, 1], 1, Detect, [nc]]
"""


@pytest.mark.parametrize("trust", [False, True])
def test_an_activation_that_is_code(trust, written, canary, enter):
    code = "nn.SiLU() if __import__('os').system('{command}') == 0 else None"
    text = MODEL.format(extra=f'activation: "{code}"', module="Conv", args="[8, 3, 2]")
    status, line = enter("train model", written(text), f"trust={trust}")
    assert status == 2 and "activation" in line
    assert not canary.exists()


@pytest.mark.parametrize("module", ["torch_load", "attempt_download_asset", "check_requirements", "nn.init.constant_"])
def test_layers_that_are_none(module, written, enter, monkeypatch):
    """Ultralytics looks layers up among all that its module has imported."""
    called, init = [], module.startswith("nn.init")
    name = module.rpartition(".")[2]
    monkeypatch.setattr(torch.nn.init if init else tasks, name, lambda *_, **__: called.append(1), raising=False)
    file = written(MODEL.format(extra="", module=module, args="['hostile.pt']"))
    status, line = enter("train model", file)
    assert status == 2 and ("has no attribute" if init else "is not a permitted model layer") in line and not called


DATA = "path: .\ntrain: nowhere\nval: nowhere\nnames: [a, b, c]\ndownload: {}\n"
SCRIPTS = {
    "python": "|\n  import os\n  os.system('{command}')",
    "bash": "bash -c touch${IFS}{canary}",
}


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("door", ["train model", "val model", "train teacher"])
def test_scripts_of_data_set_files(door, script, written, canary, enter, detector):
    file = written(DATA.format(SCRIPTS[script]))
    code, line = enter(door, detector, f"data={file}")
    assert code == 2 and "(download:)" in line and line.endswith("trust=True")
    assert not canary.exists()


def test_a_script_runs_where_it_is_trusted(written, canary, detector):
    file = written(DATA.format(SCRIPTS["python"]))
    with pytest.raises(Refusal):
        predict(detector, file, imgsz=64)
    with trusted(), pytest.raises(Exception, match="nowhere"):  # it makes no images
        predict(detector, file, imgsz=64)
    assert canary.exists()
