import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import pywt
import torchvision
from torchvision.models import get_model_weights, list_models
from ultralytics.cfg import DEFAULT_CFG_DICT, get_cfg
from ultralytics.utils import YAML

from ds2d2_yolo.cli import parse
from ds2d2_yolo.engine import settings
from ds2d2_yolo.errors import UserError
from ds2d2_yolo.paths import CFG
from tests.helpers.refusals import refusal
from tests.helpers.training import listening

FILE = CFG / "ds2d2.yaml"
TERMS = ("ex_low", "ex_high", "im_full", "im_high")


# ---- the file


def test_the_defaults_are_the_files():
    ours = settings.defaults()
    assert {k: v for k, v in ours.items() if k not in settings.INTERNAL} == YAML.load(FILE)
    assert ours["student_run"] is None
    ours["ex_low"] = 99  # a copy
    ours["lr_steps"].append(99)
    assert settings.defaults()["ex_low"] != 99
    assert settings.defaults()["lr_steps"] == []


@pytest.mark.parametrize(
    ("given", "expected"),
    [(3, 3), (None, None), ((0, 2), [0, 2]), ("0,23.cv2", [0, "23.cv2"]), ("[0, '23.cv2']", [0, "23.cv2"])]
    + [("23.cv2", ["23.cv2"]), (("23.cv2",), ["23.cv2"]), ([0, "2"], [0, "2"]), ("7", [7])],
)
def test_layers_to_freeze_are_a_list(given, expected):
    """Ultralytics' trainer freezes nothing for a tuple, which is what a command line's 0,2 becomes."""
    assert settings.check({"freeze": given})["freeze"] == expected


def test_older_names_are_taken_as_ultralytics_takes_them():
    older = {"end2end": False, "half": False, "boxes": True, "hide_labels": True, "label_smoothing": 0.1, "epochs": 3}
    with listening() as log:
        checked = settings.check(older)
    assert checked == {"nms": None, "quantize": None, "show_boxes": True, "show_labels": False, "epochs": 3}
    assert sum("is deprecated" in line for line in log) == 5
    assert settings.check({"int8": True})["quantize"] == 8  # which the trainers refuse by that name


def test_backbone_weights_may_be_gone_where_a_checkpoint_has_taken_their_place(tmp_path):
    gone = {"backbone_weights": str(tmp_path / "gone.pth")}
    for more in ({"resume": "last.pt"}, {"model": "best.pt"}):
        assert settings.check({**gone, **more}) == {**gone, **more}
    for name in (None, "None", "NONE"):  # as the command line reads it
        assert settings.check({"backbone_weights": name, "model": "best.pt"})["backbone_weights"] == "none"
    settings.check({**gone, "model": "retinanet-r18.yaml", "pretrained": "best.pt"})
    for more in ({"model": "retinanet-r18.yaml"}, {"model": "best.pt", "pretrained": False}):
        with pytest.raises(UserError, match="backbone_weights=.*gone.pth"):
            settings.check({**gone, **more})


def test_the_defaults_pass_their_own_check():
    assert settings.check(settings.defaults()) == settings.defaults()
    assert settings.check(DEFAULT_CFG_DICT) == DEFAULT_CFG_DICT


def test_every_key_is_documented_with_its_type():
    lines = [line for line in FILE.read_text().splitlines() if re.match(r"\w+:", line)]
    assert {line.partition(":")[0] for line in lines} == set(YAML.load(FILE))
    for line in lines:
        assert re.search(r" # \((str|bool|int|float)[^)]*\) \w{2}.{8,}|# \(float >= 0\)$", line), line


def test_no_name_is_ultralytics_own():
    assert not set(settings.defaults()) & set(DEFAULT_CFG_DICT)


def test_every_choice_is_named_in_the_file():
    text = FILE.read_text()
    for key, choices in settings.CHOICES.items():
        (line,) = [line for line in text.splitlines() if line.startswith(f"{key}:")]
        assert all(choice in line for choice in choices), line


# ---- names


