"""Pickles that were read before go a faster way, and only these; even there nothing is found outside the lists."""

import io
import pickle
import tarfile
import zipfile

import pytest
import torch
from ultralytics.nn.tasks import torch_safe_load

from ds2d2_yolo import familiar, restricted
from ds2d2_yolo.engine.checkpoints import AtomicPath, strip
from tests.helpers.hostile import KINDS, good, named, zipped
from tests.helpers.training import same


@pytest.fixture(autouse=True)
def nothing_is_known(monkeypatch):
    monkeypatch.setattr(familiar, "_pickles", set())


@pytest.fixture
def slowly(monkeypatch):
    """The files that went the slow way."""
    files, load = [], restricted._ultralytics_load

    def watched(weight, safe_only):
        files.append(weight)
        return load(weight, safe_only=safe_only)

    monkeypatch.setattr(restricted, "_ultralytics_load", watched)
    return files


@pytest.fixture
def file(tmp_path):
    torch.save(good(), tmp_path / "best.pt")
    return tmp_path / "best.pt"


def test_the_second_time_is_as_the_first(file, slowly):
    first, second = torch_safe_load(file), torch_safe_load(file)
    assert slowly == [file] and first[1] == second[1]
    one, other = first[0].pop("model"), second[0].pop("model")
    assert first[0] == second[0]
    assert type(one) is type(other) and same(one.state_dict(), other.state_dict())
    assert one is not other and one.model[0].conv.weight.data_ptr() != other.model[0].conv.weight.data_ptr()


def test_a_copy_is_known_and_other_weights_too_but_no_other_pickle(file, tmp_path, slowly):
    torch_safe_load(file)
    other = good()
    torch.nn.init.ones_(other["model"].model[0].conv.weight)
    torch.save(other, tmp_path / "ones.pt")
    assert torch_safe_load(tmp_path / "ones.pt")[0]["model"].model[0].conv.weight.min() == 1
    assert slowly == [file]
    torch.save({**good(), "epoch": 5}, tmp_path / "later.pt")
    assert torch_safe_load(tmp_path / "later.pt")[0]["epoch"] == 5
    assert slowly == [file, tmp_path / "later.pt"]


def packed(file, target, *more, before=b""):
    """The entries of a checkpoint once more, with empty ones ``more``, behind other bytes."""
    target.write_bytes(before)
    with zipfile.ZipFile(file) as archive, zipfile.ZipFile(target, "a") as other:
        for name in archive.namelist():
            other.writestr(name, archive.read(name))
        for name in more:
            other.writestr(archive.namelist()[0].replace("data.pkl", name), pickle.dumps((), protocol=2))
    return target


def test_a_known_pickle_in_an_archive_of_other_entries(file, tmp_path):
    """PyTorch reads an archive with constants.pkl as TorchScript, which knows other things to do."""
    torch_safe_load(file)
    assert familiar.is_known(familiar.digest(packed(file, tmp_path / "same.pt")))
    script = packed(file, tmp_path / "script.pt", "constants.pkl")
    assert familiar.digest(script) is None
    with pytest.raises(TypeError, match=r"script\.pt is a TorchScript archive"):
        torch_safe_load(script)
    one, two = (
        packed(file, tmp_path / "one.pt", "x\nconstants"),
        packed(file, tmp_path / "two.pt", "x", "constants"),
    )
    assert len({familiar.digest(each) for each in (file, one, two, script)}) == 4  # whatever names are made of


