"""The parts of one loaded model, and how they fit together."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from gouache.diffusion.noise_schedule import NoiseSchedule
from gouache.errors import ConfigError, ShapeMismatch
from gouache.models.conditioning.image_encoder import PictureEncoder
from gouache.models.conditioning.ip_adapter import IPAdapter
from gouache.models.conditioning.unclip import OwnPictures
from gouache.models.configs import DenoiserConfig, GenerationDefaults, UNetConfig
from gouache.models.denoiser import Denoiser, SteeringNetwork
from gouache.models.family import SDXL, Family, family_named
from gouache.models.few_steps import FewSteps
from gouache.models.memory.synonyms import Synonyms
from gouache.models.mmdit import MMDiT
from gouache.models.prior import Prior
from gouache.models.quantizer import Quantizer
from gouache.models.text.stack import NoTexts, TextStack
from gouache.models.turns import turns_of
from gouache.models.unet import UNet
from gouache.models.upscalers import Upscaler
from gouache.models.vae import AutoencoderKL
from gouache.nn.layers import sinusoidal_embedding

NUMBER_WIDTH = 256
"""Channels that each of SDXL's size numbers is embedded in, beside the pooled text."""
AESTHETIC_SCORE, LOW_AESTHETIC_SCORE = 6.0, 2.5
"""Aesthetic scores that SDXL's refiner gets for the prompt and for the negative prompt."""


