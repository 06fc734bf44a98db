import errno
import os
import pickle
import resource
import signal
from pathlib import Path

import pytest
import torch
from ultralytics.nn import tasks

from ds2d2_yolo.engine.checkpoints import AtomicPath, keep_rows, renew_best, strip, stripping
from ds2d2_yolo.errors import UserError
from tests.helpers.checkpoints import save_checkpoint
from tests.helpers.distilling import tiny
from tests.helpers.training import listening


@pytest.fixture
def last(tmp_path):
    path = AtomicPath(tmp_path / "last.pt")
    path.write_bytes(b"good")
    return path


@pytest.fixture
def limited():
    """Lets no file of this process grow beyond some bytes, as a full disk would."""
    old, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, old)
    signal.signal(signal.SIGXFSZ, handler)


def names(folder):
    return sorted(p.name for p in Path(folder).iterdir())


def test_writes_and_replaces(last):
    assert last.write_bytes(b"better and longer") == 17
    assert last.read_bytes() == b"better and longer"
    assert names(last.parent) == ["last.pt"]
    (last.parent / "new.pt").write_bytes(memoryview(b"new"))
    assert names(last.parent) == ["last.pt", "new.pt"]


def test_what_is_made_of_it_is_of_its_kind(tmp_path):
    folder = AtomicPath(tmp_path)
    made = (
        folder / "a.pt",
        folder.parent,
        (folder / "a.pt").with_name("b.pt"),
        folder.joinpath("c", "d"),
        folder.resolve(),
    )
    assert {type(p) for p in made} == {AtomicPath}
    assert folder / "a.pt" == tmp_path / "a.pt"
    assert isinstance(folder, Path)
    assert type(pickle.loads(pickle.dumps(folder))) is AtomicPath


