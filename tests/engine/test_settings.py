import re
from pathlib import Path

import pytest
import pywt
from ultralytics.cfg import DEFAULT_CFG_DICT, get_cfg
from ultralytics.utils import YAML

from ds2d2_yolo.engine import settings
from ds2d2_yolo.errors import UserError
from ds2d2_yolo.paths import CFG

FILE = CFG / "ds2d2.yaml"
TERMS = ("ex_low", "ex_high", "im_full", "im_high")


def refusal(**overrides):
    with pytest.raises(UserError) as caught:
        settings.check(overrides)
    return str(caught.value)


# ---- the file


def test_the_defaults_are_the_files():
    ours = settings.defaults()
    assert {k: v for k, v in ours.items() if k != "student_run"} == YAML.load(FILE)
    assert ours["student_run"] is None
    ours["ex_low"] = 99  # a copy
    assert settings.defaults()["ex_low"] != 99


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


@pytest.mark.parametrize("key", ["disw", "align"])
def test_switches(key):
    for value in (True, False):
        assert settings.check({key: value})[key] is value
    for wrong in (1, 0, "true", None):
        assert refusal(**{key: wrong}) == f"{key}={wrong} is neither True nor False"


def test_every_switch_choice_and_number_is_checked():
    checked = {*TERMS, *settings.CHOICES, *settings.MINIMUM, "teacher", "amplifier", "wavelet", "wavelet_padding"}
    switches = {k for k, v in YAML.load(FILE).items() if isinstance(v, bool)}
    assert checked | switches == set(YAML.load(FILE))


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
