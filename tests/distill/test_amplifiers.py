from copy import deepcopy

import pytest
import torch
from ultralytics.utils.ops import xywh2xyxy
from ultralytics.utils.tal import make_anchors

from ds2d2_yolo.distill import amplifiers
from ds2d2_yolo.distill.amplifiers import Neck, YOLOAmplifier
from ds2d2_yolo.distill.levels import detect_head, tapped
from tests.helpers.distilling import family, tiny

END_TO_END = ("yolov10n", "yolo26n", "yolo26n-p2", "yolo26n-p6")
ONE_BRANCH = ("yolov3-tiny", "yolov5n", "yolov5n-p6", "yolov6n", "yolov8n", "yolov8n-p2", "yolov8n-p6", "yolov8n-ghost")
FAMILIES = (*ONE_BRANCH, "yolov9t", "yolo11n", "yolo12n", *END_TO_END)


def maps_and_outputs(model, size=(64, 128)):
    """What the head receives for an image, and what it makes of it."""
    image = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), tapped(detect_head(model)) as maps:
        outputs = model.eval()(image)[1]
    return maps, outputs


def own_inference(head, raw):
    """The head's own scores (B, N, K) and boxes (B, N, 4) xyxy in pixels."""
    head.shape = None  # anchors of another image may be kept
    y = head._inference(raw).transpose(1, 2)
    boxes = y[..., :4] if head.end2end or head.xyxy else xywh2xyxy(y[..., :4])
    return y[..., 4:], boxes


def assert_predicts(found, scores, boxes):
    torch.testing.assert_close(found.logits.sigmoid(), scores, rtol=0, atol=1e-3)
    torch.testing.assert_close(found.boxes, boxes, rtol=0, atol=1e-3)
    assert scores.std() > 1e-3  # no constants that would agree by themselves
    assert boxes.std() > 1


@pytest.mark.parametrize("name", FAMILIES)
def test_equals_the_models_own_inference(name):
    model = family(name)
    head = detect_head(model)
    maps, outputs = maps_and_outputs(model)
    levels = list(range(head.nl))
    for branch in ("one2many", "one2one") if name in END_TO_END else ("one2many",):
        raw = outputs[branch] if name in END_TO_END else outputs
        assert_predicts(YOLOAmplifier(head, levels, branch)(maps), *own_inference(head, raw))


def test_the_two_branches_of_an_end_to_end_head_differ():
    model = tiny(end2end=True, reg_max=1)
    head = detect_head(model)
    head.one2one_cv3.load_state_dict(head.cv3.state_dict())
    with torch.no_grad():
        head.one2one_cv3[0][-1].bias += 1
    maps, _ = maps_and_outputs(model)
    many, one = (YOLOAmplifier(head, [0, 1], branch)(maps).logits for branch in ("one2many", "one2one"))
    first = (many - one)[:, : maps[0].shape[2] * maps[0].shape[3]]
    torch.testing.assert_close(first, -torch.ones_like(first))


def test_a_head_without_a_second_branch_has_only_the_first():
    model = tiny()
    maps, outputs = maps_and_outputs(model)
    found = YOLOAmplifier(detect_head(model), [0, 1], "one2one")(maps)
    assert_predicts(found, *own_inference(detect_head(model), outputs))


@pytest.mark.parametrize("levels", [[0], [2], [1, 3], [0, 2, 3]])
def test_some_of_the_levels(levels):
    model = tiny((4, 8, 16, 32))
    head = detect_head(model)
    maps, outputs = maps_and_outputs(model)
    scores, boxes = own_inference(head, outputs)
    sizes = [m.shape[2] * m.shape[3] for m in maps]
    kept = [torch.arange(sum(sizes[:i]), sum(sizes[: i + 1])) for i in levels]
    found = YOLOAmplifier(head, levels)([maps[i] for i in levels])
    assert_predicts(found, scores[:, torch.cat(kept)], boxes[:, torch.cat(kept)])


def test_the_number_of_maps_must_fit():
    model = tiny()
    maps, _ = maps_and_outputs(model)
    with pytest.raises(ValueError):
        YOLOAmplifier(detect_head(model), [0])(maps)


