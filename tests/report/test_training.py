import csv

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from ultralytics.utils import YAML

from ds2d2_yolo import cli
from ds2d2_yolo.errors import UserError
from ds2d2_yolo.report.training import MAP, MAP50, Run, _draw_panel, _measured, _names, curves, draw, read, summary

TERMS = ("ex_low", "ex_high", "im_full", "im_high")
PLAIN = ("train/box_loss", "train/cls_loss", MAP50, MAP, "val/box_loss", "val/cls_loss", "lr/pg0", "lr/pg1")
DISTILLED = (*PLAIN, *(f"train/{t}" for t in TERMS), *(f"share/{t}" for t in ("detection", *TERMS)))


def write(folder, columns=PLAIN, epochs=5, **changes):
    """A run whose column number c holds (c + 1) / 100 times the epoch."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "results.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["epoch", *columns])
        for epoch in range(1, epochs + 1):
            rows.writerow([epoch, *(changes.get(c, (i + 1) / 100 * epoch) for i, c in enumerate(columns))])
    return folder


def test_columns_sums_and_rate(tmp_path):
    run = read(write(tmp_path / "a", DISTILLED))
    assert run.name == "a" and run.epoch.tolist() == [1, 2, 3, 4, 5]
    assert run.columns["train/detection"] == pytest.approx([0.03, 0.06, 0.09, 0.12, 0.15])  # without the four terms
    assert run.columns["val/detection"] == pytest.approx([0.11, 0.22, 0.33, 0.44, 0.55])
    assert (run.columns["lr"] == run.columns["lr/pg0"]).all()
    assert run.best(MAP50) == (pytest.approx(0.15), 5) and run.best("nothing") is None
    columns = (*PLAIN, "train/dis_loss", "val/dis_loss")  # of distill_model=, Ultralytics' own
    own = read(write(tmp_path / "own", columns, **{"train/dis_loss": 5, "val/dis_loss": 0})).columns
    assert all((own[f"{kind}/detection"] == run.columns[f"{kind}/detection"]).all() for kind in ("train", "val"))


def test_epochs_that_were_not_validated_are_no_zeros(tmp_path):
    write(tmp_path / "a")
    lines = (tmp_path / "a" / "results.csv").read_text().splitlines()
    for i in (1, 2, 4):
        cells = lines[i].split(",")
        lines[i] = ",".join([*cells[:3], "0", "0", "0", "0", *cells[7:]])
    (tmp_path / "a" / "results.csv").write_text("\n".join(lines))
    run = read(tmp_path / "a")
    assert np.isnan(run.columns[MAP50]).tolist() == [True, True, False, True, False]
    assert np.isnan(run.columns["val/detection"]).tolist() == [True, True, False, True, False]
    assert not np.isnan(run.columns["train/detection"]).any()


@settings(max_examples=25, deadline=None)
@given(values=st.lists(st.floats(0.001, 1), min_size=1, max_size=20))
def test_the_best_is_the_first_of_the_highest(values):
    run = Run("a", np.arange(1.0, len(values) + 1), {MAP: np.array(values)})
    assert run.best(MAP) == (max(values), values.index(max(values)) + 1)


def test_older_files_pad_their_columns(tmp_path):
    (tmp_path / "results.csv").write_text("     epoch,   metrics/mAP50(B)\n     0,  0.5\n     1,  0.25\n")
    assert read(tmp_path / "results.csv").best(MAP50) == (0.5, 0)


def test_runs_of_different_lengths_and_columns_are_laid_over_each_other(tmp_path, capsys):
    plain, taught = write(tmp_path / "runs/plain"), write(tmp_path / "runs/taught", DISTILLED, epochs=9)
    off = write(tmp_path / "runs/_off", DISTILLED, epochs=3, **{f"train/{t}": 0 for t in TERMS})
    picture = curves({"curves": f"{plain}, {taught}/results.csv,{off}", "save_dir": str(tmp_path / "made")})
    assert picture == tmp_path / "made" / "curves.png"
    said = [line.split() for line in capsys.readouterr().out.splitlines() if "(epoch" in line]
    assert said[0] == ["plain", "5", "15.0", "(epoch", "5)", "20.0", "(epoch", "5)"]
    assert [line[:2] for line in said] == [["plain", "5"], ["taught", "9"], ["_off", "3"]]
    alone = curves({"curves": [plain], "project": tmp_path, "name": "all"})
    assert alone == tmp_path / "all" / "curves.png"
    assert cv2.imread(str(picture)).shape[0] > 2 * cv2.imread(str(alone)).shape[0]  # rows for terms and shares


def test_lines_are_drawn_in_as_many_colours_as_there_are_runs(tmp_path):
    runs = [Run(f"${{{i}", np.arange(9.0), {MAP: np.linspace(0.1, 0.2 + 0.1 * i, 9)}) for i in range(3)]
    picture = cv2.imread(str(draw(runs, tmp_path / "a.png")))[..., ::-1]
    for colour in ((31, 119, 180), (255, 127, 14), (44, 160, 44)):
        assert (np.abs(picture.astype(int) - colour).sum(2) < 30).sum() > 100


@pytest.mark.parametrize("values", [[5.0], [np.nan, 3.0, 5.0], [np.inf, 5.0]])
def test_the_highest_point_stands_clear_of_the_frame(values):
    run = Run("a", np.arange(1.0, len(values) + 1), {MAP50: np.array(values)})
    axis = Figure().subplots()
    _draw_panel(axis, MAP50, [run], [{"color": "k"}])
    assert axis.get_ylim() == (0, pytest.approx(5.35))


def test_runs_of_the_same_name_are_told_apart(tmp_path):
    a, b = write(tmp_path / "one/run"), write(tmp_path / "two/run")
    text = summary([read(a, "one/run"), read(b, "two/run")])
    assert "one/run" in text and "two/run" in text
    assert _names([a, b]) == [str(a), str(b)] and _names([a / "results.csv", tmp_path]) == ["run", tmp_path.name]


def test_a_last_row_that_is_cut_short_is_left_out_and_said(tmp_path, capsys):
    file = write(tmp_path / "a") / "results.csv"
    whole = file.read_text()
    file.write_text(whole[:-6])
    assert len(read(tmp_path / "a").epoch) in (4, 5)  # the last number may have lost digits alone
    file.write_text(whole.rstrip()[: whole.rindex("\n5,") + 9])
    assert len(read(tmp_path / "a").epoch) == 4
    assert "cut short" in capsys.readouterr().out


def test_mistakes(tmp_path):
    (tmp_path / "empty").mkdir()
    texts = {"other": "a,b\n1,2\n", "begun": "epoch,lr/pg0\n", "nothing": "", "cut": "epoch,lr/pg0\n1,\x00"}
    texts |= {"damaged": "epoch,lr/pg0\n1,2\n2\n3,4\n", "words": "epoch,lr/pg0\n1,2\n2,x\n3,4\n"}
    for name, text in texts.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.csv").write_text(text)
    (tmp_path / "binary").mkdir()
    (tmp_path / "binary" / "results.csv").write_bytes(b"\xff\xfe\x00\x80")
    expected = {
        "missing": "there is no run",
        "empty": "holds no results.csv",
        "other": "no column 'epoch'",
        "nothing": "no column 'epoch'",
        "begun": "holds no finished epoch",
        "cut": "holds no finished epoch|no table",
        "damaged": "line 3 is not a row of 2 numbers",
        "words": "line 3 is not a row of 2 numbers",
        "binary": "is no table of a training run",
    }
    for name, said in expected.items():
        with pytest.raises(UserError, match=said):
            read(tmp_path / name)
    for asked, said in (({"curves": " , "}, "no run given"), ({"curves": "a", "imgsz": 9}, "not with imgsz=")):
        with pytest.raises(UserError, match=said):
            curves(asked)


def test_curves_need_no_model(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert cli.val(["curves=nowhere"]) == 2
    assert "nowhere" in capsys.readouterr().err


def test_runs_by_patterns_and_with_commas(tmp_path, capsys, monkeypatch):
    def drawn(given):
        curves({"curves": given, "save_dir": "made"})
        return [line.split()[0] for line in capsys.readouterr().out.splitlines() if "(epoch" in line]

    monkeypatch.chdir(tmp_path)
    for name in ("a, b", "r1", "r2", "r2-amplifier", "other"):
        write(tmp_path / "runs" / name)
    YAML.save(tmp_path / "runs/r2-amplifier/args.yaml", {"teacher": "t.pt", "model": "t.pt"})
    (tmp_path / "runs/r3").mkdir()
    (tmp_path / "runs/report").mkdir()
    (tmp_path / "runs/report/results.csv").write_text("model,ap50\na,0.5\n")
    assert drawn("runs/a, b") == ["a,"]
    assert drawn("runs/r*") == ["r1", "r2"]
    assert drawn("runs/other, runs/r*, runs/r1") == ["other", "r1", "r2"]
    assert drawn("runs/r?/results.csv") == drawn("runs/r**") == ["r1", "r2"]
    assert drawn("runs/**") == ["a,", "other", "r1", "r2"]
    assert drawn(["runs/r2", "runs/r1/results.csv", "runs/r2/results.csv"]) == ["r2", "r1"]
    assert len(drawn(",".join(["runs/r1"] * 99))) == 1  # longer than a name can be
    (tmp_path / "runs/r2-amplifier/args.yaml").write_text("a: [1")
    assert drawn("runs/r*") == ["r1", "r2", "r2-amplifier"]
    with pytest.raises(UserError, match=r"no run matches 'runs/x\*'"):
        drawn("runs/x*")


def test_a_table_saved_by_a_spreadsheet_is_read(tmp_path):
    file = write(tmp_path / "a") / "results.csv"
    file.write_text(file.read_text(), encoding="utf-8-sig")
    assert len(read(tmp_path / "a").epoch) == 5


def test_an_ap_of_0_is_drawn_and_a_term_that_is_off_is_not(tmp_path):
    nothing = {MAP50: 0, MAP: 0}
    run = read(write(tmp_path / "a", DISTILLED, **nothing, **{"train/ex_low": 0}))
    assert _measured([run], MAP50) and _measured([run], MAP)
    assert not _measured([run], "train/ex_low") and _measured([run], "train/im_full")


def test_runs_that_are_the_same_are_all_seen(tmp_path):
    runs = [Run(name, np.arange(9.0), {MAP: np.linspace(0.1, 0.5, 9)}) for name in "abc"]
    picture = cv2.imread(str(draw(runs, tmp_path / "a.png")))[..., ::-1].astype(int)
    panel = picture[: picture.shape[0] // 2, : picture.shape[1] // 5]
    for colour in ((31, 119, 180), (255, 127, 14), (44, 160, 44)):
        assert (np.abs(panel - colour).sum(2) < 90).sum() > 30
