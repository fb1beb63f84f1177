"""The measures of the evaluation against closed forms and independent code."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from gouache.errors import InvalidInput, ShapeMismatch
from gouache.training.evaluation.retrieval import best_of, candidates, ranks
from gouache.training.evaluation.statistics import (
    bootstrap_difference,
    bootstrap_mean,
    bootstrap_share,
    kid,
    kid_difference,
    polynomial_kernel,
    resample_counts,
    squared_mmd,
)
from gouache.training.evaluation.suite import ssim


def test_bootstrap_intervals_cover_the_truth_as_often_as_they_promise() -> None:
    """1,000 samples of 60 from a skewed law of mean 1: the 90 % interval of the mean should hold it about 90 times in
    100. The bound on the count is 4 standard deviations of a binomial plus what percentile intervals lose (3 %)."""
    generator = np.random.default_rng(0)
    hits = 0
    for i in range(1000):
        interval = bootstrap_mean(generator.exponential(1.0, 60), seed=i, resamples=200, level=0.9)
        hits += interval.low <= 1.0 <= interval.high
    assert 830 <= hits <= 940


def test_the_width_of_an_interval_is_that_of_the_normal_law_for_many_values() -> None:
    values = np.random.default_rng(1).normal(3.0, 2.0, 400)
    interval = bootstrap_mean(values)
    assert interval.value == pytest.approx(values.mean())
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.06)


def test_pairs_tell_a_small_difference_from_chance() -> None:
    generator = np.random.default_rng(2)
    base = generator.normal(0, 10, 200)
    better = base + 0.5 + generator.normal(0, 1, 200)
    assert bootstrap_difference(better, base).significant
    assert not bootstrap_difference(generator.normal(0, 1, 200), generator.normal(0, 1, 200)).significant


def test_resamples_draw_as_many_items_as_there_are() -> None:
    counts = resample_counts(17, seed=3, resamples=50)
    assert counts.shape == (50, 17)
    assert (counts.sum(1) == 17).all()


@pytest.mark.parametrize("values", [[], [float("nan")], [[1.0], [2.0]]])
def test_values_that_have_no_mean_are_refused(values: list[float]) -> None:
    with pytest.raises(InvalidInput, match="values"):
        bootstrap_mean(values)


def test_a_share_without_spread_gets_the_exact_bound() -> None:
    """With 30 hits of 30 the lower end p solves p^30 = 0.025: a rarer run of hits than 1 in 40 is not believed."""
    perfect, none = bootstrap_share([1.0] * 30), bootstrap_share([0.0] * 30)
    assert perfect.low**30 == pytest.approx(0.025)
    assert (perfect.value, perfect.high) == (1.0, 1.0)
    assert none.low == 0.0
    assert none.high == pytest.approx(1 - perfect.low)
    mixed = [1.0, 0.0] * 20
    assert bootstrap_share(mixed) == bootstrap_mean(mixed)
    with pytest.raises(InvalidInput, match="0 and 1"):
        bootstrap_share([0.5])


def test_paired_values_must_be_as_many() -> None:
    with pytest.raises(InvalidInput, match="paired"):
        bootstrap_difference([1.0, 2.0], [1.0])


def exact_squared_mmd(mean: np.ndarray) -> float:
    """Between N(mean, 1) and N(0, 1) in D dimensions under the kernel (x.y/D + 1)^3.

    E (s + 1)^3 with s = x.y/D = 1 + 3 E s + 3 E s^2 + E s^3, and for independent x ~ N(a, I), y ~ N(b, I):
    E x.y = a.b; E (x.y)^2 = (a.b)^2 + |a|^2 + |b|^2 + D; E (x.y)^3 = (a.b)^3 + 3 a.b (|a|^2 + |b|^2 + D + 2).
    """
    d = len(mean)

    def expected(a: np.ndarray, b: np.ndarray) -> float:
        ab, norms = float(a @ b), float(a @ a + b @ b)
        return 1 + 3 * ab / d + 3 * (ab**2 + norms + d) / d**2 + (ab**3 + 3 * ab * (norms + d + 2)) / d**3

    zero = np.zeros(d)
    return expected(mean, mean) + expected(zero, zero) - 2 * expected(mean, zero)


def test_kid_of_two_gaussians_is_the_closed_form() -> None:
    mean = np.array([0.5, -0.5, 1.0, 0.0, 0.0, 0.5])
    generator = np.random.default_rng(4)
    estimates = [
        kid(generator.normal(size=(150, 6)) + mean, generator.normal(size=(150, 6)), resamples=2).value
        for _ in range(60)
    ]
    error = np.std(estimates) / np.sqrt(len(estimates))
    assert np.mean(estimates) == pytest.approx(exact_squared_mmd(mean), abs=4 * error)
    assert exact_squared_mmd(mean) > 20 * error  # the closed form is told from zero by this test


def test_kid_of_one_law_with_itself_is_zero_on_average_however_few_the_pictures() -> None:
    """The estimate is unbiased: for 12 pictures its mean over many draws is zero, and it is often negative."""
    generator = np.random.default_rng(5)
    estimates = [
        kid(generator.normal(size=(12, 8)), generator.normal(size=(12, 8)), resamples=2).value for _ in range(400)
    ]
    assert abs(np.mean(estimates)) < 4 * np.std(estimates) / 20
    assert min(estimates) < 0


def test_the_interval_of_kid_holds_the_truth_and_shrinks() -> None:
    mean = np.full(6, 0.6)
    generator = np.random.default_rng(6)
    hits = 0
    for i in range(40):
        interval = kid(generator.normal(size=(80, 6)) + mean, generator.normal(size=(80, 6)), seed=i, resamples=100)
        hits += interval.low <= exact_squared_mmd(mean) <= interval.high
    assert hits >= 32


def test_the_difference_of_two_kids_is_that_of_the_estimates_and_sees_what_is_nearer() -> None:
    generator = np.random.default_rng(9)
    reference, base = generator.normal(size=(100, 5)), generator.normal(size=(60, 5))
    near, far = base + 0.2, base + 0.8
    interval = kid_difference(near, far, reference, resamples=200)
    separate = kid(near, reference, resamples=1).value - kid(far, reference, resamples=1).value
    assert interval.value == pytest.approx(separate, rel=1e-9)
    assert interval.high < 0
    assert not kid_difference(near, near, reference, resamples=50).significant


def test_weights_act_like_repeated_items_that_never_meet_themselves() -> None:
    generator = np.random.default_rng(7)
    x, y = generator.normal(size=(5, 3)), generator.normal(size=(4, 3))
    weights, ones = np.array([2.0, 0.0, 1.0, 1.0, 1.0]), np.ones(4)
    xx, yy, xy = polynomial_kernel(x, x), polynomial_kernel(y, y), polynomial_kernel(x, y)
    drawn = [0, 0, 2, 3, 4]
    pairs = [xx[i, j] for a, i in enumerate(drawn) for b, j in enumerate(drawn) if a != b and i != j]
    expected = np.mean(pairs) + yy[~np.eye(4, dtype=bool)].mean() - 2 * xy[drawn].mean()
    assert squared_mmd(xx, yy, xy, weights, ones) == pytest.approx(expected, rel=1e-12)


def test_features_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ShapeMismatch):
        kid(np.zeros((4, 3)), np.zeros((4, 2)))
    with pytest.raises(InvalidInput):
        kid(np.zeros((1, 3)), np.zeros((4, 3)))


def test_ssim_equals_scikit_image() -> None:
    skimage = pytest.importorskip("skimage.metrics")
    generator = torch.Generator().manual_seed(0)
    target = F.interpolate(torch.randn(2, 3, 10, 8, generator=generator), size=(40, 33), mode="bicubic").clamp(-1, 1)
    picture = (target + 0.2 * torch.randn(2, 3, 40, 33, generator=generator)).clamp(-1, 1)
    expected = [
        skimage.structural_similarity(
            a.permute(1, 2, 0).double().numpy(),
            b.permute(1, 2, 0).double().numpy(),
            data_range=2.0,
            channel_axis=2,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        for a, b in zip(picture, target, strict=True)
    ]
    assert ssim(picture, target).tolist() == pytest.approx(expected, abs=1e-9)
    assert ssim(target, target).tolist() == pytest.approx([1.0, 1.0], abs=1e-12)


def test_ssim_refuses_pictures_smaller_than_its_window() -> None:
    with pytest.raises(ShapeMismatch, match="11"):
        ssim(torch.zeros(1, 3, 10, 40), torch.zeros(1, 3, 10, 40))


def test_candidates_are_the_own_caption_and_others_of_other_concepts() -> None:
    keys = [f"c{i % 30}" for i in range(60)]
    owners = ["c3", "c29", "c3"]
    chosen = candidates(keys, owners, 20, seed=1)
    assert chosen.shape == (3, 20)
    for row, owner in zip(chosen.tolist(), owners, strict=True):
        names = [keys[i] for i in row]
        assert names[0] == owner
        assert len(set(names)) == 20
    assert torch.equal(chosen, candidates(keys, owners, 20, seed=1))
    assert not torch.equal(chosen[0], chosen[2])  # each picture has its own others
    assert len(set(candidates(keys, ["c0"], 30, seed=0)[0].tolist())) == 30


def test_candidates_refuse_what_can_not_be() -> None:
    with pytest.raises(InvalidInput, match="count"):
        candidates(["a", "b", "a"], ["a"], 3, seed=0)
    with pytest.raises(InvalidInput, match="owners"):
        candidates(["a", "b"], ["c"], 2, seed=0)


def test_ranks_of_known_scores() -> None:
    captions = torch.eye(4)
    pictures = torch.tensor([[0.9, 0.1, 0.0, 0.0], [0.5, 0.4, 0.6, 0.7], [0.5, 0.5, 0.0, 0.0]])
    chosen = torch.tensor([[0, 1, 2], [0, 2, 3], [0, 1, 2]])
    assert ranks(pictures, captions, chosen).tolist() == [1, 3, 2]  # a tie is lost


def test_ranks_of_random_vectors_are_uniform() -> None:
    generator = torch.Generator().manual_seed(8)
    pictures, captions = (F.normalize(torch.randn(4000, 16, generator=generator), dim=1) for _ in range(2))
    keys = [str(i) for i in range(4000)]
    rank = ranks(pictures, captions, candidates(keys, keys, 100, seed=0)).double()
    assert rank.mean().item() == pytest.approx(50.5, abs=4 * 28.9 / 4000**0.5)
    assert (rank <= 5).double().mean().item() == pytest.approx(0.05, abs=4 * 0.0035)


def test_best_of_own_captions() -> None:
    pictures = F.normalize(torch.tensor([[1.0, 0.2], [0.1, 1.0]]), dim=1)
    own = torch.eye(2).expand(2, 2, 2)
    assert best_of(pictures, own).tolist() == [0, 1]
