"""Both detectors as models: what they take, find and lose."""

from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torchvision.ops import box_iou
from ultralytics.nn.tasks import torch_safe_load
from ultralytics.utils import YAML

from ds2d2_yolo.detectors.registry import DetectorModel, is_detector
from ds2d2_yolo.paths import CFG
from tests.detectors.small import KINDS, batch_of, detector, found, layout, reloaded, still
from tests.helpers.checkpoints import save_checkpoint
from tests.helpers.quick import quick_weights

YAMLS = sorted((CFG / "models").glob("*.yaml"))


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def shared(kind):
    """A detector that tests only look at."""
    return detector(kind)


@pytest.fixture
def model(shared):
    """A detector of one's own."""
    return deepcopy(shared)


def losses(model, batch, seed=1):
    torch.manual_seed(seed)
    return model.loss(batch)[1]


def test_every_architecture_of_the_paper_is_shipped():
    families = ("r18", "r34", "r50", "r101", "x101")
    torchvisions = [f"{kind}-r50-v2" for kind in KINDS]
    assert {p.stem for p in YAMLS} == {f"{kind}-{name}" for kind in KINDS for name in families} | set(torchvisions)


@pytest.mark.parametrize("path", YAMLS, ids=lambda p: p.stem)
def test_a_shipped_yaml_builds_and_follows_the_data(path):
    layers = YAML.load(path)
    assert is_detector(layers)
    if path.stem.startswith("faster-rcnn"):  # its time goes into regions; what the file says of them holds
        layers["head"][-1][-1][-1] = {"test_proposals": 100} | layers["head"][-1][-1][-1]
    with quick_weights():
        model = DetectorModel(layers, nc=7, verbose=False)
    head = model.model[-1]
    assert (head.nc, head.max_det) == (7, 100) and model.yaml["nc"] == 7
    assert all(m.training for m in model.modules())
    rows = found(model, torch.rand(1, 3, 32, 32))
    assert rows.shape[0] == 1 and rows.shape[2] == 6 and 0 < rows.shape[1] <= 100
    assert rows.isfinite().all()


def test_is_detector_knows_its_own_heads():
    assert not is_detector({"nc": 3})
    assert not is_detector({"head": [[-1, 1, "FPN", [[8], 8]], [[15, 18, 21], 1, "Detect", ["nc"]]]})
    assert is_detector({"head": [[-1, 1, "RetinaNetDetect", ["nc"]]]})


