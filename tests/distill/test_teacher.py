import pytest
import torch
from torch import nn
from ultralytics.nn import tasks
from ultralytics.nn.tasks import DetectionModel

from ds2d2_yolo.distill.levels import detect_head
from ds2d2_yolo.distill.teacher import check_names, load_teacher, weights_fingerprint
from ds2d2_yolo.engine.amplifier_trainer import with_high_frequency
from ds2d2_yolo.errors import UserError
from tests.helpers.checkpoints import save_checkpoint
from tests.helpers.distilling import distilled, only, tiny, tiny_faster_rcnn, tiny_retinanet

NAMES = {0: "class0", 1: "class1", 2: "class2"}


@pytest.fixture
def teacher_pt(tmp_path):
    return save_checkpoint(tmp_path / "teacher.pt", tiny())


def refusal(path, **arguments):
    """The message, which must be one line that names the file."""
    with pytest.raises(UserError) as caught:
        load_teacher(path, **arguments)
    message = str(caught.value)
    assert str(path) in message
    assert len(message.splitlines()) == 1
    return message


def test_a_teacher_is_frozen_and_in_eval_mode(teacher_pt):
    teacher = load_teacher(teacher_pt, NAMES, 3)
    assert not any(m.training for m in teacher.modules())
    assert not any(p.requires_grad for p in teacher.parameters())
    assert {p.dtype for p in teacher.parameters()} == {torch.float32}
    expected = {k: v.half().float() for k, v in tiny().state_dict().items() if v.is_floating_point()}
    assert all(torch.equal(teacher.state_dict()[k], v) for k, v in expected.items())


@pytest.mark.parametrize("build", [tiny, tiny_retinanet, tiny_faster_rcnn])
@pytest.mark.parametrize("channels", [1, 4])
def test_a_teacher_for_other_channels_keeps_all_that_it_has_learned(build, channels, tmp_path):
    colour = build()
    teacher = load_teacher(save_checkpoint(tmp_path / "teacher.pt", colour), channels=channels)
    first, *rest = [name for name, p in colour.named_parameters()]
    expected = {name: value.half().float() for name, value in colour.state_dict().items() if value.is_floating_point()}
    found = teacher.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in rest)
    if channels == 1:
        torch.testing.assert_close(found[first], expected[first].sum(1, keepdim=True))
    else:
        assert torch.equal(found[first][:, :3], expected[first]) and found[first].shape[1] == 4
        assert not found[first][:, 3].any()  # a band that it has never seen changes nothing


@pytest.mark.parametrize(
    "build, own, channels",
    [
        *((tiny, *channels) for channels in ((1, 3), (1, 4), (2, 3), (4, 3), (4, 1))),
        *((tiny_retinanet, *channels) for channels in ((1, 3), (2, 3), (4, 1))),  # the first layer is of one class
        *((tiny_faster_rcnn, *channels) for channels in ((1, 4), (4, 3))),
    ],
)
def test_a_teacher_of_other_channels_itself(build, own, channels, tmp_path):
    """A gray image, the same in every channel, looks to it as before where it had one; else filters are kept."""
    model = build(channels=own)
    first = next(iter(dict(model.named_parameters())))
    before = model.state_dict()[first].half().float()
    found = load_teacher(save_checkpoint(tmp_path / "teacher.pt", model), channels=channels).state_dict()[first]
    assert found.shape[1] == channels
    if 1 in (own, channels):
        torch.testing.assert_close(found.sum(1), before.sum(1))
        assert torch.equal(found[:, 0], found[:, -1])
    else:
        kept = min(own, channels)
        assert torch.equal(found[:, :kept], before[:, :kept]) and not found[:, kept:].any()


