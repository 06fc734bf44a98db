import pytest
import torch

from ds2d2_yolo.method.explicit import explicit_loss
from ds2d2_yolo.method.scale_weight import density_independent_scale_weight
from tests.method import slow_versions as slow

SIZES = ((8, 6), (5, 3), (1, 1))  # three levels


def features(seed, dtype=torch.float64, sizes=SIZES, batch=2, channels=3):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, channels, h, w, dtype=dtype, generator=generator) for h, w in sizes]


def weights_for(maps, seed=7):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(len(m), 1, -(-m.shape[2] // 2), -(-m.shape[3] // 2)) for m in maps]
    return [1 + torch.rand(shape, dtype=maps[0].dtype, generator=generator) for shape in shapes]


def arrays(tensors):
    return [t.numpy() for t in tensors]


def assert_terms(found, expected, rel=1e-9):
    assert list(found) == ["ex_low", "ex_high"]
    assert [v.shape for v in found.values()] == [(), ()]
    assert (found["ex_low"].item(), found["ex_high"].item()) == pytest.approx(expected, rel=rel)


@pytest.mark.parametrize("mode", ["zero", "symmetric"])
def test_equals_the_slow_version(mode):
    s, t = features(0), features(1)
    w = weights_for(s)
    expected = slow.explicit_terms(arrays(s), arrays(t), [m[:, 0].numpy() for m in w], "haar", mode)
    assert_terms(explicit_loss(s, t, w, mode=mode), expected)


@pytest.mark.parametrize("wavelet", ["haar", "db2", "bior2.2"])
@pytest.mark.parametrize(("normalize", "rel"), [("none", 1e-9), ("channel", 1e-3), ("teacher", 1e-9)])
def test_without_weights_every_basis_and_normalisation_equals_the_slow_version(wavelet, normalize, rel):
    s, t = (features(seed, sizes=((8, 6), (5, 4))) for seed in (0, 1))
    expected = slow.explicit_terms(arrays(s), arrays(t), None, wavelet, "reflect", normalize)
    assert_terms(explicit_loss(s, t, None, wavelet, "reflect", normalize), expected, rel)  # "channel" adds an epsilon


def test_no_weights_mean_ones():
    s, t = features(0), features(1)
    ones = [torch.ones_like(w) for w in weights_for(s)]
    expected = explicit_loss(s, t, ones)
    assert_terms(explicit_loss(s, t), (expected["ex_low"].item(), expected["ex_high"].item()))


def test_levels_are_summed_not_averaged():
    s, t = features(0), features(1)
    single = [explicit_loss([a], [b]) for a, b in zip(s, t, strict=True)]
    expected = tuple(sum(terms[name].item() for terms in single) for name in ("ex_low", "ex_high"))
    assert_terms(explicit_loss(s, t), expected)


def test_equal_features_cost_nothing_and_a_constant_offset_only_the_low_band():
    t = features(0, sizes=((4, 4),))
    assert_terms(explicit_loss(t, t), (0, 0))
    assert_terms(explicit_loss([t[0] + 3], t), (36, 0))  # LL of an offset of 3 is 6


@pytest.mark.parametrize("normalize", ["none", "channel", "teacher"])
def test_gradients(normalize):
    sizes = ((4, 3), (3, 2))
    students = tuple(s.requires_grad_() for s in features(0, sizes=sizes))
    teachers = features(1, sizes=sizes)
    weights = weights_for(teachers)

    def terms(*maps):
        return tuple(explicit_loss(maps, teachers, weights, "haar", "symmetric", normalize).values())

    assert torch.autograd.gradcheck(terms, students)


@pytest.mark.parametrize("normalize", ["none", "channel", "teacher"])
def test_the_targets_carry_no_gradient(normalize):
    s, t, w = features(0), features(1), weights_for(features(0))
    for maps in (s, t, w):
        for m in maps:
            m.requires_grad_()
    sum(explicit_loss(s, t, w, normalize=normalize).values()).backward()
    assert all(m.grad is not None for m in s)
    assert all(m.grad is None for m in (*t, *w))


def test_channel_normalisation_forgives_scale_and_offset():
    t = features(1, sizes=((8, 8),))
    scale, offset = torch.tensor([0.5, 3.0, 10.0]).view(1, 3, 1, 1), torch.tensor([-4.0, 0.0, 7.0]).view(1, 3, 1, 1)
    terms = explicit_loss([t[0] * scale + offset], t, normalize="channel")
    assert terms["ex_low"] < 1e-6
    assert terms["ex_high"] < 1e-6


def test_teacher_normalisation_forgives_the_targets_scale_but_not_an_offset():
    s, t = features(0, sizes=((8, 8),)), features(1, sizes=((8, 8),))
    plain = explicit_loss(s, t, normalize="teacher")
    scaled = explicit_loss([100 * s[0]], [100 * t[0]], normalize="teacher")
    assert_terms(scaled, (plain["ex_low"].item(), plain["ex_high"].item()))
    deviation = t[0].std(dim=(0, 2, 3), correction=0).view(1, 3, 1, 1)
    shifted = explicit_loss([t[0] + deviation], t, normalize="teacher")
    assert_terms(shifted, (4, 0), rel=1e-9)  # LL of one deviation is 2


@pytest.mark.parametrize("normalize", ["channel", "teacher"])
@pytest.mark.parametrize("student_is", ["constant", "random"])
@pytest.mark.parametrize("teacher_is", ["one channel constant", "constant"])
@pytest.mark.parametrize("shape", [(1, 3, 1, 1), (2, 3, 6, 5)])
def test_constant_channels_stay_bounded(normalize, student_is, teacher_is, shape):
    generator = torch.Generator().manual_seed(0)
    s = torch.randn(shape, generator=generator) if student_is == "random" else torch.full(shape, 2.0)
    t = torch.randn(shape, generator=generator)
    t[:, 0] = 0.5
    if teacher_is == "constant":
        t[:] = -1.0
    s.requires_grad_()
    total = sum(explicit_loss([s], [t], normalize=normalize).values())
    total.backward()
    assert total < 1e4
    assert s.grad.abs().max() < 1e4


def test_teacher_normalisation_counts_a_nearly_constant_channel_as_a_tenth_of_the_level():
    t = features(1, sizes=((8, 8),))[0]
    t[:, 0] *= 1e-2
    s = t.clone()
    s[:, 0] += 1
    variance = t.var(dim=(0, 2, 3), correction=0)
    assert variance[0] < 1e-2 * variance.mean()
    expected = 4 / (0.01 * variance.mean().item()) / 3  # an LL of 2 in one channel of three
    assert_terms(explicit_loss([s], [t], normalize="teacher"), (expected, 0))


@pytest.mark.parametrize("normalize", ["none", "channel", "teacher"])
def test_autocast_and_half_precision_features_give_float32_losses(normalize):
    s, t = features(0, torch.bfloat16), features(1, torch.bfloat16)
    expected = explicit_loss([m.float() for m in s], [m.float() for m in t], None, "db2", "symmetric", normalize)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = explicit_loss(s, t, None, "db2", "symmetric", normalize)
    for name, value in found.items():
        assert value.dtype == torch.float32
        assert torch.equal(value, expected[name])


def test_bounded_with_no_box_and_with_three_thousand():
    s, t = (features(seed, torch.float32, sizes=((40, 40),)) for seed in (0, 1))
    plain = explicit_loss(s, t)
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(3000, 2, generator=generator) * 300
    for boxes in (torch.zeros(0, 4), torch.cat((corner, corner + 5), dim=1)):
        weight = density_independent_scale_weight(boxes, torch.zeros(len(boxes)), 2, (320, 320), (20, 20))
        terms = explicit_loss(s, t, [weight])
        density = 1 + len(boxes) / (20 * 20)  # mean weight of the fullest image
        for name, value in terms.items():
            assert plain[name] * 0.99 < value < 2 * density * plain[name]


def test_errors_name_the_level_and_the_shapes():
    s, t = features(0), features(1)
    with pytest.raises(ValueError, match=r"level 1: student \(2, 3, 5, 3\) and teacher \(2, 4, 5, 3\)"):
        explicit_loss(s, [t[0], torch.zeros(2, 4, 5, 3), t[2]])
    with pytest.raises(ValueError, match=r"level 0: weight \(2, 1, 8, 6\) .* \(2, 1, 4, 3\)"):
        explicit_loss(s, t, [torch.ones(2, 1, 8, 6), *weights_for(s)[1:]])
    with pytest.raises(ValueError, match="student 3, teacher 2, weights none"):
        explicit_loss(s, t[:2])
    with pytest.raises(ValueError, match="student 3, teacher 3, weights 1"):
        explicit_loss(s, t, weights_for(s)[:1])
    with pytest.raises(ValueError, match="at least one: student 0"):
        explicit_loss([], [])
    with pytest.raises(ValueError, match="unknown normalize 'batch': use none, channel, teacher"):
        explicit_loss(s, t, normalize="batch")
    with pytest.raises(ValueError, match="unknown wavelet 'harr'"):
        explicit_loss(s, t, wavelet="harr")
