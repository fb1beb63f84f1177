"""Small captioned pictures and small stages, made in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from gouache.models.quantizer import Quantizer
from gouache.training.batches.encoded import TextStates
from gouache.training.batches.store import Captioned
from gouache.training.stage import Stage
from gouache.training.stage_tables import DenoiserStage, PriorStage, TokensStage, VaeStage
from gouache.training.stages.denoiser import DenoiserTraining
from gouache.training.stages.prior import PriorTraining
from gouache.training.stages.tokens import TokensTraining
from gouache.training.stages.vae import VaeTraining

if TYPE_CHECKING:
    from tests.pipeline.twins import Twins

COLOURS = {"red": (220, 40, 40), "green": (40, 180, 60), "blue": (50, 80, 220), "yellow": (240, 210, 60)}
LOOP = {"batch_size": 8, "images": 64, "log_images": 16, "validate_images": 32, "channels_last": False}
OPTIMIZER = {"learning_rate": 3e-3, "warmup_images": 0}
STAGE = {"loop": LOOP, "optimizer": OPTIMIZER}


class Shapes:
    """Coloured squares and discs, 8 in all, 32 x 32 RGBA: a source of captioned pictures."""

    fingerprint = "shapes"

    def __len__(self) -> int:
        return 8

    def examples(self, numbers: Sequence[int]) -> Captioned:
        """Picture `number % 8`, and what it shows."""
        pictures, captions = zip(*(self._example(number % 8) for number in numbers), strict=True)
        return Captioned(np.stack(pictures), list(captions))

    def _example(self, number: int) -> tuple[np.ndarray, str]:
        name = list(COLOURS)[number % 4]
        y, x = np.mgrid[:32, :32] - 15.5
        inside = np.maximum(abs(y), abs(x)) < 10 if number < 4 else y**2 + x**2 < 110
        picture = np.zeros((32, 32, 4), np.uint8)
        picture[inside] = (*COLOURS[name], 255)
        return picture, f"a {name} {'square' if number < 4 else 'disc'}"


class Latents:
    """8 encoded examples: smooth random latents and random text states, keyed by number."""

    def __init__(self, length: int = 8) -> None:
        generator = torch.Generator().manual_seed(3)
        coarse = torch.randn(length, 4, 2, 2, generator=generator)
        self._latents = torch.nn.functional.interpolate(coarse, scale_factor=4, mode="bilinear")
        self._context = torch.randn(length, 6, 12, generator=generator)
        self._pooled = torch.randn(length, 12, generator=generator)
        self._mask = torch.arange(6) < torch.randint(2, 7, (length, 1), generator=generator)
        self.empty = TextStates(torch.zeros(1, 2, 12), torch.ones(1, 2, dtype=torch.bool), torch.zeros(1, 12))

    def __len__(self) -> int:
        return len(self._latents)

    def latents(self, numbers: Sequence[int]) -> torch.Tensor:
        """Latents [B,4,8,8]."""
        return self._latents[list(numbers)]

    def text(self, numbers: Sequence[int]) -> TextStates:
        """Text states, six tokens, twelve channels."""
        rows = list(numbers)
        return TextStates(self._context[rows] * self._mask[rows][..., None], self._mask[rows], self._pooled[rows])

    def captions(self, numbers: Sequence[int]) -> list[str]:
        """Names of the examples."""
        return [f"example {number}" for number in numbers]


class Part:
    """Some of the encoded examples."""

    def __init__(self, whole: Latents, numbers: Sequence[int]) -> None:
        self._whole, self._numbers, self.empty = whole, list(numbers), whole.empty

    def __len__(self) -> int:
        return len(self._numbers)

    def latents(self, numbers: Sequence[int]) -> torch.Tensor:
        """Latents [B,4,8,8]."""
        return self._whole.latents([self._numbers[n] for n in numbers])

    def text(self, numbers: Sequence[int]) -> TextStates:
        """Text states, six tokens, twelve channels."""
        return self._whole.text([self._numbers[n] for n in numbers])

    def captions(self, numbers: Sequence[int]) -> list[str]:
        """Names of the examples."""
        return self._whole.captions([self._numbers[n] for n in numbers])


def vae_stage(**changes: Any) -> VaeStage:
    network = {
        "image_channels": 4,
        "latent_channels": 4,
        "channels": (16, 32),
        "layers_per_level": 1,
        "norm_groups": 8,
        "patch_size": 2,
        "middle_attention": False,
        "scale": 1.0,
    }
    return VaeStage.from_dict({"network": network, **STAGE, **changes})


QUANTIZER = {
    "latent_channels": 4,
    "latent_size": 8,
    "features": 8,
    "width": 16,
    "blocks": 1,
    "levels": (5, 5, 5),
    "scales": (1, 2, 4),
}
PRIOR = {
    "vocabulary": 125,
    "groups": (1, 4, 16),
    "features": 8,
    "context_dim": 12,
    "pooled_dim": 12,
    "width": 32,
    "depth": 2,
    "heads": 4,
}
UNET = {
    "in_channels": 4,
    "draft_channels": 4,
    "out_channels": 4,
    "channels": (16, 32),
    "layers_per_level": 1,
    "transformer_layers": (0, 1),
    "heads": (2, 2),
    "context_width": 12,
    "pooled_width": 12,
    "norm_groups": 8,
}


def with_weights(seed: int, build: Callable[[], Any]) -> Any:
    """Build a network with initial weights that depend on `seed` only."""
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(seed)
        return build()


def fixed_quantizer() -> Quantizer:
    """A quantizer with random weights."""
    config = TokensStage.from_dict({"network": QUANTIZER}).sizes
    quantizer: Quantizer = with_weights(7, lambda: Quantizer(config)).eval()
    return quantizer


def stage_of(name: str, **changes: Any) -> Stage[Any]:
    """One small stage, ready to train, with the config in its `config` attribute."""
    data = Latents()
    builders: dict[str, Callable[[], Stage[Any]]] = {
        "vae": lambda: VaeTraining(vae_stage(**changes), Shapes(), Shapes(), 0),
        "tokens": lambda: TokensTraining(
            TokensStage.from_dict({"network": QUANTIZER, **STAGE, **changes}), data, data, None, 0
        ),
        "prior": lambda: PriorTraining(
            PriorStage.from_dict({"network": PRIOR, **STAGE, **changes}), data, data, fixed_quantizer(), None, 0
        ),
        "denoiser": lambda: DenoiserTraining(
            DenoiserStage.from_dict({"network": UNET, **STAGE, **changes}), data, data, fixed_quantizer(), None, 0
        ),
    }
    stage: Stage[Any] = with_weights(1, builders[name])
    return stage


def remembering(neighbours: int = 3, **changes: Any) -> PriorTraining:
    """A prior that learns from 8 pictures, is judged by 8 others, and remembers all 16."""
    every = Latents(16)
    config = PriorStage.from_dict({"network": {**PRIOR, "neighbours": neighbours}, **STAGE, **changes})
    data, held_out = Part(every, range(8)), Part(every, range(8, 16))
    stage: PriorTraining = with_weights(
        1, lambda: PriorTraining(config, data, held_out, fixed_quantizer(), None, 0, remembered=every)
    )
    return stage


@pytest.fixture
def make_remembering() -> Callable[..., PriorTraining]:
    """Builds a prior with a memory."""
    return remembering


@pytest.fixture
def make_stage() -> Callable[..., Stage[Any]]:
    """Builds a small stage by name: "vae", "tokens", "prior" or "denoiser"."""
    return stage_of


@pytest.fixture
def own_twins(tmp_path: Path) -> Twins:
    """The same random weights in diffusers' pipelines and in ours, for a test that changes them."""
    from tests.pipeline.twins import Twins

    return Twins(tmp_path / "twins")
