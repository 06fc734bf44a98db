"""NMS over a batch, as a program and as a traced graph."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import batched_nms

from ds2d2_yolo.detectors.boxes import select

pytestmark = [  # both of torchvision's and PyTorch's own making
    pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]
LIMITS = (1, 4, 30)
SETTINGS = {"iou": 0.5, "score": 0.3, "min_size": 3.0}


def one_by_one(boxes, scores, groups, iou, limit, score=0.0, min_size=0.0):
    """The places of each image's survivors, by a loop over torchvision's NMS."""
    survivors = []
    for b, s, g in zip(boxes, scores, groups, strict=True):
        wide = torch.minimum(b[:, 2] - b[:, 0], b[:, 3] - b[:, 1]) >= min_size
        places = torch.where((s > score) & wide)[0]
        survivors.append(places[batched_nms(b[places], s[places], g[places], iou)][:limit].tolist())
    return survivors


def survivors_of(places, taken):
    """The same of what ``select`` returns."""
    assert all(t.tolist() == sorted(t.tolist(), reverse=True) for t in taken)  # no gaps
    assert not places[~taken].any()
    return [p[t].tolist() for p, t in zip(places, taken, strict=True)]


@st.composite
def batches(draw):
    # Whole pixels, so that overlaps are exact also far from the origin, where traced NMS moves boxes to
    images, n = draw(st.integers(1, 4)), draw(st.integers(1, 12))
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    corners = torch.randint(0, draw(st.sampled_from([3, 12, 60])), (images, n, 2), generator=random)
    edges = torch.randint(0, 20, (images, n, 2), generator=random)
    # No two scores are the same: the order of equals is nobody's promise
    scores = (torch.randperm(images * n, generator=random).reshape(images, n) + 0.5) / (images * n)
    groups = torch.randint(0, draw(st.integers(1, 4)), (images, n), generator=random)
    return torch.cat([corners, corners + edges], 2).float(), scores, groups


@given(batches(), st.integers(1, 15), st.sampled_from([0.0, 0.3, 0.5, 1.0]), st.sampled_from([0.0, 0.4]))
@settings(max_examples=150, deadline=None)
def test_select_is_torchvisions_nms_image_by_image(batch, limit, iou, score):
    places, taken = select(*batch, iou, limit, score, 2.0)
    assert places.shape == taken.shape == (len(batch[0]), min(limit, batch[0].shape[1]))
    assert survivors_of(places, taken) == one_by_one(*batch, iou, limit, score, 2.0)


@pytest.fixture(scope="module")
def traced():
    """Graphs made with one batch of two images and five boxes, one graph a limit."""
    boxes = torch.tensor([[[0.0, 0, 9, 9], [1, 0, 9, 9], [20, 20, 30, 30], [0, 0, 9, 8], [5, 5, 9, 9]]] * 2)
    example = boxes, torch.linspace(0.2, 0.9, 10).reshape(2, 5), torch.tensor([[0, 0, 1, 1, 0]] * 2)

    def graph(limit):
        return torch.jit.trace(lambda b, s, g: select(b, s, g, limit=limit, **SETTINGS), example, check_trace=False)

    return {limit: graph(limit) for limit in (*LIMITS, 400)}


@given(batches(), st.sampled_from(LIMITS))
@settings(max_examples=150, deadline=None)
def test_a_traced_graph_selects_the_same_from_other_batches(traced, batch, limit):
    places, taken = traced[limit](*batch)
    assert places.shape == (len(batch[0]), limit)  # of fixed width, also with fewer boxes
    assert survivors_of(places, taken) == survivors_of(*select(*batch, limit=limit, **SETTINGS))


def test_many_classes_in_a_large_batch_select_the_same(traced):
    random = torch.Generator().manual_seed(0)
    corners = torch.randint(0, 8 * 64, (32, 400, 2), generator=random) / 64  # of pixels
    boxes = torch.cat([corners, corners + torch.randint(8 * 64, 16 * 64, (32, 400, 2), generator=random) / 64], 2)
    boxes[:, 0] += 1000  # the other end of the image
    scores = (torch.randperm(32 * 400, generator=random).reshape(32, 400) + 0.5) / (32 * 400)
    batch = boxes, scores, torch.randint(0, 80, (32, 400), generator=random)
    assert survivors_of(*traced[400](*batch)) == survivors_of(*select(*batch, limit=400, **SETTINGS))


@pytest.mark.parametrize("limit", LIMITS)
def test_nothing_to_select(traced, limit):
    batch = torch.zeros(3, 6, 4), torch.full((3, 6), 0.9), torch.zeros(3, 6, dtype=torch.long)
    for run in (traced[limit], lambda *b: select(*b, limit=limit, **SETTINGS)):
        places, taken = run(*batch)
        assert len(places) == 3 and not taken.any() and not places.any()


def test_no_boxes_at_all():
    nothing = torch.zeros(2, 0, 4), torch.zeros(2, 0), torch.zeros(2, 0, dtype=torch.long)
    assert [t.shape for t in select(*nothing, 0.5, 10)] == [(2, 0)] * 2


def test_thresholds_are_where_they_are_said_to_be():
    boxes = torch.tensor([[[0.0, 0, 10, 10], [50, 0, 60, 10], [100, 0, 102, 10], [150, 0, 160, 1.9]]])
    scores, groups = torch.tensor([[0.5, 0.3, 0.9, 0.8]]), torch.zeros(1, 4, dtype=torch.long)
    assert survivors_of(*select(boxes, scores, groups, 0.5, 4, score=0.3)) == [[2, 3, 0]]  # no higher score: gone
    assert survivors_of(*select(boxes, scores, groups, 0.5, 4, min_size=2.0)) == [[2, 0, 1]]  # of that edge: kept
    zero = torch.zeros_like(scores)
    assert survivors_of(*select(boxes, zero, groups, 0.5, 4)) == [[]]
    assert len(survivors_of(*select(boxes, zero, groups, 0.5, 4, score=-1.0))[0]) == 4


def test_boxes_that_are_not_numbers_are_never_selected():
    boxes = torch.tensor([[[0.0, 0, 10, 10], [float("nan")] * 4, [0, 0, 9, 9]]])
    scores = torch.tensor([[0.5, 0.9, float("nan")]])
    assert survivors_of(*select(boxes, scores, torch.zeros(1, 3, dtype=torch.long), 0.5, 3)) == [[0]]


def test_nor_do_they_move_others_in_a_traced_graph(traced):
    boxes = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 9, 9], [50, 50, 60, 60]], [[float("nan")] * 4] * 3])
    batch = boxes, torch.tensor([[0.9, 0.8, 0.7]] * 2), torch.zeros(2, 3, dtype=torch.long)
    limit = max(LIMITS)
    assert survivors_of(*traced[limit](*batch)) == survivors_of(*select(*batch, limit=limit, **SETTINGS)) != [[], []]


def test_equal_scores_keep_torchvisions_order():
    draw = torch.Generator().manual_seed(0)
    corners = torch.randint(0, 500, (1, 1500, 2), generator=draw).float()
    boxes = torch.cat([corners, corners + 12], 2)
    scores = torch.randint(1, 4, (1, 1500), generator=draw) / 4
    groups = torch.zeros(1, 1500, dtype=torch.long)
    assert survivors_of(*select(boxes, scores, groups, 0.5, 300)) == one_by_one(boxes, scores, groups, 0.5, 300)
