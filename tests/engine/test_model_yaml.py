"""Model YAML files that describe no model: one line that names the file."""

import pytest
from ultralytics.utils import YAML

from ds2d2_yolo.datasets.demo import NAMES
from ds2d2_yolo.errors import UserError, explain

BACKBONE = "backbone:\n- [-1, 1, Conv, [8, 3, 2]]\n- [-1, 1, Conv, [8, 3, 2]]\n- [-1, 1, Conv, [8, 3, 2]]\n"
HEAD = "head:\n- [[2], 1, Detect, [nc]]\n"


@pytest.fixture
def build(make, tmp_path):
    """Builds a student from the text of a YAML file, as a run does."""

    def from_text(text):
        (tmp_path / "mine.yaml").write_text(text)
        trainer = make(model=str(tmp_path / "mine.yaml"), teacher=None)
        trainer.setup_model()
        return trainer.model

    return from_text


def test_a_file_without_classes_gets_those_of_the_data(build):
    model = build(BACKBONE + HEAD)
    assert model.model[-1].nc == model.yaml["nc"] == len(NAMES)
    assert build(f"nc: 80\n{BACKBONE}{HEAD}").model[-1].nc == len(NAMES)
    assert build(f"nc:\n{BACKBONE}{HEAD}").model[-1].nc == len(NAMES)


@pytest.mark.parametrize(
    "text, said",
    [
        ("", "has no layers under 'backbone:'"),
        ("# a comment\n", "has no layers under 'backbone:'"),
        (HEAD, "has no layers under 'backbone:'"),
        (BACKBONE, "has no layers under 'head:'"),
        (BACKBONE + "head: []\n", "has no layers under 'head:'"),
        (BACKBONE + "head: Detect\n", "has no layers under 'head:'"),
        (BACKBONE + "- Conv\n" + HEAD, "row 4 under 'backbone:': Conv is not [from, repeats, module, arguments]"),
        (BACKBONE + "- [-1, 1, Conv]\n" + HEAD, "row 4 under 'backbone:': [-1, 1, 'Conv'] is not [from"),
        (BACKBONE + "- [-1, one, Conv, [8]]\n" + HEAD, "row 4 under 'backbone:'"),
        (BACKBONE + "- [last, 1, Conv, [8]]\n" + HEAD, "row 4 under 'backbone:'"),
        (BACKBONE + "- [-1, 1, 3, [8]]\n" + HEAD, "row 4 under 'backbone:'"),
        (BACKBONE + "- [-1, 1, Conv, 8]\n" + HEAD, "row 4 under 'backbone:'"),
        (BACKBONE + HEAD + "- {}\n", "row 2 under 'head:': {} is not"),
        (BACKBONE + "- [-1, 1, Nope, [8]]\n" + HEAD, "'Nope'"),
        (BACKBONE + "- [-1, 1, nn.Nope, [8]]\n" + HEAD, "cannot be built: AttributeError: .*'Nope'"),
        (BACKBONE + "- [9, 1, Conv, [8]]\n" + HEAD, "cannot be built: IndexError"),
        (BACKBONE + "- [-1, 1, Conv, [8, 3, 2, 0, 1, 1, True, 7]]\n" + HEAD, "cannot be built: TypeError: "),
        (
            BACKBONE + "- [[0, 1], 1, Concat, [1]]\n" + HEAD,
            "cannot be built: RuntimeError: Sizes of",
        ),
        ("scales:\n  n: [1]\n" + BACKBONE + HEAD, "cannot be built: ValueError"),
        ("- 1\n- 2\n", "mine.yaml"),
        ("a sentence\n", "mine.yaml"),
        ("nc: [3\n", "mine.yaml"),
    ],
)
def test_what_is_wrong_is_one_line_with_the_file(build, text, said):
    with pytest.raises(Exception) as raised:  # noqa: B017, PT011
        build(text)
    line = explain(raised.value)
    assert line and "\n" not in line
    assert "mine.yaml" in line
    with pytest.raises(AssertionError, match=said.replace("[", r"\[").replace("{", r"\{")):
        raise AssertionError(line)


def test_a_checkpoint_that_cannot_be_built_is_a_bug(make):
    trainer = make(teacher=None)
    layout = {**YAML.load(trainer.model), "scales": {"n": [1]}}
    with pytest.raises(ValueError, match="not enough values"):
        trainer.get_model(cfg=layout)


@pytest.mark.parametrize("head", ["WorldDetect", "YOLOEDetect"])
def test_a_checkpoint_whose_head_looks_at_texts_is_refused(make, head):
    trainer = make(teacher=None)
    layout = {**YAML.load(trainer.model), "head": [[[2, 3, 4], 1, head, ["nc", 512]]]}
    with pytest.raises(UserError, match=f"has the head {head}, which also looks at texts; take a plain detector"):
        trainer.get_model(cfg=layout)


def test_the_model_is_named_as_the_user_did(build):
    with pytest.raises(UserError, match=r"model '.*/mine\.yaml' is made for the task 'segment'"):
        build(BACKBONE + "head:\n- [[2], 1, Segment, [nc]]\n")
