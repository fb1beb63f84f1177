"""Noise: golden Philox numbers, stable streams, independence of the batch, the a1111 rules, the Brownian path."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from gouache.diffusion.rng import (
    BrownianNoise,
    ImageNoise,
    ImageSeed,
    NoiseMode,
    Philox,
    TorchStream,
    generator_for,
    philox_4x32,
    seed_stream,
    seeds_of_batch,
    slerp,
    stream_seed,
)
from gouache.errors import InvalidInput, ShapeMismatch, UnknownName

SHAPE = (4, 6, 5)
GOLDEN_STREAM_SEED = 1372911971463092849


def one(seed: int, *, mode: NoiseMode = "torch") -> ImageNoise:
    return ImageNoise([ImageSeed(seed)], mode=mode)


# Golden: the known-answer vectors that the authors of Philox publish with Random123 (file tests/kat_vectors).
@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_its_authors_known_answers(
    counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]
) -> None:
    words = philox_4x32(np.array(counter, dtype=np.uint32)[:, None], key)
    assert tuple(int(word) for word in words[:, 0]) == expected


def test_philox_normals_are_those_of_cuda() -> None:
    # Golden: seed 0, shape (3, 4), torch.randn on CUDA as stable-diffusion-webui states it (modules/rng_philox.py).
    expected = [
        [-0.92466259, -0.42534415, -2.6438457, 0.14518388],
        [-0.12086647, -0.57972564, -0.62285122, -0.32838709],
        [-1.07454231, -0.36314407, -1.67105067, 2.26550497],
    ]
    # The card's fp32 sine and logarithm differ from fp64's in the last digit or two.
    torch.testing.assert_close(Philox(0).randn((3, 4)), torch.tensor(expected), rtol=0, atol=4e-7)


def test_philox_blocks_are_standard_normal_and_differ() -> None:
    stream = Philox(2**63 + 5)
    first, second = stream.randn((200_000,)), stream.randn((200_000,))
    # Standard errors: mean 0.0022, variance 0.0032, correlation 0.0022; bounds at 6 of them, false alarm < 1e-8.
    for block in (first, second):
        assert abs(float(block.mean())) < 0.0135
        assert abs(float(block.var()) - 1) < 0.019
    assert abs(float((first * second).mean())) < 0.0135
    assert not Philox(5).randn((8,)).equal(Philox(2**32 + 5).randn((8,))), "the seed's upper word must count"


def test_stream_seeds_are_pinned() -> None:
    # Golden: coreutils, `printf 42/latents/0 | b2sum -l 64`, big-endian, modulo 2^63. The same in every process.
    assert stream_seed(42, "latents") == GOLDEN_STREAM_SEED


def test_streams_differ_by_seed_purpose_and_index() -> None:
    drawn = [
        torch.randn(64, generator=generator_for(seed, purpose, index))
        for seed in (1, 2)
        for purpose in ("latents", "steps")
        for index in (0, 1)
    ]
    gram = torch.stack(drawn).corrcoef().fill_diagonal_(0).abs()
    # |r| of 64 pairs has standard error 0.125; 28 pairs, fixed seeds: this either holds for good or is a clash.
    assert float(gram.max()) < 0.6


def test_nothing_touches_the_global_random_state() -> None:
    before = torch.get_rng_state()
    noise = ImageNoise(seeds_of_batch(3, 2, 9, 0.3))
    noise(noise.initial(SHAPE), 2.0, 1.0)
    generator_for(1, "mask")
    assert torch.get_rng_state().equal(before)


@pytest.mark.parametrize("mode", ["torch", "a1111", "cpu"])
def test_picture_k_of_a_batch_has_the_noise_it_has_alone(mode: NoiseMode) -> None:
    seeds = seeds_of_batch(100, 3)
    together = ImageNoise(seeds, mode=mode)
    initial = together.initial(SHAPE)
    steps = [together(initial, 3.0, 2.0), together(initial, 2.0, 1.0)]
    assert not steps[0].equal(steps[1])
    for k, seed in enumerate(seeds):
        alone = ImageNoise([seed], mode=mode)
        assert alone.initial(SHAPE)[0].equal(initial[k])
        for step in steps:
            assert alone(initial[k : k + 1], 3.0, 2.0)[0].equal(step[k])


def test_noise_is_drawn_once_and_cast_to_what_the_sampler_uses() -> None:
    x = torch.zeros(1, *SHAPE)
    single, double = one(7)(x, 2.0, 1.0), one(7)(x.double(), 2.0, 1.0)
    assert double.dtype == torch.float64
    assert double.float().equal(single)


def test_a1111_steps_follow_the_initial_block_or_restart_at_the_ensd() -> None:
    noise = one(11, mode="a1111")
    initial = noise.initial(SHAPE)
    stream = Philox(11)
    assert initial[0].equal(stream.randn(SHAPE))
    assert noise(initial, 2.0, 1.0)[0].equal(stream.randn(SHAPE))
    delayed = ImageNoise([ImageSeed(11)], mode="a1111", eta_seed_delta=31337)
    assert delayed.initial(SHAPE).equal(initial)
    assert delayed(initial, 2.0, 1.0)[0].equal(Philox(11 + 31337).randn(SHAPE))


def test_seed_arithmetic_counts_seeds_or_subseeds_but_not_both() -> None:
    assert [seed.seed for seed in seeds_of_batch(5, 3)] == [5, 6, 7]
    varied = seeds_of_batch(5, 3, subseed=70, subseed_strength=0.2)
    assert [(seed.seed, seed.subseed) for seed in varied] == [(5, 70), (5, 71), (5, 72)]


@pytest.mark.parametrize("mode", ["torch", "a1111", "cpu"])
def test_subseeds_lead_from_one_noise_to_the_other(mode: NoiseMode) -> None:
    def noise(strength: float) -> Tensor:
        return ImageNoise([ImageSeed(1, 2, strength)], mode=mode).initial(SHAPE)

    assert noise(0.0).equal(one(1, mode=mode).initial(SHAPE))
    torch.testing.assert_close(noise(1.0), one(2, mode=mode).initial(SHAPE), rtol=1e-5, atol=1e-6)
    lengths = torch.stack([noise(s / 4).flatten().norm() for s in range(5)])
    assert float(lengths.max() / lengths.min()) < 1.25, "the noise level is kept on the way"


def test_slerp_walks_the_great_circle_at_even_pace() -> None:
    start, end = torch.tensor([1.0, 0.0], dtype=torch.float64), torch.tensor([0.0, 1.0], dtype=torch.float64)
    for fraction in (0.0, 0.25, 0.5, 1.0):
        angle = fraction * math.pi / 2
        expected = torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)
        torch.testing.assert_close(slerp(start, end, fraction), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(slerp(start, start, 0.3), start)


def test_slerp_along_one_axis_treats_each_column_by_itself() -> None:
    generator = torch.Generator().manual_seed(0)
    start, end = torch.randn(2, 3, 8, 4, generator=generator, dtype=torch.float64)
    mixed = slerp(start, end, 0.4, dim=1)
    for c in range(3):
        for w in range(4):
            torch.testing.assert_close(mixed[c, :, w], slerp(start[c, :, w], end[c, :, w], 0.4))


def test_brownian_noise_is_standard_normal_and_overlaps_as_it_must() -> None:
    number = 40_000
    noise = BrownianNoise(TiledNoise(number))
    x = torch.zeros(number, 1, dtype=torch.float64)
    to_middle, whole = noise(x, 4.0, 3.0), noise(x, 4.0, 1.0)
    rest = noise(x, 3.0, 1.0)
    # Correlation of W over [3, 4] and over [1, 4] is sqrt(1 / 3); the two halves are independent. Six standard errors.
    for block in (to_middle, whole, rest):
        assert abs(float(block.var()) - 1) < 0.045
    assert float((to_middle * whole).mean()) == pytest.approx(math.sqrt(1 / 3), abs=0.035)
    assert abs(float((to_middle * rest).mean())) < 0.03
    # One path: the increments add up, whichever interval was asked first.
    torch.testing.assert_close(to_middle + math.sqrt(2) * rest, math.sqrt(3) * whole)


def test_a_brownian_point_between_two_known_ones_comes_from_the_bridge() -> None:
    number = 40_000
    noise = BrownianNoise(TiledNoise(number))
    x = torch.zeros(number, 1, dtype=torch.float64)
    whole, first = noise(x, 4.0, 1.0), noise(x, 4.0, 3.0)
    assert abs(float(first.var()) - 1) < 0.045
    assert float((first * whole).mean()) == pytest.approx(math.sqrt(1 / 3), abs=0.035)


class TiledNoise:
    """Independent noise for a large batch from one generator."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.stream = TorchStream(torch.Generator().manual_seed(5))

    def __call__(self, x: Tensor, sigma: float, sigma_next: float) -> Tensor:  # noqa: ARG002
        return self.stream.randn(x.shape).to(x)


