import logging
import urllib.error

import pytest
import torch
from torch import nn
from torchvision.models import ResNet18_Weights, detection, resnet18, resnet50

from ds2d2_yolo.detectors.registry import DetectorModel
from ds2d2_yolo.detectors.weights import frozen_layers, load_weights
from ds2d2_yolo.errors import UserError
from ds2d2_yolo.paths import CFG
from tests.detectors.small import layout

COUNTER = "num_batches_tracked"
# torchvision's builders, the classes of both that ours must have for the same heads, and the layers that classes shape
ONE_STAGE = ("cls_logits.weight", "cls_logits.bias")
TWO_STAGES = ("cls_score.weight", "cls_score.bias", "bbox_pred.weight", "bbox_pred.bias")
FIRST = {
    "retinanet-r50": (detection.retinanet_resnet50_fpn, 91, ONE_STAGE),
    "faster-rcnn-r50": (detection.fasterrcnn_resnet50_fpn, 90, TWO_STAGES),
}
DETECTORS = {
    **FIRST,
    "retinanet-r50-v2": (detection.retinanet_resnet50_fpn_v2, 91, ONE_STAGE),
    "faster-rcnn-r50-v2": (detection.fasterrcnn_resnet50_fpn_v2, 90, TWO_STAGES),
}


def small(kind="retinanet", ch=3, backbone="resnet18", nc=3):
    return DetectorModel(layout(kind, nc, backbone), ch=ch, verbose=False)


def saved(folder, content, name="weights.pth"):
    torch.save(content, folder / name)
    return str(folder / name)


def trained(net, seed=0):
    """The net's state with values that no fresh one has, running statistics and counters among them."""
    torch.manual_seed(seed)
    return {k: torch.rand(v.shape) if v.is_floating_point() else torch.tensor(7) for k, v in net.state_dict().items()}


def body_of(model):
    return {k.split("body.")[1]: v for k, v in model.state_dict().items() if ".body." in k}


@pytest.fixture(scope="module")
def resnet18_state():
    return trained(resnet18())


@pytest.fixture(scope="module")
def resnet18_path(resnet18_state, tmp_path_factory):
    return saved(tmp_path_factory.mktemp("resnet18"), resnet18_state)


def test_every_tensor_of_a_resnet_file_reaches_the_backbone(resnet18_path, resnet18_state):
    model = small()
    others = {k: v.clone() for k, v in model.state_dict().items() if ".body." not in k}
    load_weights(model, resnet18_path)
    body = body_of(model)
    assert body.keys() == {k for k in resnet18_state if not k.startswith("fc.")}
    assert all(torch.equal(v, resnet18_state[k]) for k, v in body.items())
    state = model.state_dict()
    assert others and all(torch.equal(v, state[k]) for k, v in others.items())


@pytest.mark.parametrize("key", ["model", "state_dict"])
def test_a_file_of_a_training_script_without_a_suffix(tmp_path, resnet18_state, key):
    parallel = {f"module.{k}": v for k, v in resnet18_state.items()}
    model = small()
    load_weights(model, saved(tmp_path, {key: parallel, "epoch": 3}, "no-suffix"))
    assert all(torch.equal(v, resnet18_state[k]) for k, v in body_of(model).items())


def test_none_leaves_the_model_as_it_is():
    model = small(backbone="resnet10")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    load_weights(model, "none")
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.fixture(scope="module", params=DETECTORS)
def coco(request, tmp_path_factory):
    """A state dict of torchvision's whole detector, and the file with it."""
    build, nc, class_layers = DETECTORS[request.param]
    with torch.device("meta"):
        net = build(weights=None, weights_backbone=None)
    state = trained(net)
    return request.param, nc, class_layers, state, saved(tmp_path_factory.mktemp("coco"), state)


def in_torchvisions_order(model):
    """Our tensors by torchvision's names: image to backbone, FPN to backbone.fpn, head to the rest."""
    names = {"1": "backbone.", "2": "backbone.", "3": ""}
    return {names[k.split(".")[1]] + k.split(".", 2)[2]: v for k, v in model.state_dict().items()}


