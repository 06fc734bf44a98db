import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from ultralytics.nn.tasks import ClassificationModel

from ds2d2_yolo.detectors.registry import DetectorModel
from ds2d2_yolo.errors import UserError
from ds2d2_yolo.report.runtimes import beside, hardware, load, made_for
from tests.detectors.small import layout
from tests.helpers.checkpoints import narrow_detector, save_checkpoint
from tests.helpers.costing import one_convolution


def test_a_checkpoint_is_fused_and_takes_any_size_and_batch(tmp_path):
    loaded = load(save_checkpoint(tmp_path / "best.pt", narrow_detector(channels=1)), "cpu")
    assert (loaded.runtime, loaded.channels, loaded.stride) == ("PyTorch", 1, 32)
    assert loaded.size is None and loaded.batch is None and not loaded.module.training
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in loaded.module.modules())


def test_detectors_of_this_package_give_as_many_boxes_as_others(tmp_path):
    model = DetectorModel(layout("retinanet"), verbose=False).eval()
    model.names, model.task, model.args = {i: str(i) for i in range(3)}, "detect", {}
    loaded = load(save_checkpoint(tmp_path / "best.pt", model), "cpu")
    assert loaded.run(torch.rand(2, 3, 64, 64))[0].shape == (2, 300, 6)


def test_an_onnx_file_without_metadata_is_known_by_its_shapes(tmp_path):
    free = load(one_convolution(tmp_path / "free.onnx", channels=1), "cpu")
    assert (free.runtime, free.size, free.batch, free.channels) == ("ONNX Runtime", None, None, 1)
    bound = load(one_convolution(tmp_path / "bound.onnx", 2, (64, 96)), "cpu")
    assert (bound.size, bound.batch, bound.channels, bound.stride) == ((64, 96), 2, 3, 32)
    assert bound.run(torch.rand(2, 3, 64, 96)).shape == (2, 7, 32 * 48)


def test_metadata_tell_the_stride_and_the_batch_that_nms_is_made_for(tmp_path):
    loaded = load(one_convolution(tmp_path / "a.onnx", stride=64, batch_=1, args={"nms": True}, task="detect"), "cpu")
    assert (loaded.stride, loaded.batch) == (64, 1)
    assert load(one_convolution(tmp_path / "b.onnx", args={"nms": False}), "cpu").batch is None


def test_files_tell_for_which_image_size_they_are_made(tmp_path):
    def trained(**args):
        return save_checkpoint(tmp_path / "best.pt", narrow_detector(), **args)

    assert made_for(trained(imgsz=320)) == 320 and made_for(trained(imgsz=[320, 320])) == 320
    assert made_for(trained(imgsz=[320, 416])) == [320, 416] and made_for(trained(imgsz=None)) is None
    assert made_for(one_convolution(tmp_path / "bound.onnx", 2, (64, 96))) == [64, 96]
    assert made_for(one_convolution(tmp_path / "square.onnx", 2, (64, 64))) == 64
    assert made_for(one_convolution(tmp_path / "free.onnx")) is None
    assert (
        made_for(one_convolution(tmp_path / "told.onnx", imgsz=[320, 320])) == 320
    )  # takes any, was exported for this
    assert made_for(one_convolution(tmp_path / "both.onnx", 2, (64, 96), imgsz=[320, 320])) == [64, 96]
    (tmp_path / "other.torchscript").touch()
    assert made_for(tmp_path / "other.torchscript") is None