@pytest.mark.parametrize(
    "wrong, near",
    [("ex_lov", "ex_low"), ("imfull", "im_full"), ("epoch", "epochs"), ("wavlet", "wavelet"), ("techer", "teacher")],
)
def test_an_unknown_setting_names_the_nearest(wrong, near):
    message = refusal(**{"epochs": 3, wrong: 1})
    assert f"unknown setting '{wrong}'" in message
    assert near in message.partition("did you mean")[2]


def test_a_setting_like_no_other_points_to_the_file():
    assert refusal(qqqqqqqq=1) == "unknown setting 'qqqqqqqq'; see cfg/ds2d2.yaml"


def test_what_ultralytics_takes_without_listing_it_passes():
    given = {"save_dir": "runs/x", "augmentations": [], "lr0": 0.1, "imgsz": [320, 640], "data": "my.yaml"}
    assert settings.check(given) == given


# ---- values


@pytest.mark.parametrize("key", [*TERMS, "distill_warmup", "distill_final"])
def test_numbers_from_zero(key):
    for value in (0, 0.0, 0.5, 3, 1e9):
        checked = settings.check({key: value})[key]
        assert checked == value
        assert type(checked) is float
    for value in (-1e-9, -1, float("nan"), float("inf"), "0.5", "much", None, True, [1]):
        assert refusal(**{key: value}) == f"{key}={value} must be a number of at least 0"


@pytest.mark.parametrize("key", ["amplifier_epochs", "balance_interval"])
def test_counts(key):
    for value in (1, 7.0, 1e3):
        checked = settings.check({key: value})[key]
        assert checked == value
        assert type(checked) is int
    for value in (0, 0.5, -3, float("nan"), float("inf"), "ten", None, True):
        assert f"{key}={value} must be a number of at least 1" in refusal(**{key: value})
    assert refusal(**{key: 1.5}) == f"{key}=1.5 must be a whole number"


@pytest.mark.parametrize("key, choices", settings.CHOICES.items())
def test_choices(key, choices):
    for choice in choices:
        assert settings.check({key: choice})[key] == choice
        assert settings.check({key: choice.upper()})[key] == choice
    for wrong in ("nonsense", 3, True, ""):
        assert refusal(**{key: wrong}) == f"{key}={str(wrong).lower()} is not one of {', '.join(choices)}"


def test_none_is_a_choice_where_the_command_line_reads_it_as_nothing():
    assert settings.check({"normalize": None})["normalize"] == "none"
    assert "not one of" in refusal(adapter=None)


@pytest.mark.parametrize("key", ["disw", "align", "nesterov", "published"])
def test_switches(key):
    for value in (True, False):
        assert settings.check({key: value})[key] is value
    for wrong in (1, 0, "true", None):
        assert refusal(**{key: wrong}) == f"{key}={wrong} is neither True nor False"


def test_every_switch_choice_and_number_is_checked():
    checked = {
        *TERMS,
        *settings.CHOICES,
        *settings.MINIMUM,
        *settings.SPECIAL,
        "teacher",
        "amplifier",
        "wavelet",
        "wavelet_padding",
    }
    switches = {k for k, v in YAML.load(FILE).items() if isinstance(v, bool)}
    assert checked | switches == set(YAML.load(FILE))


def test_weights_of_a_backbone(tmp_path):
    file = tmp_path / "resnet.pth"
    file.touch()
    for given, expected in [
        ("imagenet", "imagenet"),
        ("ImageNet", "imagenet"),
        ("none", "none"),
        (None, "none"),
        ("imagenet1k_v1", "IMAGENET1K_V1"),
        ("IMAGENET1K_V2", "IMAGENET1K_V2"),
        (file, str(file)),
        (str(file), str(file)),
    ]:
        assert settings.check({"backbone_weights": given}) == {"backbone_weights": expected}
    for wrong in ("", tmp_path, str(tmp_path / "none.pth"), "imagnet", "IMAGENET1K_V7", True, 1):
        message = refusal(backbone_weights=wrong)
        assert message.startswith(f"backbone_weights={wrong} is neither imagenet, none, one of IMAGENET1K_V1, ")


def test_the_names_of_weights_are_those_of_torchvisions_resnets():
    resnets = [name for name in list_models(module=torchvision.models) if name.startswith(("resnet", "resnext"))]
    assert len(resnets) > 5
    names = {name for resnet in resnets for name in get_model_weights(resnet).__members__}
    assert names == set(settings.TORCHVISION_WEIGHTS)