@pytest.mark.parametrize("bad", [-1, 2**63, 1.5, True, "7", None])
def test_seeds_that_are_no_seeds_are_refused(bad: object) -> None:
    with pytest.raises(InvalidInput, match="seed"):
        ImageSeed(bad)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="seed"):
        stream_seed(bad, "latents")  # type: ignore[arg-type]


def test_bad_input_is_refused() -> None:
    with pytest.raises(InvalidInput, match="number of images"):
        seeds_of_batch(1, 0)
    with pytest.raises(InvalidInput, match="subseed_strength"):
        ImageSeed(1, 2, 1.5)
    with pytest.raises(InvalidInput, match="seeds"):
        ImageNoise([])
    with pytest.raises(UnknownName, match="Did you mean 'a1111'"):
        ImageNoise([ImageSeed(1)], mode="a111")  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="eta_seed_delta"):
        ImageNoise([ImageSeed(1)], eta_seed_delta=1)
    with pytest.raises(ShapeMismatch, match="a batch of 3"):
        one(1)(torch.zeros(3, *SHAPE), 2.0, 1.0)
    with pytest.raises(ShapeMismatch):
        slerp(torch.zeros(3), torch.zeros(4), 0.5)
    with pytest.raises(InvalidInput, match="fraction"):
        slerp(torch.zeros(3), torch.zeros(3), 1.5)
    with pytest.raises(InvalidInput, match="two different"):
        BrownianNoise(one(1))(torch.zeros(1, *SHAPE), 2.0, 2.0)
    with pytest.raises(InvalidInput, match="seed"):
        Philox(-1)


