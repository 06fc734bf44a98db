from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from ds2d2_yolo.detectors.registry import DetectorModel
from ds2d2_yolo.errors import UserError
from ds2d2_yolo.report import latency
from ds2d2_yolo.report.exported import letterbox
from ds2d2_yolo.report.latency import NMS, Runner, latencies, prepare, sample
from ds2d2_yolo.report.runtimes import Loaded
from tests.detectors.small import layout
from tests.helpers.checkpoints import narrow_detector, save_checkpoint
from tests.helpers.costing import one_convolution, pictures


def loaded(run, **more):
    return Loaded(run, "PyTorch", "a CPU", torch.device("cpu"), channels=3, stride=32, **more)


def nothing(images):
    return torch.zeros(len(images), 5, 6)


@pytest.fixture
def clock(monkeypatch):
    """Time that passes by what is added to it, in seconds."""
    now = [0.0]
    monkeypatch.setattr(latency, "time_sync", lambda device: now[0])
    monkeypatch.setattr(latency.time, "perf_counter", lambda: now[0])
    return now


class Scripted(Runner):
    """A runner whose stages take 1, the next of `seconds` and 2 seconds a batch."""

    def __init__(self, clock, seconds, batch=1, log=None):
        super().__init__(loaded(self.infer), pictures(), 32, batch, NMS())
        self.clock, self.seconds, self.log = clock, list(seconds), [] if log is None else log

    def preprocess(self, images):
        self.clock[0] += 1
        return super().preprocess(images)

    def infer(self, images):
        self.log.append(self)
        self.clock[0] += self.seconds.pop(0)
        return nothing(images)

    def postprocess(self, images, outputs):
        self.clock[0] += 2
        return super().postprocess(images, outputs)


def test_stages_are_told_apart_in_ms_an_image(clock):
    assert Scripted(clock, [6], batch=2).once() == (500, 3000, 1000)


def test_medians_and_quartiles_come_after_the_warm_up(clock):
    (result,) = latencies([Scripted(clock, [99, 99, 99, 5, 1, 2, 4, 3])], rounds=5)
    assert (result.inference.median, result.inference.low, result.inference.high) == (3000, 2000, 4000)
    assert (result.preprocess.median, result.postprocess.low, result.total.median) == (1000, 2000, 6000)
    assert (result.rounds, result.batch, result.runtime, result.device) == (5, 1, "PyTorch", "a CPU")


def test_runners_take_turns(clock):
    log = []
    a, b = Scripted(clock, [1] * 6, log=log), Scripted(clock, [2] * 6, log=log)
    first, second = latencies([a, b], rounds=3)
    assert log == [a] * 3 + [b] * 3 + [a, b] * 3
    assert (first.inference.median, second.inference.median) == (1000, 2000)


def test_batches_go_round_the_images():
    seen = []
    runner = Runner(loaded(lambda x: seen.append(x) or nothing(x)), pictures(3), 32, 2, NMS())
    for _ in range(3):
        runner.once()
    expected = letterbox([pictures(3)[i] for i in (0, 1, 2, 0, 1, 2)], (32, 32))
    torch.testing.assert_close(torch.cat(seen), expected)


def test_images_are_fed_as_half_precision_where_the_file_wants_that():
    runner = Runner(loaded(nothing, dtype=torch.float16), pictures(), 32, 1, NMS())
    assert runner.preprocess(runner.pick()).dtype == torch.float16


def test_boxes_are_found_in_the_original_images():
    rows = torch.tensor([[[8.0, 8, 16, 24, 0.9, 1], [0, 0, 4, 4, 0.1, 0]]])
    runner = Runner(loaded(None), pictures(1, 64, 128), 64, 1, NMS(conf=0.5))  # halved, 16 rows of padding above
    (found,) = runner.postprocess([np.zeros((64, 128, 3), np.uint8)], [rows.half(), "what a loss needs"])
    torch.testing.assert_close(found, torch.tensor([[16.0, 0, 32, 16, 0.9, 1]]), atol=1e-3, rtol=0)