def test_frozen_statistics():
    for given, expected in (("auto", "auto"), ("AUTO", "auto"), (True, True), (False, False)):
        checked = settings.check({"frozen_bn": given})["frozen_bn"]
        assert (checked, type(checked)) == (expected, type(expected))
    for wrong in (1, 0, "yes", "true", None, [True]):
        assert refusal(frozen_bn=wrong) == f"frozen_bn={wrong} is neither True, False nor auto"


def test_frozen_stages():
    for given, expected in (("auto", "auto"), ("Auto", "auto"), *((n, n) for n in range(6))):
        assert settings.check({"frozen_stages": given}) == {"frozen_stages": expected}
    for wrong in (-1, 6, 1.0, "2", None, True, False, [1], "all"):
        assert refusal(frozen_stages=wrong) == f"frozen_stages={wrong} is neither auto nor a whole number from 0 to 5"


@pytest.mark.parametrize("text, value", [("auto", "auto"), ("true", True), ("False", False)])
def test_frozen_statistics_from_the_command_line(text, value):
    assert settings.check(parse([f"frozen_bn={text}"])) == {"frozen_bn": value}


def test_wavelets_and_paddings_of_pywavelets():
    for name in ("haar", "db2", "sym4", "coif1", "bior2.2", "dmey"):
        assert settings.check({"wavelet": name})["wavelet"] == name
    for name in pywt.Modes.modes:
        assert settings.check({"wavelet_padding": name})["wavelet_padding"] == name
    assert refusal(wavelet="harr") == "unknown wavelet 'harr'; did you mean haar?"
    assert "db2" in refusal(wavelet="###")
    assert "db2" in refusal(wavelet="morl")  # a continuous one
    assert "symmetric" in refusal(wavelet_padding="symetric")
    assert "unknown wavelet_padding '7'" in refusal(wavelet_padding=7)


def test_paths_become_text_and_nothing_becomes_none():
    assert settings.check({"teacher": Path("a/best.pt")})["teacher"] == str(Path("a/best.pt"))
    for nothing in ("", None):
        assert settings.check({"teacher": nothing, "amplifier": nothing}) == {"teacher": None, "amplifier": None}


def test_two_kinds_of_distillation_exclude_one_another():
    assert "give one of them" in refusal(teacher="a.pt", distill_model="b.pt")
    assert settings.check({"teacher": None, "distill_model": "b.pt"})["distill_model"] == "b.pt"


@pytest.mark.parametrize("task", ["obb", "segment", "classify", 7])
def test_other_tasks_are_refused(task):
    assert f"task={task}: what is trained here detects upright boxes; take such a model" in refusal(task=task)
    assert settings.check({"task": "detect"}) == {"task": "detect"}


def test_what_says_how_to_distil_has_no_effect_alone():
    args = SimpleNamespace(**{**settings.defaults(), "wavelet": "db2", "ex_low": 1.0, "lr_steps": [3], "trust": True})
    assert settings.without_effect(args) == ["ex_low=1.0", "wavelet=db2"]
    assert settings.without_effect(SimpleNamespace(**settings.defaults())) == []
    assert set(settings.UNDISTILLED) <= settings.defaults().keys()


def test_checking_changes_no_argument_of_the_caller():
    given = {"ex_low": 1, "epochs": 3}
    settings.check(given)
    assert type(given["ex_low"]) is int


# ---- apart and together


def test_of_fills_in_what_an_older_run_lacks():
    own = settings.of(get_cfg())
    assert vars(own) == settings.defaults()
    args = get_cfg()
    args.ex_low = 7.0
    assert settings.of(args).ex_low == 7.0
    assert not hasattr(own, "epochs")


def test_ultralytics_part_is_understood_by_ultralytics():
    args = get_cfg({**DEFAULT_CFG_DICT, **settings.defaults(), "epochs": 7})
    rest = settings.ultralytics_only(args)
    assert vars(get_cfg(overrides=rest))["epochs"] == 7
    assert set(vars(rest)) == set(DEFAULT_CFG_DICT)
