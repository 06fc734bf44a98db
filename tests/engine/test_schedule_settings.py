"""The settings of the paper's learning rate schedule."""

import pytest

from ds2d2_yolo.cli import parse
from ds2d2_yolo.engine import settings
from tests.helpers.refusals import refusal


@pytest.mark.parametrize(
    "given, expected",
    [([16, 22], [16, 22]), ((16, 22), [16, 22]), ("16,22", [16, 22]), (" 16, 22 ", [16, 22]), (16, [16]), ("16", [16])]
    + [([], []), (None, []), ("", []), ((1,), [1])],
)
def test_epochs_of_the_learning_rate(given, expected):
    assert settings.check({"lr_steps": given}) == {"lr_steps": expected}
    assert settings.check({"lr_steps": expected}) == {"lr_steps": expected}


@pytest.mark.parametrize("text", ["16,22", "[16,22]", "[16, 22]", "(16,22)"])
def test_epochs_from_the_command_line(text):
    assert settings.check(parse([f"lr_steps={text}"])) == {"lr_steps": [16, 22]}


@pytest.mark.parametrize("text", ["[]", "none"])
def test_no_epochs_from_the_command_line(text):
    assert settings.check(parse([f"lr_steps={text}"])) == {"lr_steps": []}


@pytest.mark.parametrize(
    "wrong",
    [[22, 16], [16, 16], [0, 16], -1, 0, 1.5, [16.0], True, [True], "sixteen", "16;22", "16,", "²", {}, [[16]], [None]],
)
def test_what_are_no_epochs(wrong):
    message = f"lr_steps={wrong} must be whole epochs from 1 in ascending order, such as 16,22"
    assert refusal(lr_steps=wrong) == message


def test_two_ways_for_the_learning_rate_to_fall_exclude_one_another():
    assert "give one of them" in refusal(lr_steps=16, cos_lr=True)
    assert settings.check({"lr_steps": [], "cos_lr": True}) == {"lr_steps": [], "cos_lr": True}
    assert settings.check({"lr_steps": [16], "cos_lr": False})["lr_steps"] == [16]


def test_a_factor_of_the_learning_rate():
    for value in (0.1, 1, 1e-9):
        checked = settings.check({"lr_gamma": value})["lr_gamma"]
        assert checked == value
        assert type(checked) is float
    for wrong in (0, -0.1, 1.01, float("nan"), float("inf"), "0.1", None, True, [0.1]):
        assert refusal(lr_gamma=wrong) == f"lr_gamma={wrong} must be a number above 0 and at most 1"


def test_a_number_of_iterations():
    for value in (0, 1, 500, 500.0):
        checked = settings.check({"warmup_iterations": value})["warmup_iterations"]
        assert checked == value
        assert type(checked) is int
    for wrong in (-1, float("nan"), float("inf"), "500", None, True):
        assert refusal(warmup_iterations=wrong) == f"warmup_iterations={wrong} must be a number of at least 0"
    assert refusal(warmup_iterations=0.5) == "warmup_iterations=0.5 must be a whole number"