def test_files_beside_checkpoints_are_timed_at_one_size(tmp_path, monkeypatch):
    for name in ("a", "b", "c", "d"):
        (tmp_path / f"{name}.pt").touch()
    for name, size in {"a": (64, 96), "b": ("h", "w"), "c": (64, 96)}.items():
        one_convolution(tmp_path / f"{name}.onnx", 1, size)
    models = [str(tmp_path / name) for name in ("a.pt", "b.pt", "c.pt", "c.onnx", "d.pt")]
    found, notes = beside(dict.fromkeys(models, (64, 96)))
    assert found == {str(tmp_path / f"{n}.pt"): str(tmp_path / f"{n}.onnx") for n in "ab"} and not notes
    found, notes = beside(dict.fromkeys(models, (64, 64)))
    assert list(found) == [str(tmp_path / "b.pt")]
    said = f"{tmp_path / 'a.onnx'} takes images of 96 x 64 px alone: not timed with its checkpoint at 64 x 64 px."
    assert notes == [said]
    monkeypatch.chdir(tmp_path)  # another spelling of a file that is compared itself
    assert beside({"./c.pt": (64, 96), str(tmp_path / "c.onnx"): (64, 96)}) == ({}, [])


def test_an_export_of_an_older_checkpoint_is_not_timed_with_it(tmp_path):
    trained = "2026-11-20T12:00:00+02:00"
    model = str(save_checkpoint(tmp_path / "a.pt", narrow_detector()))
    torch.save({**torch.load(model, weights_only=False), "date": trained}, model)
    for made, as_old in (("2026-11-20T09:59:59+00:00", True), ("2026-11-20T10:00:01+00:00", False), ("once", False)):
        file = one_convolution(tmp_path / "a.onnx", date=made)
        found, notes = beside({model: (64, 64)})
        assert bool(found) != as_old and notes == [f"{file} is older than its checkpoint: not timed with it."] * as_old


def test_a_file_beside_a_checkpoint_that_cannot_be_timed_is_named_and_no_more(tmp_path):
    for name in ("cut", "empty"):
        (tmp_path / f"{name}.pt").touch()
    whole = one_convolution(tmp_path / "cut.onnx", 1, (64, 64)).read_bytes()
    (tmp_path / "cut.onnx").write_bytes(whole[:-40])
    (tmp_path / "empty.onnx").touch()
    found, notes = beside({str(tmp_path / f"{name}.pt"): (64, 64) for name in ("cut", "empty")})
    assert not found and [note.split(" was not timed with its checkpoint: model '")[0] for note in notes] == [
        str(tmp_path / "cut.onnx"),
        str(tmp_path / "empty.onnx"),
    ]


def test_both_runtimes_have_the_same_number_of_threads(tmp_path, monkeypatch):
    seen = []
    session = onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime, "InferenceSession", lambda *a, **k: seen.append(a[1].intra_op_num_threads) or session(*a, **k)
    )
    load(one_convolution(tmp_path / "a.onnx"), "cpu")
    assert seen == [torch.get_num_threads()]
    assert f", {seen[0]} thread" in hardware(torch.device("cpu"))


def test_what_cannot_be_run_is_refused_by_name(tmp_path):
    (tmp_path / "broken.onnx").write_bytes(b"no graph")
    (tmp_path / "broken.pt").write_bytes(b"no checkpoint")
    classifier = ClassificationModel("yolo11n-cls.yaml", verbose=False)
    classifier.task, classifier.names, classifier.args = "classify", {0: "a"}, {}
    torch.save({"model": classifier, "train_args": {}}, tmp_path / "cls.pt")
    one_convolution(tmp_path / "seg.onnx", task="segment")
    entry, out = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in ("x", "y"))
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "rows", [entry], [out])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), tmp_path / "rows.onnx"
    )
    wrong = {"none.pt": "does not exist", "broken.onnx": "cannot be loaded", "broken.pt": "no checkpoint"}
    wrong |= {"cls.pt": "'classify', not", "seg.onnx": "'segment', not", "rows.onnx": "batch of images"}
    for name, why in wrong.items():
        with pytest.raises(UserError, match=why) as error:
            load(tmp_path / name, "cpu")
        assert name in str(error.value)


def test_a_file_that_fails_names_itself_and_the_shape(tmp_path):
    loaded = load(one_convolution(tmp_path / "bound.onnx", 2, (64, 96)), "cpu")
    with pytest.raises(UserError, match=r"bound.onnx' fails on \(1, 3, 64, 96\)"):
        loaded.run(torch.from_numpy(np.zeros((1, 3, 64, 96), np.float32)))