def test_a_known_pickle_behind_an_archive_of_another_kind(file, tmp_path):
    """PyTorch goes by the first bytes: those of a tar it unpacks, a link to a file of the user's among them."""
    victim = tmp_path / "victim"
    victim.touch(0o600)
    link = tarfile.TarInfo("storages")
    link.type, link.linkname, link.mode = tarfile.LNKTYPE, str(victim), 0o777
    front = io.BytesIO()
    with tarfile.open(fileobj=front, mode="w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(link)
    torch_safe_load(file)
    both = packed(file, tmp_path / "both.pt", before=front.getvalue())
    assert familiar.digest(both) is familiar.digest(both.read_bytes()) is None
    with pytest.raises(RuntimeError):
        torch_safe_load(both)
    assert victim.stat().st_mode & 0o777 == 0o600


def test_a_known_pickle_whose_tensors_are_cut_short(file, tmp_path):
    """The line is that of a file which is seen for the first time."""
    broken = tmp_path / "broken.pt"
    with zipfile.ZipFile(file) as archive, zipfile.ZipFile(broken, "w") as less:
        for name in archive.namelist():
            data = archive.read(name)
            less.writestr(name, data[: len(data) // 2] if "/data/" in name else data)

    def told():
        try:
            torch_safe_load(broken)
        except Exception as error:
            return type(error), str(error)
        return None  # PyTorch 2.9 takes what is there

    first = told()
    torch_safe_load(file)
    assert familiar.is_known(familiar.digest(broken))
    assert told() == first


@pytest.mark.parametrize(
    "name", ["os.system", "eval", "subprocess", "in train_args", "in ema", "newer protocol, dotted"]
)
def test_what_is_on_no_list_is_not_found_even_in_a_known_pickle(name, tmp_path):
    file, canary = tmp_path / "hostile.pt", tmp_path / "canary"
    KINDS[name].write(file, canary)
    familiar.remember(familiar.digest(file))
    with pytest.raises(pickle.UnpicklingError, match="is not among the classes"):
        familiar.load(file)
    with pytest.raises(restricted.Refusal):
        torch_safe_load(file)
    assert not canary.exists()


def test_what_was_refused_or_trusted_is_not_known(tmp_path):
    file, canary = tmp_path / "hostile.pt", tmp_path / "canary"
    KINDS["in ema"].write(file, canary)
    with pytest.raises(restricted.Refusal):
        torch_safe_load(file)
    with restricted.trusted():
        torch_safe_load(file)
        AtomicPath(tmp_path / "copy.pt").write_bytes(file.read_bytes())
    assert canary.exists() and not familiar.is_known(familiar.digest(file))
    canary.unlink()
    with pytest.raises(restricted.Refusal):
        torch_safe_load(file)
    assert not canary.exists()


def test_names_of_python_2_and_the_list_for_them(tmp_path):
    """Pickles of PyTorch's protocol call the module of builtins by its old name; a set is on the list."""
    file = zipped(tmp_path / "set.pt", b"\x80\x02" + named("__builtin__.set") + b"(]t\x81.")
    with pytest.raises(pickle.UnpicklingError, match=r"builtins\.eval"):
        familiar.load(zipped(tmp_path / "eval.pt", b"\x80\x02" + named("__builtin__.eval") + b"."))
    assert familiar.load(file) == set()


def test_what_this_process_has_written_is_known(file, tmp_path, slowly):
    torch_safe_load(file)  # its classes are on PyTorch's list from then on
    written = AtomicPath(tmp_path / "last.pt")
    torch.save({**good(), "epoch": 3, "optimizer": None}, tmp_path / "made.pt")
    written.write_bytes((tmp_path / "made.pt").read_bytes())
    assert familiar.digest(written) == familiar.digest(memoryview(written.read_bytes())) in familiar._pickles
    strip(written)
    assert torch_safe_load(written)[0]["epoch"] == -1
    assert slowly == [file]


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"no checkpoint", b"PK\x03\x04" + bytes(500)])
def test_no_archives(data, tmp_path):
    (tmp_path / "none.pt").write_bytes(data)
    assert (
        familiar.digest(data) is familiar.digest(memoryview(data)) is None
        and familiar.digest(tmp_path / "none.pt") is None
    )
    familiar.remember(None)
    assert not familiar.is_known(None)