def test_gradients_reach_the_maps_and_nothing_else():
    model = tiny().train()
    amplifier = YOLOAmplifier(detect_head(model), [0, 1])
    maps = [torch.rand(2, c, 8 // (i + 1), 6 // (i + 1), requires_grad=True) for i, c in enumerate((8, 16))]
    found = amplifier(maps)
    for part in found:
        grads = torch.autograd.grad(part.sum(), maps, retain_graph=True)
        assert all(g.abs().sum() > 0 for g in grads)
    (found.logits.sum() + found.boxes.sum()).backward()
    assert all(not p.requires_grad and p.grad is None for p in amplifier.head.parameters())
    assert all(p.grad is None for p in model.parameters())


def test_the_copy_and_the_head_are_independent():
    model = tiny().train()
    head = detect_head(model)
    before = deepcopy(head.state_dict())
    maps = [torch.rand(1, 8, 8, 8), torch.rand(1, 16, 4, 4)]
    amplifier = YOLOAmplifier(head, [0, 1])
    expected = amplifier(maps)
    # The head it was made from is as before: not frozen, not fused, in training mode
    assert head.training
    assert all(p.requires_grad for n, p in head.named_parameters() if not n.startswith("dfl"))
    assert head.state_dict().keys() == before.keys()
    assert all(torch.equal(v, before[k]) for k, v in head.state_dict().items())
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.fill_(1.0)
    found = amplifier(maps)
    assert torch.equal(found.logits, expected.logits)
    assert torch.equal(found.boxes, expected.boxes)
    assert not any(m.training for m in amplifier.head.modules())


def test_boxes_are_decoded_in_float32_under_autocast():
    model = tiny((8, 16))
    maps = [torch.rand(1, 8, 40, 40), torch.rand(1, 16, 20, 20)]
    amplifier = YOLOAmplifier(detect_head(model), [0, 1])
    exact = amplifier(maps)
    with torch.autocast("cpu", torch.bfloat16):
        rough = amplifier([m.bfloat16() for m in maps])
    assert rough.logits.dtype == rough.boxes.dtype == torch.float32
    torch.testing.assert_close(rough.boxes, exact.boxes, rtol=0, atol=1.0)  # bfloat16 itself steps by 2 px at 300
    torch.testing.assert_close(rough.logits, exact.logits, rtol=0, atol=0.1)


def test_moves_and_casts_reach_every_tensor():
    amplifier = YOLOAmplifier(detect_head(tiny()), [0, 1])
    amplifier.to(lambda t: t.double() if t.is_floating_point() else t)
    tensors = [*amplifier.head.state_dict().values(), amplifier.head.stride]
    assert {t.dtype for t in tensors if t.is_floating_point()} == {torch.float64}


def test_cells_are_made_once_for_maps_of_one_size(monkeypatch):
    made = []
    monkeypatch.setattr(amplifiers, "make_anchors", lambda *args: made.append(1) or make_anchors(*args))
    amplifier = YOLOAmplifier(detect_head(tiny()), [0, 1])
    small, large = (maps_and_outputs(tiny(), size)[0] for size in ((64, 128), (128, 64)))
    for maps in (small, small, large, large, small):
        expected = YOLOAmplifier(detect_head(tiny()), [0, 1])(maps)
        torch.testing.assert_close(amplifier(maps).boxes, expected.boxes, rtol=0, atol=0)
    assert len(made) == 3 + 5  # those of `expected` are new
    amplifier.to(torch.clone)
    amplifier(small)
    assert len(made) == 3 + 5 + 1


def test_cells_made_in_inference_mode_are_not_those_of_a_training_step():
    amplifier = YOLOAmplifier(detect_head(tiny()), [0, 1])
    maps, _ = maps_and_outputs(tiny())
    with torch.inference_mode():
        amplifier(maps)
    maps = [m.clone().requires_grad_() for m in maps]
    amplifier(maps).boxes.sum().backward()
    assert all(m.grad.abs().sum() > 0 for m in maps)


@pytest.mark.parametrize("name", ["yolov8n-p2", "yolo26n"])
def test_a_model_without_its_head_returns_the_maps(name):
    model = family(name).eval()
    expected, _ = maps_and_outputs(model)
    head = detect_head(model)
    assert Neck.replace_head(model) is head
    image = torch.rand(2, 3, 64, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = model.fuse(verbose=False)(image)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