@pytest.fixture
def shipped(monkeypatch):
    """Builds the detector of a shipped YAML with -1 in all its tensors, which is quick."""
    monkeypatch.setattr(DetectorModel, "_dry_run", lambda *_: None)

    def build(kind, nc):
        with torch.device("meta"):
            model = DetectorModel(CFG / "models" / f"{kind}.yaml", nc=nc, verbose=False)
        model.model.to_empty(device="cpu")
        for value in model.state_dict().values():
            value.fill_(-1)
        return model

    return build


def test_torchvisions_detector_fills_everything_for_as_many_classes(coco, shipped):
    kind, nc, _, state, path = coco
    model = shipped(kind, nc)
    load_weights(model, path)
    ours = in_torchvisions_order(model)
    assert {k for k in ours if not k.endswith(COUNTER)} == {k for k in state if not k.endswith(COUNTER)}
    assert all(torch.equal(ours[k], v) for k, v in state.items())


def test_torchvisions_detector_fills_all_but_the_class_layers_for_other_classes(coco, shipped, caplog):
    kind, _, class_layers, state, path = coco
    model = shipped(kind, 4)
    with caplog.at_level(logging.INFO, logger="ultralytics"):
        load_weights(model, path)
    ours = in_torchvisions_order(model)
    different = {k for k, v in state.items() if ours[k].shape != v.shape or not torch.equal(ours[k], v)}
    assert {k for k in different if k.endswith(class_layers)} == different and len(different) == len(class_layers)
    assert all(name in caplog.text for name in different)


def old_names(state):
    """A state dict as torchvision's first detectors saved it: conv.0, conv.2, .. and no index in FPN and RPN.

    Their frozen BatchNorms count no batches.
    """
    old = {}
    for name, value in state.items():
        if name.endswith(COUNTER):
            continue
        parts = name.split(".")
        if "fpn" in parts and "extra_blocks" not in parts or name.startswith("rpn.head.conv."):
            parts = [p for i, p in enumerate(parts) if not (p == "0" and i == len(parts) - 2)]
        if name.startswith("rpn.head.conv."):
            parts.remove("0")
        if parts[0] == "head" and "conv" in parts:
            at = parts.index("conv") + 1
            parts[at : at + 2] = [str(2 * int(parts[at]))]
        old[".".join(parts)] = value
    return old


@pytest.mark.parametrize("coco", FIRST, indirect=True)
def test_files_with_torchvisions_first_names_load(coco, shipped, tmp_path):
    kind, nc, _, state, _ = coco
    old = old_names(state)
    changed = old.keys() - state.keys()
    expected = {"backbone.fpn.inner_blocks.0.weight", "backbone.fpn.layer_blocks.2.bias"}
    expected |= {"rpn.head.conv.weight"} if kind == "faster-rcnn-r50" else {"head.classification_head.conv.6.weight"}
    assert expected <= changed
    with torch.device("meta"):
        reference = DETECTORS[kind][0](weights=None, weights_backbone=None)
    reference.load_state_dict(dict(old), assign=True)  # torchvision knows them all
    model = shipped(kind, nc)
    load_weights(model, saved(tmp_path, old))
    ours = in_torchvisions_order(model)
    assert all(torch.equal(ours[k], v) for k, v in state.items() if not k.endswith(COUNTER))


def test_grayscale_sums_the_filters(resnet18_path, resnet18_state):
    model = small(ch=1)
    load_weights(model, resnet18_path)
    weight = resnet18_state["conv1.weight"]
    torch.testing.assert_close(body_of(model)["conv1.weight"], weight.sum(1, keepdim=True))


@pytest.mark.parametrize("channels", [2, 4, 6])
def test_further_channels_get_the_mean_filter(resnet18_path, resnet18_state, channels):
    model = small(ch=channels)
    load_weights(model, resnet18_path)
    weight, got = resnet18_state["conv1.weight"], body_of(model)["conv1.weight"]
    assert torch.equal(got[:, :3], weight[:, :channels])
    for c in range(3, channels):
        torch.testing.assert_close(got[:, c], weight.mean(1))
    assert torch.equal(body_of(model)["layer4.1.bn2.running_var"], resnet18_state["layer4.1.bn2.running_var"])


@pytest.fixture(scope="module")
def model():
    return small()


