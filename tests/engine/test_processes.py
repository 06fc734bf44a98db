"""Two processes with half a batch each find the loss and the gradients of one with the whole batch."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ds2d2_yolo.engine import processes as together
from ds2d2_yolo.errors import PeerEnded, UserError
from tests.helpers.launching import ROOT, torchrun
from tests.helpers.sharing import CASES

TOLERANCE = 3e-5  # measured: up to 5.5e-6, of RetinaNet


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shared")
    done = torchrun(2, ROOT / "tests/helpers/sharing.py", folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def mean(found, name, key):
    return torch.stack([process["shared"][name][key].double() for process in found]).mean(0)


def relative(a, b):
    return ((a - b).norm() / b.norm().clamp(min=1e-12)).item()


@pytest.mark.parametrize("name", CASES)
def test_the_loss_is_that_of_the_whole_batch(found, name):
    alone = found[0]["alone"][name]
    for step in range(2):
        for key in (f"{step} loss", f"{step} items"):
            assert relative(mean(found, name, key), alone[key].double()) < TOLERANCE, key


@pytest.mark.parametrize("name", CASES)
def test_the_gradients_are_those_of_the_whole_batch(found, name):
    alone = found[0]["alone"][name]
    for process in found:
        gradients = {key: value for key, value in process["shared"][name].items() if value.dim() and "items" not in key}
        assert {key for key, value in alone.items() if value.dim() and "items" not in key} == set(gradients)
        for step in range(2):
            keys = [key for key in gradients if key.startswith(f"{step} ")]
            ours, whole = (torch.cat([side[key].double().flatten() for key in keys]) for side in (gradients, alone))
            assert relative(ours, whole) < TOLERANCE
            assert whole.norm() > 0


@pytest.mark.parametrize("name", CASES)
def test_every_process_weighs_the_terms_alike(found, name):
    scales = {key: value for key, value in found[0]["alone"][name].items() if key.startswith("scale")}
    assert bool(scales) == (CASES[name][1].get("balance") != "fixed")
    for process in found:
        for key, value in scales.items():
            assert process["shared"][name][key].item() == pytest.approx(value.item(), rel=1e-4)


def test_without_counting_together_they_would_not_agree(found):
    """The halves do differ: the mean of their own normalised losses is another number."""
    alone, rank = found[0]["alone"]["yolo"], found[0]["shared"]["yolo"]
    assert relative(rank["0 items"], alone["0 items"]) > 0.01


@pytest.mark.parametrize("device", ["0", "2,3"])
def test_a_gpu_for_every_process(device, monkeypatch):
    """On one GPU between them NCCL would refuse to work, in words of its own."""
    monkeypatch.setattr(together, "LOCAL_RANK", 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    with pytest.raises(UserError, match=f"device={device} has fewer GPUs than there are processes, 3"):
        together.join(device)


@pytest.mark.parametrize("device", ["npu:0,1", "xpu:0,1", "mps"])
def test_other_accelerators_train_with_one_process(device, monkeypatch):
    monkeypatch.setattr(together, "LOCAL_RANK", 1)
    with pytest.raises(UserError, match=f"device={device}: several processes train on NVIDIA's or AMD's GPUs"):
        together.join(device)


@pytest.mark.parametrize(("batch", "other"), [(5, 4), (6, 6), (1, 2), (0, 2), (-1, 2)])
def test_a_batch_is_shared_out_whole(batch, other, monkeypatch):
    monkeypatch.setattr(together, "LOCAL_RANK", 1)
    monkeypatch.setattr(together, "processes", lambda: 2)
    trainer = together.ManyProcesses()
    trainer.batch_size, trainer.args = batch, SimpleNamespace(rect=True)
    if batch == other:
        trainer._check_processes()
        assert trainer.world_size == 2 and not trainer.args.rect
        return
    with pytest.raises(UserError) as raised:
        trainer._check_processes()
    line = "is the batch of all processes and cannot be shared out among 2; take batch="
    assert str(raised.value) == f"batch={batch} {line}{other}"


@pytest.mark.parametrize(
    ("said", "peer"),
    [
        ("[1] is setting up NCCL communicator and retrieving ncclUniqueId: Connection reset by peer", True),
        ("Connection closed by peer [127.0.0.1]:4711", True),
        ("NCCL error: unhandled cuda error\nLast error:\nFailed to CUDA calloc 1048576 bytes", False),
        ("NCCL error: unhandled system error: Error while creating shared memory segment", False),
        ("cannot read /data/gloomy/1.jpg", False),
    ],
)
def test_whose_end_it_is(said, peer, monkeypatch):
    """Not every fault that comes by way of the others is theirs."""
    monkeypatch.setattr(together, "processes", lambda: 2)
    with pytest.raises(RuntimeError if not peer else PeerEnded) as raised, together.together(lambda: "go on so"):
        raise RuntimeError(said)
    line = f"another process of this run has ended or is out of reach ({said.splitlines()[0]}); go on so"
    assert str(raised.value) == (line if peer else said)


def test_few_objects_of_several_processes_count_as_in_one_batch(monkeypatch):
    class Assigner(nn.Module):
        def forward(self):
            return 0, 0, torch.tensor([0.6])

    def alone(loss, preds, batch):
        loss.assigner()
        return None, torch.tensor(1.0), {"box": torch.tensor(2.0)}

    monkeypatch.setattr(together, "_alone", alone)
    monkeypatch.setattr(together, "processes", lambda: 2)
    monkeypatch.setattr(together, "shared", lambda count: count)  # the other has as many: 1.2 together
    _, loss, items = together._with_shared_normalizer(SimpleNamespace(assigner=Assigner()), None, None)
    assert loss.item() == pytest.approx(1 / 0.6) and items["box"].item() == pytest.approx(2 / 0.6)


def test_the_order_of_images_is_known_before_the_epoch_begins(monkeypatch):
    known = []

    class Base:
        def _model_train(self):
            assert known == [3]

    class Trainer(together.ManyProcesses, Base):
        epoch, train_loader = 3, SimpleNamespace(sampler=SimpleNamespace(set_epoch=known.append))

    monkeypatch.setattr(together, "processes", lambda: 2)
    Trainer()._model_train()