def test_batchnorm_has_torchvisions_constants(shared):
    norms = [m for m in shared.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and {(m.eps, m.momentum) for m in norms} == {(1e-5, 0.1)}


@pytest.mark.parametrize("size", [(64, 64), (32, 32), (96, 160), (224, 32)], ids=str)
def test_any_size_finds_boxes_within_the_image(shared, size):
    # 32 px is less than the coarsest strides, 64 and 128
    rows = found(shared, torch.rand(2, 3, *size))
    assert rows.shape[0] == 2 and rows.shape[1] <= 100 and rows.shape[2] == 6 and rows.isfinite().all()
    used = rows[rows[..., 4] > 0]
    assert len(used) and (used[:, 4] > 0.05).all() and (used[:, 4] <= 1).all()
    assert (used[:, 2:4] >= used[:, :2]).all() and (used[:, :2] >= 0).all()
    assert (used[:, 2] <= size[1]).all() and (used[:, 3] <= size[0]).all()
    assert set(used[:, 5].tolist()) <= {0.0, 1.0, 2.0}
    assert not rows[rows[..., 4] == 0].any()  # unused rows are empty, and last
    assert (rows[:, 1:, 4] <= rows[:, :-1, 4]).all()


@pytest.mark.parametrize("size", [(32, 32), (96, 160)], ids=str)
def test_any_size_trains(shared, size):
    values = losses(still(shared), batch_of([3, 1], size))
    assert all(v.isfinite() and v > 0 for v in values.values())


@pytest.mark.parametrize("ch", [1, 4])
def test_grayscale_and_multispectral(kind, ch):
    model = detector(kind, ch=ch)
    assert found(model, torch.rand(2, ch, 64, 64))[..., 4].any()
    batch = batch_of([2, 1], ch=ch)
    total, _ = model.train().loss(batch)
    total.sum().backward()
    first = model.model[1].body.conv1.weight.grad
    assert first.shape[1] == ch and (first.abs().sum((0, 2, 3)) > 0).all()


def test_no_objects_at_all(kind):
    model = DetectorModel(layout(kind), verbose=False)  # fresh: as at the start of a training
    total, items = model.loss(batch_of([0, 0]))
    total.sum().backward()
    assert all(v.isfinite() and 0 <= v < 5 for v in items.values())
    assert items["box_loss"] == 0 and items["cls_loss"] > 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_many_objects_in_one_image(shared):
    values = losses(still(shared), batch_of([300, 0]))
    assert all(v.isfinite() and 0 < v < 50 for v in values.values())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_image_that_is_no_number_has_no_detections(shared, value):
    rows = found(shared, torch.stack([torch.rand(3, 64, 64), torch.full((3, 64, 64), value)]))  # a GPU's warm-up
    assert rows[0].any() and rows.isfinite().all() and not rows[1].any()


def test_no_proposals_and_no_objects():
    model = detector("faster-rcnn")
    nn.init.constant_(model.model[-1].rpn.head.bbox_pred.bias, -1e4)  # boxes of no size, far outside of the image
    assert not found(model, torch.rand(2, 3, 64, 64)).any()
    total, items = model.train().loss(batch_of([0, 0]))
    total.sum().backward()
    assert items["cls_loss"] == items["box_loss"] == 0 < items["rpn_cls_loss"].item() < 5
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    # With an object there is at least its own box to learn from
    assert losses(model.train(), batch_of([1, 0]))["cls_loss"] > 0


def test_half_precision_stays_near_float32(kind):
    # All regions are taken: a sampler that draws among other proposals would compare other regions
    options = {"roi_samples": 4000, "rpn_samples": 4000} if kind == "faster-rcnn" else {}
    model, batch = still(detector(kind, **options)), batch_of([4, 2])
    full = losses(model, batch)
    with torch.autocast("cpu", torch.bfloat16):
        half = losses(model, batch)
        rows = found(model, batch["img"])
    assert rows.isfinite().all() and rows.dtype == torch.float32
    assert any(value != full[name] for name, value in half.items())
    for name, value in half.items():  # bfloat16 has 8 bits: a hundredth of a value, a few of them in a row
        torch.testing.assert_close(value, full[name], rtol=0.05, atol=0.01)


def test_a_model_of_half_precision_finds_the_same_best_boxes(model):
    torch.manual_seed(0)
    image = torch.rand(1, 3, 64, 64)
    expected = found(model, image)[0]
    rows = found(model.bfloat16(), image.bfloat16())[0]
    assert rows.dtype == torch.float32 and rows.isfinite().all()
    same = (box_iou(rows[:20, :4], expected[:, :4]) > 0.8) & (rows[:20, 5:] == expected[:, 5])
    assert same.any(1).sum() > 15


@pytest.mark.parametrize("args", [SimpleNamespace(nbs=16), {"nbs": 16}])
def test_losses_are_scaled_to_the_nominal_batch(model, args):
    model = still(model)
    for given, scale in ((None, 2 / 64), (args, 2 / 16)):
        if given is not None:
            model.args = given
        torch.manual_seed(0)
        total, items = model.loss(batch_of([3, 1]))
        torch.testing.assert_close(total.detach(), torch.stack(list(items.values())) * scale)
        assert total.requires_grad and not any(v.requires_grad for v in items.values())


def test_losses_of_given_predictions_in_both_modes(shared):
    batch, model = batch_of([3, 1]), still(shared)
    trained = losses(model, batch)
    with torch.no_grad():
        predictions = model.eval()(batch["img"])
        torch.manual_seed(1)
        validated = model.loss(batch, predictions)[1]
    assert all(torch.allclose(v, validated[k], rtol=1e-4) for k, v in trained.items())


def test_gains_multiply_their_losses(kind):
    names = {"cls_gain": ["cls_loss"], "box_gain": ["box_loss"], "rpn_gain": ["rpn_cls_loss", "rpn_box_loss"]}
    if kind == "retinanet":
        names.pop("rpn_gain")
    batch, plain = batch_of([3, 1]), still(detector(kind))
    expected = losses(plain, batch)
    for gain, items in names.items():
        model = DetectorModel(layout(kind, **{gain: 3.0}), verbose=False)
        model.load_state_dict(plain.state_dict())
        values = losses(still(model), batch)
        for name, value in values.items():
            torch.testing.assert_close(value, expected[name] * (3 if name in items else 1))


def test_gradients_reach_every_parameter(model):
    total, _ = model.train().loss(batch_of([12, 12], (128, 128)))
    total.sum().backward()
    untouched = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not untouched


def test_evaluation_gives_detections_and_what_the_loss_needs(shared):
    image = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        rows, raw = shared.eval()(image)
        trained = still(shared)(image)
    assert rows.dim() == 3 and isinstance(raw, dict) and raw.keys() == trained.keys()
    assert raw["size"] == (64, 64)


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning", "ignore::torch.jit.TracerWarning")
def test_a_traced_model_gives_the_detections_alone(shared):
    model = shared.eval()
    with torch.no_grad():
        graph = torch.jit.trace(model, torch.rand(1, 3, 64, 64), check_trace=False)
        for shape in ((1, 3, 64, 64), (3, 3, 64, 64)):
            image = torch.rand(*shape)
            rows, expected = graph(image), model(image)[0]
            assert isinstance(rows, torch.Tensor) and rows.shape == (shape[0], 100, 6)
            torch.testing.assert_close(rows[:, : expected.shape[1]], expected, atol=1e-4, rtol=0)
            assert not rows[:, expected.shape[1] :].any()


def test_max_det_can_be_set(model):
    image = torch.rand(2, 3, 96, 96)
    before = found(model, image)
    model.set_head_attr(max_det=5)
    assert torch.equal(found(model, image), before[:, :5])


def test_agnostic_nms_lets_no_classes_overlap(model):
    image = torch.rand(1, 3, 96, 96)

    def overlaps():
        rows = found(model, image)[0]
        rows = rows[rows[:, 4] > 0]
        return int((box_iou(rows[:, :4], rows[:, :4]).triu(1) > 0.5).sum())

    assert overlaps() > 0
    model.set_head_attr(agnostic_nms=True)
    assert overlaps() == 0


def test_end2end_is_always_on(model):
    assert model.end2end is True
    model.end2end = False
    assert model.end2end is True and model.model[-1].end2end is True


@pytest.mark.parametrize("copy", [deepcopy, reloaded, lambda m: deepcopy(m).fuse(verbose=False)])
def test_a_copy_finds_the_same(shared, copy):
    image = torch.rand(1, 3, 64, 64)
    assert torch.equal(found(copy(shared), image), found(shared, image))


@pytest.mark.parametrize("backbone", ["resnet10", "resnet50"])
def test_restricted_loading_takes_their_checkpoints(tmp_path, kind, backbone):
    with quick_weights():
        saved = detector(kind, backbone=backbone)
    loaded = torch_safe_load(save_checkpoint(tmp_path / "best.pt", saved), safe_only=True)[0]["model"]
    assert type(loaded) is DetectorModel
    image = torch.rand(1, 3, 128, 128)
    assert torch.equal(found(loaded.float(), image), found(deepcopy(saved).half().float(), image))


def test_frozen_statistics_are_switched_on_the_model(model):
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    model.train().freeze_statistics()
    assert norms and not any(m.training for m in norms) and model.training
    model.eval().train()
    assert not any(m.training for m in norms)
    model.freeze_statistics(False)
    assert all(m.training for m in norms)


def test_a_region_as_large_as_an_image_is_pooled():
    """From the coarsest of the levels that regions are pooled from, which is not the coarsest of the proposals'."""
    head = detector("faster-rcnn").model[-1]
    maps = [torch.rand(1, 16, 1024 // stride, 1024 // stride) for stride in head.options.strides]
    assert len(head.pool(maps, torch.tensor([[0.0, 10, 10, 1010, 1010], [0, 5, 5, 40, 40]]))) == 2