def test_nms_has_its_say(tmp_path):
    runner = prepare(one_convolution(tmp_path / "a.onnx"), pictures(), 32, 2, "cpu")
    found = runner.postprocess(runner.pick(), runner.loaded.run(runner.preprocess(runner.pick())))
    assert [(len(rows), rows[0, 5].item()) for rows in found] == [(1, 0), (1, 0)]  # of 256 equal boxes each


@pytest.mark.parametrize("kind", ["yolo11", "yolo26", "retinanet", "faster-rcnn"])
def test_checkpoints_run(tmp_path, kind):
    if kind.startswith("yolo"):
        model = narrow_detector(kind)
    else:
        model = DetectorModel(layout(kind), verbose=False).eval()
        model.names, model.task, model.args = {i: str(i) for i in range(3)}, "detect", {}
    runner = prepare(save_checkpoint(tmp_path / "best.pt", model), pictures(), (64, 96), 2, "cpu")
    assert all(ms > 0 for ms in runner.once()) and runner.size == (64, 96)
    alone = runner.at(1)
    assert (alone.batch, alone.loaded) == (1, runner.loaded) and all(ms > 0 for ms in alone.once())


@pytest.mark.parametrize("end2end", [True, False])
def test_the_head_is_the_one_asked_for(tmp_path, end2end):
    path = save_checkpoint(tmp_path / "best.pt", narrow_detector("yolo26"))
    head = prepare(path, pictures(), 64, 1, "cpu", end2end=end2end).loaded.module.model[-1]
    assert head.end2end == end2end


def test_a_file_bound_to_a_size_and_batch_runs_at_that(tmp_path):
    runner = prepare(one_convolution(tmp_path / "a.onnx", 2, (32, 64)), pictures(), 640, 16, "cpu")
    assert (runner.size, runner.batch, runner.at(1).batch) == ((32, 64), 2, 2)
    assert all(ms > 0 for ms in runner.once())


def test_bad_numbers_are_refused(tmp_path):
    with pytest.raises(UserError, match="batch=0"):
        prepare(one_convolution(tmp_path / "a.onnx"), pictures(), 32, 0, "cpu")
    with pytest.raises(UserError, match="rounds=0"):
        latencies([], rounds=0)


@pytest.fixture
def folder(tmp_path):
    for i in range(6):
        cv2.imwrite(str(tmp_path / f"{i}.png"), np.full((4, 4, 3), i, np.uint8))
    return tmp_path


def test_a_sample_is_spread_evenly_and_leaves_out_what_cannot_be_read(folder):
    (folder / "2.png").write_bytes(b"")
    assert [image[0, 0, 0] for image in sample(folder, most=3)] == [0, 4, 1]
    assert len(sample([folder / "0.png", str(folder / "5.png")])) == 2
    assert sample(folder, channels=1, most=1)[0].shape == (4, 4, 1)


def test_a_sample_of_huge_images_is_short(folder, monkeypatch):
    monkeypatch.setattr(latency, "_HELD", 100)
    assert len(sample(folder)) == 3  # of 48 bytes


def test_no_images_are_an_error_that_names_the_place(folder, tmp_path):
    with pytest.raises(UserError, match="there are no images in '.*nowhere'"):
        sample(tmp_path / "nowhere")
    (folder / "0.png").write_bytes(b"")
    with pytest.raises(UserError, match="none of the images can be read in the list"):
        sample([folder / "0.png"])


def test_a_runner_is_not_changed_by_another_at_its_side():
    runner = Runner(replace(loaded(nothing), size=(32, 32)), pictures(), 640, 2, NMS())
    runner.at(1).once()
    seen = []
    runner.loaded = loaded(lambda x: seen.append(x) or nothing(x))
    runner.once()
    torch.testing.assert_close(seen[0], letterbox(pictures()[:2], (32, 32)))


def test_all_models_are_timed_from_the_first_image_on(clock, monkeypatch):
    """Their warm-ups, which last a time and not a number of batches, end at different ones."""
    runner, first = Scripted(clock, [0.001] * 99, batch=2), []
    monkeypatch.setattr(latency, "WARM_UP_S", 0)
    runner.warm_up()
    monkeypatch.setattr(Runner, "pick", lambda self, start=0: first.append(start) or self.images[:2])
    runner.once()
    runner.once()
    assert first == [0, 2]