@pytest.mark.parametrize(
    ("seed", "shape"),
    [(seed, SHAPE) for seed in (0, 1, 2, 42, 31337, 2**31, 2**32 - 1, 2**32 + 5, 2**63 - 1)]
    + [(7, shape) for shape in ((4, 64, 64), (4, 8, 12), (16, 3, 5), (1, 1, 3))],
)
def test_cpu_is_one_torch_generator_first_for_the_latents_and_then_for_the_steps(
    seed: int, shape: tuple[int, ...]
) -> None:
    """The kind: another tool's seed. diffusers, ComfyUI (initial noise) and A1111 with RNG: CPU seed one generator with
    the seed itself and take blocks from it; whatever the seed and the shape, its numbers are ours."""
    generator = torch.Generator("cpu").manual_seed(seed)
    noise = one(seed, mode="cpu")
    first = torch.randn((1, *shape), generator=generator)
    assert noise.initial(shape).equal(first)
    for _ in range(3):
        assert noise(first, 2.0, 1.0).equal(torch.randn((1, *shape), generator=generator))


def test_cpu_has_the_ensd_and_the_variations_of_a1111() -> None:
    delayed = ImageNoise([ImageSeed(11)], mode="cpu", eta_seed_delta=31337)
    initial = delayed.initial(SHAPE)
    assert initial.equal(one(11, mode="cpu").initial(SHAPE))
    assert delayed(initial, 2.0, 1.0).equal(one(11 + 31337, mode="cpu").initial(SHAPE))
    ends = [torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)]
    varied = ImageNoise([ImageSeed(1, 2, 0.3)], mode="cpu")
    assert varied.initial(SHAPE)[0].equal(slerp(ends[0], ends[1], 0.3, dim=1))
    assert varied.unvaried(SHAPE)[0].equal(ends[0])
    with pytest.raises(InvalidInput, match="a1111 or cpu"):
        ImageNoise([ImageSeed(1)], eta_seed_delta=1)
    with pytest.raises(UnknownName, match="stream of its own"):
        seed_stream(1, "torch")