@dataclass(frozen=True, kw_only=True)
class ModelBundle:
    """One model, whole: what `checkpoints.load` gives and the pipeline works with.

    Attributes:
        family: name of one of `models.family.FAMILIES`; `traits` is the entry.
        unet, vae, text: the networks. What is called the U-Net here and elsewhere is the network that denoises, which
            in Stable Diffusion 3 is a transformer.
        denoiser_config: what the U-Net's output means, and its noise schedule.
        defaults: size, steps and so on of a request that leaves them open.
        styles: that a request may name; empty = the model knows none by name, and any word passes.
        synonyms: what else the things are called that the prior remembers by their labels.
        prior, quantizer: the autoregressive prior that draws the draft, and its code book; both or none.
        upscaler: the up-sampling decoder for pictures larger than the model's own, if it has one.
        controls: networks that steer the U-Net, by the names that requests give them; none is the model's own.
        ip_adapters: what shows it pictures beside the text, by the names that requests give them.
        picture_encoders: the vision towers of those, by the same names.
        own_pictures: what it reads pictures with by itself, where a request gives it some.
        refiner: the model that goes on from this one's latents, where a request names one.
        name: a short name for people.
        path: where it was read from; None if it was built in memory.
        sha256: hash of the weights as hexadecimal, or empty.
        loading_notes: how its files were taken beyond the plain way: tensors and parts that were left out.
        timesteps: noise level -> timestep of the network, where a list of levels brings its own; see `Denoiser`.
        notes: what its files say of sampling and gouache does otherwise.
        few_steps: the distillation that its files tell of.

    Raises:
        ConfigError: the parts do not fit together.
        UnknownName: there is no such family.
    """

    family: str
    unet: UNet | MMDiT
    vae: AutoencoderKL
    text: TextStack
    denoiser_config: DenoiserConfig = field(default_factory=DenoiserConfig)
    defaults: GenerationDefaults = field(default_factory=GenerationDefaults)
    prior: Prior | None = None
    quantizer: Quantizer | None = None
    upscaler: Upscaler | None = None
    controls: Mapping[str, SteeringNetwork] = field(default_factory=dict)
    ip_adapters: Mapping[str, IPAdapter] = field(default_factory=dict)
    picture_encoders: Mapping[str, PictureEncoder] = field(default_factory=dict)
    own_pictures: OwnPictures | None = None
    refiner: ModelBundle | None = None
    styles: tuple[str, ...] = ()
    synonyms: Synonyms | None = None
    name: str = ""
    path: Path | None = None
    sha256: str = ""
    loading_notes: tuple[str, ...] = ()
    timesteps: Mapping[float, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    few_steps: FewSteps | None = None

    def __post_init__(self) -> None:
        family_named(self.family, f"family of model {self.name!r}" if self.name else "family")
        for what, given, expected in (
            ("latent channels", self.vae.config.latent_channels, self.unet.config.in_channels),
            ("context width", self.text.context_width, self.unet.config.context_width),
            ("prior and quantizer", self.prior is not None, self.quantizer is not None),
        ):
            if given != expected:
                raise ConfigError(f"model {self.name or self.family!r}: {what}", given=given, expected=str(expected))
        if self.size_numbers < 0:
            raise ConfigError(
                f"model {self.name or self.family!r}: pooled width",
                given=self.unet.config.pooled_width,
                expected=f"{self.text.pooled_width} and {NUMBER_WIDTH} for each number beside it",
            )

    def with_tuned(self, parts: Mapping[str, Any]) -> ModelBundle:
        """The same model with parts of it, by their names here, that were trained further."""
        made = replace(self, **parts)
        if made.prior is not self.prior:
            return replace(made, defaults=made.defaults.of_a_tuned_prior())
        if made.quantizer is not self.quantizer:
            made = replace(made, prior=deepcopy(self.prior))  # this model goes on remembering
            made.forget_residuals()
        return made

    def forget_residuals(self) -> None:
        """Let the prior remember tokens alone: residual codes are what one decoder's drafts left, and not another's."""
        if self.prior is not None:
            self.prior.forget_residuals()

    @cached_property
    def denoiser(self) -> Denoiser:
        """D(x, sigma, condition)."""
        return Denoiser.from_config(self.unet, self.denoiser_config, timesteps=self.timesteps)

    @property
    def schedule(self) -> NoiseSchedule:
        """The noise schedule the U-Net was trained on."""
        return self.denoiser.schedule

    @property
    def device(self) -> torch.device:
        """Where the U-Net is."""
        turns = turns_of(self.unet)
        return next(self.unet.parameters()).device if turns is None else turns.device

    @property
    def dtype(self) -> torch.dtype:
        """The U-Net's floating-point type."""
        turns = turns_of(self.unet)
        return next(self.unet.parameters()).dtype if turns is None else turns.dtype

    @property
    def has_vae(self) -> bool:
        """Whether the autoencoder is there; one without numbers stands in for one that a request has to name."""
        return turns_of(self.vae) is not None or not next(self.vae.parameters()).is_meta

    @property
    def traits(self) -> Family:
        """What follows from the model's family."""
        return family_named(self.family)

    @property
    def noise_levels(self) -> int:
        """Levels of the noise on a small picture that the network enlarges and is told; 0 = it is told none."""
        return self.unet.config.noise_levels if isinstance(self.unet.config, UNetConfig) else 0

    @property
    def size_numbers(self) -> int:
        """How many numbers the U-Net takes beside the pooled text: 6 for SDXL, 5 for its refiner, else 0; -1 if its
        pooled width can't be explained so."""
        width = self.unet.config.pooled_width
        if width == 0 or self.picture_width:
            return 0
        rest = width - self.text.pooled_width
        return rest // NUMBER_WIDTH if rest >= 0 and rest % NUMBER_WIDTH == 0 else -1

    @property
    def picture_width(self) -> int:
        """Width of the picture's embedding that an unCLIP model takes; 0 for every other."""
        return self.unet.config.picture_width if isinstance(self.unet.config, UNetConfig) else 0

    @property
    def reads_texts(self) -> bool:
        """Whether it has text encoders; Image Variations is shown a picture alone."""
        return not isinstance(self.text, NoTexts)

    @property
    def takes_pictures(self) -> bool:
        """Whether it takes a picture's embedding without an adapter: unCLIP and Image Variations by themselves, SDXL as
        its pooled text."""
        return self.picture_width > 0 or not self.reads_texts or self.size_numbers == SDXL.size_numbers

    @property
    def takes_aesthetic_score(self) -> bool:
        """Whether the last of its size numbers is a score, as for SDXL's refiner."""
        return self.size_numbers == 5

    def size_condition(
        self,
        width: int,
        height: int,
        *,
        original: tuple[int, int] | None = None,
        crop: tuple[int, int] = (0, 0),
        target: tuple[int, int] | None = None,
        score: float = AESTHETIC_SCORE,
    ) -> Tensor | None:
        """The size conditioning of a picture (Podell et al. 2023, arXiv:2307.01952, section 2.2).

        Args:
            width, height: of the picture, in pixels.
            original: width and height before it was scaled and cropped; None = the picture's.
            crop: what was cut off on the left and at the top.
            target: width and height after it; None = the picture's.
            score: how beautiful it is, of 10, for SDXL's refiner, which takes that in place of a target size.

        Returns:
            For SDXL height and width of the original picture, top and left of the crop, height and width of the target;
            for the refiner original height and width, top and left, score; None for a U-Net that takes no numbers.
            [1, 6 or 5]
        """
        (original_width, original_height), (target_width, target_height) = (
            original or (width, height),
            target or (width, height),
        )
        cut = [original_height, original_width, crop[1], crop[0]]
        if self.size_numbers == 6:
            return torch.tensor([[*cut, target_height, target_width]], dtype=torch.float32)
        if self.size_numbers == 5:
            return torch.tensor([[*cut, score]], dtype=torch.float32)
        return None

    def pooled_vector(self, pooled: Tensor | None, numbers: Tensor | None = None) -> Tensor | None:
        """The vector that the U-Net takes as `pooled`.

        Args:
            pooled: the text stack's pooled vector or a picture's, which is left out for a U-Net that takes none. [B, P]
            numbers: as `size_condition` gives them. [B, 6 or 5]

        Returns:
            [B, pooled_width], or None for a U-Net that takes none.

        Raises:
            ShapeMismatch: the wrong number of numbers, or no pooled vector where one is needed.
        """
        if self.unet.config.pooled_width == 0:
            return None
        count = 0 if numbers is None else numbers.shape[-1]
        if pooled is None or count != self.size_numbers:
            raise ShapeMismatch(
                "pooled vector",
                given=f"{'no' if pooled is None else 'a'} pooled text and {count} numbers",
                expected=f"a pooled text and {self.size_numbers} numbers",
            )
        if numbers is None:
            return pooled
        waves = sinusoidal_embedding(numbers.to(pooled.device), NUMBER_WIDTH).flatten(1)  # [B, numbers * 256]
        return torch.cat([pooled, waves.to(pooled.dtype)], dim=1)

    def networks(self) -> dict[str, nn.Module]:
        """Every network of the model by its part's name."""
        parts = {
            "unet": self.unet,
            "vae": self.vae,
            "text": self.text,
            "prior": self.prior,
            "quantizer": self.quantizer,
            "upscaler": self.upscaler,
        }
        return {name: part for name, part in parts.items() if part is not None}

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Self:
        """Move every network, in place; returns the bundle itself."""
        for name, part in self.networks().items():
            if name != "vae" or self.has_vae:
                part.to(device=device, dtype=dtype)
        return self

    def eval(self) -> Self:
        """Put every network in inference mode, without gradients, in place; returns the bundle itself."""
        for part in self.networks().values():
            part.eval().requires_grad_(False)
        return self
