"""Where randomness comes from: one CPU generator per seed, purpose and index. No global state, ever.

Drawing per image keeps a picture independent of its batch; drawing on the CPU keeps it independent of the GPU. Two
more families repeat other tools' noise. "a1111" is stable-diffusion-webui's: Philox as CUDA draws it, its seed
arithmetic, its sub-seeds and its eta noise seed delta (ENSD). "cpu" is one `torch.Generator` seeded by the seed itself:
diffusers with a generator on the CPU, ComfyUI's initial noise and stable-diffusion-webui's option "RNG: CPU".

Philox 4x32-10 is the counter-based generator of CUDA's torch.randn, computed here with numpy: Salmon et al. 2011,
"Parallel random numbers: as easy as 1, 2, 3", section 4 and table 2; the way from a counter to a normal number is
cuRAND's (Box-Muller on the block's first two words).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gouache.diffusion.samplers.step import NoiseSource
from gouache.errors import InvalidInput, ShapeMismatch, unknown_name

Words = npt.NDArray[np.uint32]

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)

# cuRAND's constants are fp32: 2^-32, and 2 pi 2^-32 rounded. The sums run in fp64 and are rounded once, at the end.
_UNIT = float(np.float32(2.0**-32))
_ANGLE = float(np.float32(2.0**-32 * 2 * math.pi))


def philox_4x32(counter: Words, key: tuple[int, int]) -> Words:
    """Ten rounds of Philox 4x32 (Salmon et al. 2011, section 4.3 and table 2).

    Args:
        counter: [4, N] uint32
        key: two 32-bit words, the low one first.

    Returns:
        [4, N] uint32, uniformly random words.
    """
    first, second, third, fourth = (word.astype(np.uint64) for word in counter)
    low, high = key
    for _ in range(_ROUNDS):
        left, right = first * _MULTIPLIERS[0], third * _MULTIPLIERS[1]
        first, second, third, fourth = (
            (right >> _HALF) ^ second ^ np.uint64(low),
            right & _LOW,
            (left >> _HALF) ^ fourth ^ np.uint64(high),
            left & _LOW,
        )
        low, high = (low + _WEYL[0]) & 0xFFFFFFFF, (high + _WEYL[1]) & 0xFFFFFFFF
    return np.stack([first, second, third, fourth]).astype(np.uint32)


def box_muller(first: Words, second: Words) -> npt.NDArray[np.float32]:
    """sqrt(-2 log u) sin(v) from two random words (Box & Muller 1958, equation 1; cuRAND keeps the sine).

    u is the middle of the word's cell of (0, 1], v of (0, 2 pi]. [N], [N] -> [N]
    """
    u = first * _UNIT + _UNIT / 2
    v = second * _ANGLE + _ANGLE / 2
    normal: npt.NDArray[np.float32] = (np.sqrt(-2 * np.log(u)) * np.sin(v)).astype(np.float32)
    return normal


class Philox:
    """The row of blocks that ``torch.randn(shape, device="cuda")`` gives after a seed, as a `NormalStream`.

    Element n of a block has the counter (block, 0, n, 0). A GPU gives the same as long as a block has no more elements
    than the GPU runs threads; beyond that GPUs differ among themselves, and this stream goes on as written.

    Args:
        seed: 0 <= seed < 2^64.
    """

    def __init__(self, seed: int) -> None:
        if not 0 <= seed < 2**64:
            raise InvalidInput("seed", given=seed, expected="an integer from 0 to 2^64 - 1")
        self._key = (seed & 0xFFFFFFFF, seed >> 32)
        self._block = 0

    def randn(self, shape: Sequence[int]) -> Tensor:
        """The next block of standard normal numbers, fp32 on the CPU."""
        size = math.prod(shape)
        counter = np.zeros((4, size), dtype=np.uint32)
        counter[0] = self._block
        counter[2] = np.arange(size, dtype=np.uint32)
        words = philox_4x32(counter, self._key)
        self._block += 1
        return torch.from_numpy(box_muller(words[0], words[1])).reshape(tuple(shape))


NoiseMode = Literal["torch", "a1111", "cpu"]
NOISE_MODES: tuple[NoiseMode, ...] = get_args(NoiseMode)

SEED_LIMIT = 2**63
"""Seeds are integers in [0, SEED_LIMIT)."""


class NormalStream(Protocol):
    """An endless row of standard normal numbers, drawn in blocks."""

    def randn(self, shape: Sequence[int]) -> Tensor:
        """The next block, fp32 on the CPU."""
        ...


def stream_seed(seed: int, purpose: str, index: int = 0) -> int:
    """A 63-bit seed for one use of a picture's seed: the BLAKE2b hash (Saarinen & Aumasson 2015, RFC 7693, section 2)
    of the three.

    The same on every machine and in every Python process, unlike `hash`.

    Args:
        seed: the picture's seed.
        purpose: what is drawn, for example ``"latents"``; different purposes never share numbers.
        index: for the n-th use of one kind.
    """
    digest = hashlib.blake2b(f"{check_seed(seed)}/{purpose}/{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % SEED_LIMIT


def generator_for(seed: int, purpose: str, index: int = 0) -> torch.Generator:
    """A fresh CPU generator for `stream_seed`: one per image and purpose (Karras et al. 2022, arXiv:2206.00364,
    appendix F's per-image seeds).

    Arguments as in `stream_seed`.
    """
    return torch.Generator("cpu").manual_seed(stream_seed(seed, purpose, index))


def check_seed(seed: int) -> int:
    """The seed, if it is an integer in [0, 2^63); see `stream_seed` (RFC 7693, 2015, section 2) for its use.

    Raises:
        InvalidInput: it is anything else.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < SEED_LIMIT:
        raise InvalidInput("seed", given=repr(seed), expected="an integer from 0 to 2^63 - 1")
    return seed


def slerp(start: Tensor, end: Tensor, fraction: float, dim: int | None = None) -> Tensor:
    """Great-circle interpolation between two noises (Shoemake 1985, "Animating rotation with quaternion curves",
    section 3.3).

        slerp = sin((1 - f) w) / sin(w) start + sin(f w) / sin(w) end,    w the angle between them

    Unlike a straight mix it keeps the length, and so the noise level. Nearly parallel noises are mixed straight.

    Args:
        start, end: of one shape. [...]
        fraction: 0 gives start, 1 gives end.
        dim: measure the angle along this axis only (stable-diffusion-webui does, along axis 1); None: over everything.
    """
    if start.shape != end.shape:
        raise ShapeMismatch(
            "noises of a slerp", given=f"{tuple(start.shape)} and {tuple(end.shape)}", expected="equal shapes"
        )
    if not 0 <= fraction <= 1:
        raise InvalidInput("fraction", given=fraction, expected="a number in [0, 1]")
    axes = tuple(range(start.ndim)) if dim is None else (dim,)
    lengths = torch.linalg.vector_norm(start, dim=axes, keepdim=True) * torch.linalg.vector_norm(
        end, dim=axes, keepdim=True
    )
    cosine = ((start * end).sum(axes, keepdim=True) / lengths).clamp(-1, 1)
    angle = cosine.acos()
    straight = angle.sin() < 1e-4
    safe = torch.where(straight, torch.ones_like(angle), angle)
    first = torch.where(straight, torch.full_like(angle, 1 - fraction), ((1 - fraction) * safe).sin() / safe.sin())
    second = torch.where(straight, torch.full_like(angle, fraction), (fraction * safe).sin() / safe.sin())
    return first * start + second * end


@dataclass(frozen=True, slots=True)
class ImageSeed:
    """All that decides one picture's noise.

    Attributes:
        seed: the picture's own seed.
        subseed: of the variation.
        subseed_strength: how far towards the variation, 0 (not at all) to 1.
    """

    seed: int
    subseed: int = 0
    subseed_strength: float = 0.0

    def __post_init__(self) -> None:
        check_seed(self.seed)
        check_seed(self.subseed)
        if not 0 <= self.subseed_strength <= 1:
            raise InvalidInput("subseed_strength", given=self.subseed_strength, expected="a number in [0, 1]")


def seeds_of_batch(seed: int, count: int, subseed: int = 0, subseed_strength: float = 0.0) -> list[ImageSeed]:
    """The seeds of `count` pictures made together: stable-diffusion-webui's arithmetic (2022, processing.py, section
    "process_images_inner").

    Picture k has seed + k. When a variation is asked for, all keep the seed and picture k has subseed + k instead.
    """
    if count < 1:
        raise InvalidInput("number of images", given=count, expected="an integer >= 1")
    vary = subseed_strength != 0
    return [
        ImageSeed(seed + (0 if vary else k), subseed + (k if vary else 0) if vary else 0, subseed_strength)
        for k in range(count)
    ]


class ImageNoise:
    """Initial latents and step noise for a batch, each picture from its own streams (a `NoiseSource`).

    Args:
        seeds: one per picture.
        mode: ``"torch"``: CPU generators by seed and purpose. ``"a1111"`` and ``"cpu"``: one stream per seed, which
            serves the initial latents first and the steps after it, by Philox or PyTorch's generator on the CPU.
        eta_seed_delta: not for torch (A1111's ENSD): step noise comes from a new stream with seed + delta; 0 = off.
    """

    def __init__(self, seeds: Sequence[ImageSeed], *, mode: NoiseMode = "torch", eta_seed_delta: int = 0) -> None:
        if not seeds:
            raise InvalidInput("seeds", given="none", expected="one per picture")
        if mode not in NOISE_MODES:
            raise unknown_name("noise mode", str(mode), NOISE_MODES)
        if eta_seed_delta and mode == "torch":
            raise InvalidInput("eta_seed_delta", given=eta_seed_delta, expected="0 unless the mode is a1111 or cpu")
        self.seeds = tuple(seeds)
        self.mode = mode
        if mode == "torch":
            self._first: list[NormalStream] = [TorchStream(generator_for(seed.seed, "latents")) for seed in seeds]
            self._steps: list[NormalStream] = [TorchStream(generator_for(seed.seed, "steps")) for seed in seeds]
        else:
            delta = eta_seed_delta
            self._first = [seed_stream(seed.seed, mode) for seed in seeds]
            self._steps = [seed_stream(seed.seed + delta, mode) for seed in seeds] if delta else self._first

    def initial(self, shape: Sequence[int]) -> Tensor:
        """Standard normal latents for every picture: shape [C,h,w] -> [B,C,h,w] fp32 on the CPU."""
        return torch.stack(
            [self._varied(stream.randn(shape), seed) for stream, seed in zip(self._first, self.seeds, strict=True)]
        )

    def unvaried(self, shape: Sequence[int]) -> Tensor:
        """What `initial` gives first without a variation; nothing is taken from the streams. [B,C,h,w] fp32, CPU"""
        alone = [ImageSeed(seed.seed) for seed in self.seeds]
        return ImageNoise(alone, mode=self.mode).initial(shape)

    def apart(self, purpose: str, shape: Sequence[int]) -> Tensor:
        """Standard normal numbers for every picture from a stream of their own (`generator_for`). [B, ...] fp32, CPU"""
        return torch.stack([torch.randn(*shape, generator=generator_for(seed.seed, purpose)) for seed in self.seeds])

    def __call__(self, x: Tensor, sigma: float, sigma_next: float) -> Tensor:  # noqa: ARG002
        """Fresh noise for one step, whatever its two sigmas. [B, ...]"""
        if len(x) != len(self.seeds):
            raise ShapeMismatch("noise", given=f"a batch of {len(x)}", expected=f"{len(self.seeds)}, one per seed")
        return torch.stack([stream.randn(x.shape[1:]) for stream in self._steps]).to(x)

    def _varied(self, noise: Tensor, seed: ImageSeed) -> Tensor:
        if seed.subseed_strength == 0:
            return noise
        if self.mode != "torch":
            variation = seed_stream(seed.subseed, self.mode).randn(noise.shape)
            return slerp(noise, variation, seed.subseed_strength, dim=1)
        variation = TorchStream(generator_for(seed.subseed, "latents")).randn(noise.shape)
        return slerp(noise, variation, seed.subseed_strength)


class TorchStream:
    """A `NormalStream` from a CPU generator."""

    def __init__(self, generator: torch.Generator) -> None:
        if generator.device.type != "cpu":
            raise InvalidInput("generator", given=f"one on {generator.device}", expected="one on the CPU")
        self._generator = generator

    def randn(self, shape: Sequence[int]) -> Tensor:
        """The next block, fp32 on the CPU."""
        return torch.randn(tuple(shape), generator=self._generator, dtype=torch.float32)


def seed_stream(seed: int, mode: NoiseMode) -> NormalStream:
    """The stream that a seed itself starts in the tools of a mode: Philox (Salmon et al. 2011, section 4.3) for a1111,
    PyTorch's Mersenne Twister for cpu.

    Args:
        seed: 0 <= seed < 2^64.
        mode: a1111 or cpu; torch has no such stream, its seeds are hashed with a purpose.
    """
    if mode == "a1111":
        return Philox(seed)
    if mode != "cpu":
        raise unknown_name("noise mode with a stream of its own", str(mode), ("a1111", "cpu"))
    return TorchStream(torch.Generator("cpu").manual_seed(seed))


class BrownianNoise:
    """Step noise from one Brownian path W over sigma (a `NoiseSource`); Song et al. 2021, arXiv:2011.13456, equation 5.

    The answer for an interval is (W(sigma_next) - W(sigma)) / sqrt|sigma_next - sigma|, so intervals that overlap get
    noise that overlaps as it must, which solvers with stages inside a step need. A point between two known ones is
    drawn from the Brownian bridge. Points above the current step are forgotten.

    Args:
        source: gives the independent standard normal blocks.
    """

    def __init__(self, source: NoiseSource) -> None:
        self._source = source
        self._known: dict[float, Tensor] = {}

    def __call__(self, x: Tensor, sigma: float, sigma_next: float) -> Tensor:
        """Standard normal noise for the interval. [B, ...]"""
        if not (math.isfinite(sigma) and math.isfinite(sigma_next)) or sigma == sigma_next:
            raise InvalidInput("sigma, sigma_next", given=(sigma, sigma_next), expected="two different finite levels")
        top = max(sigma, sigma_next)
        start, end = self._at(x, sigma), self._at(x, sigma_next)
        self._known = {level: value for level, value in self._known.items() if level <= top}
        return (end - start) / math.sqrt(abs(sigma_next - sigma))

    def _at(self, x: Tensor, sigma: float) -> Tensor:
        if sigma not in self._known:
            self._known[sigma] = self._drawn(x, sigma)
        return self._known[sigma]

    def _drawn(self, x: Tensor, sigma: float) -> Tensor:
        below = max((level for level in self._known if level < sigma), default=None)
        above = min((level for level in self._known if level > sigma), default=None)
        if below is None and above is None:
            return torch.zeros_like(x)
        z = self._source(x, sigma, sigma)
        if below is None or above is None:
            end = below if above is None else above
            assert end is not None, "one neighbour is known here"
            return self._known[end] + math.sqrt(abs(sigma - end)) * z
        part = (sigma - below) / (above - below)
        spread = math.sqrt((sigma - below) * (above - sigma) / (above - below))
        return torch.lerp(self._known[below], self._known[above], part) + spread * z