@pytest.mark.parametrize("where", ["replace", "fsync"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_an_error_leaves_the_old_file_and_nothing_else(last, monkeypatch, where, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(os, where, fail)
    with pytest.raises(type(error)):
        last.write_bytes(b"bad")
    monkeypatch.undo()
    assert last.read_bytes() == b"good"
    assert names(last.parent) == ["last.pt"]


def test_a_folder_that_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        (AtomicPath(tmp_path) / "none" / "last.pt").write_bytes(b"data")
    assert names(tmp_path) == []


def test_a_disk_that_fills_up_while_writing(last, limited):
    limited(1000)
    with pytest.raises(OSError) as caught:
        last.write_bytes(bytes(100_000))
    assert caught.value.errno == errno.EFBIG
    assert last.read_bytes() == b"good"
    assert names(last.parent) == ["last.pt"]


# ---- stripping


def test_strip_releases_the_ema(tmp_path):
    path = AtomicPath(save_checkpoint(tmp_path / "last.pt", tiny(), key="ema"))
    assert strip(path, {"train_results": {"epoch": [1]}})["epoch"] == -1
    content = torch.load(path, weights_only=False)
    assert content["ema"] is None
    assert content["train_results"] == {"epoch": [1]}
    assert content["epoch"] == -1
    assert torch.equal(content["model"].model[0].conv.weight, tiny().model[0].conv.weight.half())
    assert names(tmp_path) == ["last.pt"]


def test_a_disk_that_fills_up_while_stripping(tmp_path, monkeypatch, limited):
    monkeypatch.setattr("time.sleep", lambda _: None)  # Ultralytics tries again a few times
    path = save_checkpoint(tmp_path / "last.pt", tiny(), key="ema")
    before = path.read_bytes()
    limited(len(before) // 4)
    with pytest.raises(UserError, match="cannot write the stripped .*is the disk full"):
        strip(path)
    assert path.read_bytes() == before
    assert names(tmp_path) == ["last.pt"]


def test_what_is_written_is_what_was_looked_through(tmp_path, monkeypatch):
    """Ultralytics would read the file again, unrestricted."""
    path = save_checkpoint(tmp_path / "last.pt", tiny(), key="ema")

    def read(*_, **__):
        raise AssertionError("read again")

    monkeypatch.setattr("ultralytics.utils.torch_utils.torch_load", read)
    with listening() as said:
        strip(path)
    assert torch.load(path, weights_only=False)["model"] is not None
    assert [line for line in said if "stripped" in line] == [
        f"Optimizer stripped from {path}, {path.stat().st_size / 1e6:.1f}MB"
    ]


@pytest.mark.parametrize("same", [True, False])
def test_a_best_that_is_the_last_is_unpickled_once(tmp_path, monkeypatch, same):
    last, best = (save_checkpoint(tmp_path / f"{name}.pt", tiny(), key="ema") for name in ("last", "best"))
    if same:
        best.write_bytes(last.read_bytes())
    else:
        save_checkpoint(best, tiny(seed=1), key="ema")
    before, read, load = torch.load(best, weights_only=False)["ema"].model[0].conv.weight, [], tasks.torch_safe_load
    monkeypatch.setattr(tasks, "torch_safe_load", lambda path: read.append(path) or load(path))
    both = stripping(last, best)
    results = both(last)
    both(best, updates={"train_results": results.get("train_results")})
    assert read == ([last] if same else [last, best])
    assert (last.read_bytes() == best.read_bytes()) == same
    released = torch.load(best, weights_only=False)
    assert released["ema"] is None and torch.equal(released["model"].model[0].conv.weight, before)
    assert names(tmp_path) == ["best.pt", "last.pt"]


def test_what_is_no_checkpoint_is_left_alone(tmp_path):
    (tmp_path / "last.pt").write_bytes(b"text")
    with pytest.raises(UserError, match="it is empty, cut short, or no checkpoint"):
        strip(tmp_path / "last.pt")
    assert (tmp_path / "last.pt").read_bytes() == b"text"


@pytest.mark.parametrize(
    "content, kept",
    [
        ("epoch,time\n1,a\n2,b\n3,c\n", "epoch,time\n1,a\n2,b\n"),
        ("epoch,é\n1,a\n" + "\0" * 9, "epoch,é\n1,a\n"),
        ("epoch,time\n1,a\n\n", "epoch,time\n1,a\n"),
        ("epoch,time\n1,a\n2", "epoch,time\n1,a\n"),
        ("epoch,time\n1,a\n2,b", "epoch,time\n1,a\n"),
        ("epoch,time\n1,a,c\n2,b\n", "epoch,time\n2,b\n"),
        ("epoch,ti", None),
        ("", None),
        ("\0" * 9, None),
    ],
    ids=repr,
)
def test_rows_of_a_run_that_goes_on(tmp_path, content, kept):
    """After a power cut, too: checkpoints are on the disk before the table is."""
    file = tmp_path / "results.csv"
    file.write_text(content, encoding="utf-8")
    keep_rows(file, 2)
    assert (file.read_text(encoding="utf-8") if file.exists() else None) == kept


@pytest.mark.parametrize(
    "fitness, best, copied",
    [
        (0.5, None, True),
        (0.5, 1, True),
        (0.5, 3, False),
        (0.5, 5, False),
        (0.5, -1, False),
        (0.4, None, False),
        (0.4, 1, False),
    ],
)
def test_a_best_that_was_not_written_is_made_up_for(tmp_path, fitness, best, copied):
    ckpt = {"epoch": 3, "train_metrics": {"fitness": fitness}, "best_fitness": 0.5}
    torch.save(ckpt, tmp_path / "last.pt")
    if best is not None:
        torch.save({"epoch": best, "model": tiny()}, tmp_path / "best.pt")
    before = (tmp_path / "best.pt").read_bytes() if best is not None else None
    renew_best(tmp_path / "best.pt", tmp_path / "last.pt", ckpt)
    now = (tmp_path / "best.pt").read_bytes() if (tmp_path / "best.pt").exists() else None
    assert now == ((tmp_path / "last.pt").read_bytes() if copied else before)