@pytest.mark.parametrize("channels", [1, 4])
def test_a_teacher_that_looks_at_the_image_twice(channels, tmp_path):
    """As YOLOv9e does; and it is the same one whenever it is loaded."""
    backbone = [[-1, 1, "nn.Identity", []], [-1, 1, "Conv", [8, 3, 2]], [0, 1, "Conv", [8, 3, 2]]]
    backbone += [[[1, 2], 1, "Concat", [1]], *([-1, 1, "Conv", [16, 3, 2]] for _ in range(2))]
    layout = {"nc": 3, "backbone": backbone, "head": [[[3, 4, 5], 1, "Detect", ["nc"]]]}
    path = save_checkpoint(tmp_path / "teacher.pt", DetectionModel(layout, verbose=False))
    image, colour = torch.rand(1, channels, 64, 64), load_teacher(path)
    first, again = load_teacher(path, channels=channels), load_teacher(path, channels=channels)
    seen = image.expand(-1, 3, -1, -1) if channels == 1 else image[:, :3]
    for one, other in zip(first(image)[1]["feats"], colour(seen)[1]["feats"], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    assert weights_fingerprint(first) == weights_fingerprint(again) and first.fingerprint == colour.fingerprint


def test_what_an_amplifiers_stage_leaves_is_no_teacher(tmp_path):
    model = with_high_frequency(tiny(), "haar", "zero", "bands")
    torch.save({"model": model.half(), "train_args": {"teacher": "big.pt"}}, tmp_path / "best.pt")
    said = refusal(tmp_path / "best.pt")
    assert "is of a high-frequency amplifier's stage and no detector; its teacher is 'big.pt'" in said


def test_a_path_that_leads_nowhere(tmp_path):
    assert "does not exist" in refusal(tmp_path / "none.pt")
    assert "is a folder" in refusal(tmp_path)
    (tmp_path / "folder.pt").mkdir()
    assert "is a folder" in refusal(tmp_path / "folder.pt")


def test_a_file_of_another_kind(tmp_path):
    (tmp_path / "model.yaml").write_text("nc: 3\n")
    assert "no .pt checkpoint; give the one of the training that it comes from" in refusal(tmp_path / "model.yaml")
    for name in ("best.onnx", "best.pt"):
        (tmp_path / name).touch()
    assert f"give '{tmp_path / 'best.pt'}', which lies beside it" in refusal(tmp_path / "best.onnx")


@pytest.mark.parametrize(
    "content", [b"", b"not a checkpoint at all\n", bytes(range(256)) * 20], ids=["empty", "text", "bytes"]
)
def test_a_file_that_is_no_checkpoint(tmp_path, content):
    (tmp_path / "bad.pt").write_bytes(content)
    assert "cannot be loaded" in refusal(tmp_path / "bad.pt")


@pytest.mark.parametrize("part", [0.1, 0.5, 0.99])
def test_a_truncated_checkpoint(teacher_pt, part):
    data = teacher_pt.read_bytes()
    teacher_pt.write_bytes(data[: int(len(data) * part)])
    assert "cannot be loaded" in refusal(teacher_pt)


@pytest.mark.parametrize("content", [{"epoch": 3}, {"model": torch.zeros(3)}, torch.zeros(3), nn.Linear(2, 2)])
def test_a_torch_file_without_a_model(tmp_path, content):
    torch.save(content, tmp_path / "bad.pt")
    assert "cannot be loaded" in refusal(tmp_path / "bad.pt")


@pytest.mark.parametrize(
    "kind, name", [(tasks.ClassificationModel, "yolo11n-cls"), (tasks.SegmentationModel, "yolo11n-seg")]
)
def test_a_checkpoint_of_another_task(tmp_path, kind, name):
    path = save_checkpoint(tmp_path / "other.pt", kind(f"{name}.yaml", verbose=False))
    assert "no detector" in refusal(path)


@pytest.mark.parametrize(
    "data, said",
    [
        ({0: "class0", 1: "ship", 2: "class2"}, ["only the data has ship", "only the teacher has class1"]),
        ({0: "class0", 1: "class1"}, ["3 classes", "2 classes", "only the teacher has class2"]),
        ({**NAMES, 3: "ship", 4: "plane"}, ["only the data has ship, plane"]),
        ({0: "class1", 1: "class0", 2: "class2"}, ["another order (class1, class0)"]),
        ({0: "Class0", 1: "class1", 2: "class2"}, ["only the data has Class0", "only the teacher has class0"]),
        ({0: "class-0", 1: "class 1", 2: "Class_2"}, ["a matter of spelling: give the data file the teacher's names"]),
        ({0: "car", 1: "ship", 2: "van"}, ["train the teacher", "every number means the same in both, give the data"]),
    ],
    ids=["renamed", "fewer", "more", "order", "case", "spelling", "numbers"],
)
def test_classes_that_differ_are_named(teacher_pt, data, said):
    message = refusal(teacher_pt, names=data)
    assert all(part in message for part in said), message


def test_classes_are_compared_when_asked_for(teacher_pt):
    assert load_teacher(teacher_pt, NAMES).names == NAMES
    assert load_teacher(teacher_pt).names == NAMES
    check_names(list(NAMES.values()), NAMES, teacher_pt)  # as checkpoints of long ago have them


@pytest.mark.parametrize("channels", [1, 4])
def test_channels_are_converted_as_ultralytics_does(teacher_pt, channels):
    plain, converted = load_teacher(teacher_pt), load_teacher(teacher_pt, NAMES, channels)
    first, ours = plain.model[0].conv.weight, converted.model[0].conv.weight
    assert ours.shape[1] == channels
    assert converted.names == NAMES
    assert not any(m.training for m in converted.modules())
    assert not any(p.requires_grad for p in converted.parameters())
    assert not [
        k for k, v in converted.state_dict().items() if "model.0.conv" not in k and (v != plain.state_dict()[k]).any()
    ]
    if channels == 1:
        gray = torch.rand(1, 1, 64, 64)
        torch.testing.assert_close(converted(gray)[0], plain(gray.expand(1, 3, 64, 64))[0], rtol=1e-4, atol=1e-4)
    else:
        assert torch.equal(ours[:, :3], first)


def test_the_fingerprint_is_of_the_weights_in_the_file(teacher_pt, tmp_path):
    one = load_teacher(teacher_pt).fingerprint
    assert len(one) == 16
    assert one == load_teacher(teacher_pt, NAMES, 3).fingerprint == load_teacher(teacher_pt, channels=1).fingerprint
    renamed = save_checkpoint(tmp_path / "renamed.pt", tiny(), epochs=7)
    assert load_teacher(renamed, channels=4).fingerprint == one
    assert load_teacher(save_checkpoint(tmp_path / "other.pt", tiny(seed=1))).fingerprint != one


@pytest.mark.parametrize("key", ["model.0.conv.weight", "model.0.bn.running_var", "model.1.bn.num_batches_tracked"])
def test_the_fingerprint_sees_every_tensor(key):
    model = tiny()
    before = weights_fingerprint(model)
    model.state_dict()[key].view(-1)[0] += 1
    assert weights_fingerprint(model) != before


def test_an_unfinished_distilled_run_teaches_too(tmp_path):
    student = tiny(width=8)
    run = distilled(student, tiny(width=16, seed=1), **only("ex_low")).as_ultralytics({})
    teacher = load_teacher(save_checkpoint(tmp_path / "last.pt", run, key="ema"), NAMES)
    assert type(teacher) is tasks.DetectionModel
    assert torch.equal(teacher.model[0].conv.weight, student.model[0].conv.weight.half().float())
    # Ultralytics' hooks would keep the last feature maps, and write them into the amplifier's checkpoints
    assert not any(m._forward_hooks for m in teacher.modules())
    assert type(detect_head(teacher)).__name__ == "Detect"
