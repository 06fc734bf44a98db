import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ds2d2_yolo.report.agreement import Agreement, Candidates, Selection, compare_detections, compare_raw

NMS = Selection(iou=0.7, conf=0.25, max_det=300)
# x1, y1, x2, y2, score, class; the first two overlap by 0.8 of their union and score all but the same
ROWS = torch.tensor(
    [
        [10.0, 10, 20, 20, 0.90000, 0],
        [10.0, 10, 20, 18, 0.89999, 0],
        [40.0, 10, 60, 20, 0.80, 1],
        [40.0, 40, 44, 48, 0.60, 0],
        [70.0, 70, 90, 90, 0.2501, 2],
    ]
)
CANDIDATES = Candidates.from_detections(ROWS, nc=3)
KEPT = ROWS[[0, 2, 3, 4]]


def compared(exported, reference=KEPT, rule=NMS):
    return compare_detections(exported, reference, CANDIDATES, rule)


def test_raw_outputs_differ_by_their_largest_element():
    reference = torch.rand(2, 7, 30)
    exported = reference.clone()
    exported[1, 2, 5] += 0.25
    exported[0, 6, 1] -= 0.125
    agreement = compare_raw(exported, reference)
    assert agreement.images == 2
    assert agreement.compared == 60
    assert agreement.box == pytest.approx(0.25, abs=1e-6)
    assert agreement.score == pytest.approx(0.125, abs=1e-6)
    assert not agreement.close
    assert compare_raw(reference, reference).close


def test_a_raw_output_that_is_no_detector_any_more_is_not_near():
    reference = torch.rand(2, 7, 300, generator=torch.Generator().manual_seed(0)) + torch.tensor(
        [[50], [50], [20], [20], [0], [0], [0]]
    )
    reference[:, 4:] **= 8  # most boxes are background
    coarse = reference + torch.tensor([[2.0], [-2], [1], [1], [0.1], [0.1], [0.1]])
    assert compare_raw(coarse, reference).near and not compare_raw(coarse, reference).close
    background = reference[:, 4:].amax(1, keepdim=True) < 0.25
    boxes = torch.tensor([[1.0], [1], [1], [1], [0], [0], [0]])
    assert background.float().mean() > 0.5 and compare_raw(reference + 90 * background * boxes, reference).near
    for ruined in (reference.flip(1), reference * (1 + 8 * boxes), reference * 0, reference + background):
        agreement = compare_raw(ruined, reference)
        assert not agreement.near and "without a counterpart" in str(agreement)


def test_raw_outputs_of_different_shape_are_refused():
    with pytest.raises(ValueError, match=r"\(1, 7, 30\)"):
        compare_raw(torch.zeros(1, 7, 30), torch.zeros(1, 7, 29))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_are_none_are_infinitely_far(value):
    raw = torch.zeros(1, 7, 30)
    raw[0, 0, 0] = value
    assert compare_raw(raw, torch.zeros(1, 7, 30)).box == math.inf
    rows = KEPT.clone()
    rows[0, 0] = value
    assert not compared(rows).close


@given(order=st.permutations(range(len(KEPT))), padding=st.integers(0, 3))
def test_order_and_padding_are_no_difference(order, padding):
    agreement = compared(torch.cat([KEPT[list(order)], torch.zeros(padding, 6)]))
    assert agreement == Agreement(images=1, compared=4)
    assert agreement.close


def test_the_difference_of_a_detection_is_that_to_its_candidate():
    exported = KEPT.clone()
    exported[1, 3] += 0.03
    exported[2, 4] -= 0.0005
    agreement = compared(exported)
    assert agreement.box == pytest.approx(0.03, abs=1e-5)
    assert agreement.score == pytest.approx(0.0005, abs=1e-6)
    assert agreement.unmatched == 0
    assert agreement.close


def test_which_of_two_equals_survives_nms_is_rounding():
    swapped = ROWS[[1, 2, 3, 4]]
    assert compared(swapped) == Agreement(images=1, compared=4)


def test_whether_a_score_passes_the_threshold_is_rounding():
    assert compared(KEPT[:3]).unmatched == 0


def test_the_last_place_of_a_full_list_is_rounding():
    tied = ROWS.clone()
    tied[4, 4] = tied[3, 4]
    rule = Selection(max_det=3)
    assert (
        compare_detections(tied[[0, 2, 4]], tied[[0, 2, 3]], Candidates.from_detections(tied, 3), rule).unmatched == 0
    )


@pytest.mark.parametrize("rule", [NMS, Selection()], ids=["nms", "top-k"])
def test_a_detection_that_is_gone_is_counted(rule):
    agreement = compared(KEPT[[0, 2, 3]], rule=rule)
    assert agreement.unmatched == 1
    assert not agreement.close


def test_nms_that_was_not_done_is_counted():
    assert compared(ROWS).unmatched == 1
    assert compared(ROWS, reference=ROWS, rule=Selection()).unmatched == 0


def test_another_class_is_no_counterpart():
    exported = KEPT.clone()
    exported[1, 5] = 2
    assert compared(exported).unmatched + (compared(exported).box > 1) >= 2
    assert not compared(exported).close


def test_nothing_found_by_both_is_not_called_agreement():
    agreement = compared(torch.zeros(3, 6), reference=torch.zeros(0, 6))
    assert "nothing compared" in str(agreement)


def test_agreements_add_up_and_print():
    total = Agreement(3, 0.001, 1e-6, 10, 0) + Agreement(5, 0.0003, 2e-6, 90, 1)
    assert total == Agreement(8, 0.001, 2e-6, 100, 1)
    assert str(total) == (
        "checked on 8 images: boxes differ by at most 0.001 px, scores by at most 2e-06, "
        "1 of 100 detections without a counterpart"
    )


@pytest.mark.parametrize(
    ("box", "score", "unmatched", "near"),
    [(56, 0.1, 10, True), (56, 0.1, 11, False), (math.inf, 0.1, 0, False), (1, math.inf, 0, False)],
)
def test_reduced_precision_may_be_off_but_finds_most(box, score, unmatched, near):
    assert Agreement(images=1, box=box, score=score, compared=20, unmatched=unmatched).near == near


def test_the_last_place_excuses_nothing_where_there_were_more():
    """What lies at the lowest score found may have been cut off by ``max_det``, but not where there was room."""
    assert compared(KEPT[:2]).unmatched == 1  # the last is at the threshold of the scores


@pytest.mark.parametrize("bottom", [69.5, 69.9, 70.1, 70.5])
def test_at_the_threshold_of_overlap_rounding_decides(bottom):
    both = torch.tensor([[0.0, 0, 100, 100, 0.9, 0], [0, 0, 100, bottom, 0.8, 0]])
    offered = Candidates.from_detections(both, 1)
    for exported in (both, both[:1]):
        assert compare_detections(exported, both, offered, NMS).unmatched == 0