def test_a_missing_file(model):
    with pytest.raises(UserError, match="backbone_weights=nowhere/resnet18.pth does not exist"):
        load_weights(model, "nowhere/resnet18.pth")


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04 cut off"])
def test_a_broken_file(model, tmp_path, content):
    (tmp_path / "broken.pth").write_bytes(content)
    with pytest.raises(UserError, match="broken.pth cannot be read as a state dict of tensors"):
        load_weights(model, str(tmp_path / "broken.pth"))


class Foreign(nn.Module):
    """Of a module that no one has allowed to be unpickled."""


def test_a_whole_pickled_model_is_refused_unopened(model, tmp_path):
    with pytest.raises(UserError, match=r"asks for tests\.detectors\.test_weights\.Foreign, .* nothing of it was run"):
        load_weights(model, saved(tmp_path, Foreign()))


@pytest.mark.parametrize(
    "content", [{"epoch": 3}, {"model": {"lr": 0.1}}, [torch.zeros(2)], torch.zeros(2), {0: torch.zeros(2)}]
)
def test_what_is_no_state_dict(model, tmp_path, content):
    with pytest.raises(UserError, match="is no state dict of tensors"):
        load_weights(model, saved(tmp_path, content))


def test_another_resnets_file_changes_nothing(model, tmp_path):
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with torch.device("meta"):
        other = resnet50()
    path = saved(tmp_path, trained(other))
    with pytest.raises(
        UserError, match=r"does not fit resnet18 \(\d+ of 100 tensors are missing or of another shape, first"
    ):
        load_weights(model, path)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("content", [{}, {"conv1.weight": torch.zeros(64, 3, 7, 7)}])
def test_a_file_with_too_little(model, tmp_path, content):
    with pytest.raises(UserError, match="does not fit resnet18"):
        load_weights(model, saved(tmp_path, content))


def test_an_unknown_name_says_what_there_is(model):
    with pytest.raises(
        UserError, match=r"backbone_weights=IMAGENET9 is neither a file nor .* \(imagenet, IMAGENET1K_V1, DEFAULT\)"
    ):
        load_weights(model, "IMAGENET9")


def test_a_backbone_that_torchvision_has_no_weights_for():
    with pytest.raises(
        UserError, match="no weights for the backbone resnet10; give a local file, .* backbone_weights=none"
    ):
        load_weights(small(backbone="resnet10"), "imagenet")


def offline(error):
    def refuse(*_, **__):
        raise error

    return refuse


@pytest.mark.parametrize(
    "error",
    [urllib.error.URLError("no route"), TimeoutError("timed out"), RuntimeError('invalid hash value (expected "f3")')],
)
def test_no_network_names_the_way_out(model, monkeypatch, error):
    monkeypatch.setattr(ResNet18_Weights, "get_state_dict", offline(error))
    with pytest.raises(
        UserError, match=r"imagenet cannot be fetched from https?://\S+resnet18\S+; give a local file, "
    ) as raised:
        load_weights(model, "imagenet")
    assert "backbone_weights=none" in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["imagenet", "IMAGENET1K_V1"])
def test_weights_by_name_are_torchvisions(monkeypatch, tmp_path, resnet18_state, name):
    asked = []
    monkeypatch.setattr(
        ResNet18_Weights, "get_state_dict", lambda self, **_: asked.append(self) or dict(resnet18_state)
    )
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()  # a data set's folder, maybe; not meant
    fresh = small()
    load_weights(fresh, name)
    assert asked == [ResNet18_Weights.IMAGENET1K_V1]
    assert all(torch.equal(v, resnet18_state[k]) for k, v in body_of(fresh).items())


def test_frozen_layers_name_the_stages(model):
    assert frozen_layers(model, 0) == []
    assert frozen_layers(model, 2) == ["1.body.conv1", "1.body.bn1", "1.body.layer1"]
    names = [f"model.{name}" for name in frozen_layers(model, 5)]
    assert all(any(n.startswith(f"{name}.") for n in model.state_dict()) for name in names)
    assert {n for n in model.state_dict() if ".body." in n} == {
        n for n in model.state_dict() if n.startswith(tuple(f"{name}." for name in names))
    }
