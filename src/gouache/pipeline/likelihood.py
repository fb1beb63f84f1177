"""How likely a picture is under a model, with a caption and without: in bits, and as a score of how well they fit.

log2 p(picture | caption) - log2 p(picture) is the information that caption and picture share, pointwise. Written with
Bayes' rule it is how much the picture speaks for the caption.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from gouache.diffusion.bound import continuous_bound, stratified_sigmas
from gouache.diffusion.rng import generator_for
from gouache.errors import ConfigError, InvalidInput
from gouache.models.bundle import ModelBundle
from gouache.models.denoiser import Condition
from gouache.pipeline.inputs.images import fit, nearest_size
from gouache.pipeline.inputs.start import encode_tensor
from gouache.pipeline.inputs.tensors import to_tensor
from gouache.pipeline.prompts.encode import EncodedPrompt, PromptReader

SIGMA_FLOOR, SIGMA_CEILING = 0.02, 100.0
"""Ends of the integral over noise levels, if the schedule reaches further: below the floor latents are all noise of
the encoder, above the ceiling nothing is left of any picture."""
LEVELS = 32


@dataclass(frozen=True, slots=True)
class Likelihood:
    """Bits of one picture, the fewer the likelier.

    Attributes:
        prior: bits of its tokens under the prior, given the caption; None for a model without a prior.
        prior_without: the same, given the empty caption.
        diffusion: upper bound of -log2 of its latents' density under the diffusion model, given the caption.
        diffusion_without: the same, given the empty caption.
        tokens: tokens of the picture; 0 without a prior.
        dimensions: numbers in its latents.
    """

    prior: float | None
    prior_without: float | None
    diffusion: float
    diffusion_without: float
    tokens: int
    dimensions: int

    @property
    def diffusion_alignment(self) -> float:
        """Bits that the caption saves the diffusion model."""
        return self.diffusion_without - self.diffusion

    @property
    def prior_alignment(self) -> float | None:
        """Bits that the caption saves the prior."""
        return None if self.prior is None or self.prior_without is None else self.prior_without - self.prior

    def to_dict(self) -> dict[str, float | None]:
        """All figures by name, for JSON."""
        dimensions = max(self.dimensions, 1)
        return {
            "prior_bits": self.prior,
            "prior_bits_without_caption": self.prior_without,
            "prior_alignment_bits": self.prior_alignment,
            "tokens": self.tokens,
            "prior_bits_per_token": None if self.prior is None else self.prior / max(self.tokens, 1),
            "diffusion_bits": self.diffusion,
            "diffusion_bits_without_caption": self.diffusion_without,
            "diffusion_alignment_bits": self.diffusion_alignment,
            "latent_dimensions": self.dimensions,
            "diffusion_bits_per_dimension": self.diffusion / dimensions,
        }


def picture_likelihood(
    bundle: ModelBundle, picture: Image.Image, caption: str, *, levels: int = LEVELS, seed: int = 0
) -> Likelihood:
    """Bits of a picture with and without its caption, at the same noise levels and noises.

    Args:
        bundle: the model, in inference mode.
        picture: of any size; see `latents_of`.
        caption: plain text; brackets mean nothing here.
        levels: noise levels, one call of the network each and caption.
        seed: of the noise.
    """
    latents = latents_of(bundle, [picture])
    text, empty = encode_captions(bundle, [caption]), encode_captions(bundle, [""])
    own = diffusion_bits(bundle, latents, text, levels=levels, seed=seed)
    without = diffusion_bits(bundle, latents, empty, levels=levels, seed=seed)
    prior = prior_without = None
    tokens = tokens_of(bundle, latents) if bundle.prior is not None else torch.zeros(1, 0)
    if bundle.prior is not None:
        prior = float(prior_bits(bundle, tokens, text).sum())
        prior_without = float(prior_bits(bundle, tokens, empty).sum())
    return Likelihood(prior, prior_without, float(own), float(without), tokens.shape[1], latents[0].numel())


@torch.no_grad()
def latents_of(bundle: ModelBundle, pictures: Sequence[Image.Image]) -> Tensor:
    """Normalised latents of pictures [B,C,h,w]: in the model's own size if it has a prior, which knows no other,
    else in the first picture's size, rounded to what the model can do."""
    factor = bundle.vae.config.downscale * max(bundle.unet.config.multiple, 1 << bundle.unet.config.downscalings)
    own = (bundle.defaults.width, bundle.defaults.height)
    size = own if bundle.prior is not None else nearest_size(*pictures[0].size, factor)
    fitted = [picture if picture.size == size else fit(picture, *size, "crop") for picture in pictures]
    image = torch.stack([to_tensor(picture, bundle.vae.config.image_channels) for picture in fitted])
    return encode_tensor(bundle, image)


@torch.no_grad()
def encode_captions(bundle: ModelBundle, captions: Sequence[str]) -> EncodedPrompt:
    """States of captions, one chunk each: what is longer is cut. One row a caption."""
    reader = PromptReader(bundle.text, "none", None)
    length = bundle.text.chunk_length
    states = reader.stack.encode([reader.stack.tokenize(caption)[:length] for caption in captions])
    return EncodedPrompt(reader.stack.whole(states.context), states.pooled, states.mask)


@torch.no_grad()
def tokens_of(bundle: ModelBundle, latents: Tensor) -> Tensor:
    """Tokens of latents [B,C,h,w]: [B,S].

    Raises:
        ConfigError: the model has no prior.
        InvalidInput: the latents are not of the size that the prior drafts.
    """
    if bundle.quantizer is None:
        raise ConfigError(f"model {bundle.name!r}", given="no prior", expected="a model with a prior")
    side = bundle.quantizer.config.latent_size
    if tuple(latents.shape[2:]) != (side, side):
        raise InvalidInput(
            "latents", given=f"{latents.shape[3]}x{latents.shape[2]}", expected=f"{side}x{side}: the prior has one size"
        )
    return bundle.quantizer.encode(latents.to(next(bundle.quantizer.parameters()).device))


@torch.no_grad()
def prior_bits(bundle: ModelBundle, tokens: Tensor, text: EncodedPrompt) -> Tensor:
    """-log2 p(token | tokens before, text) of every token. tokens [B,S], text of one row or B -> [B,S]

    Raises:
        ConfigError: the model has no prior.
    """
    if bundle.prior is None or bundle.quantizer is None or text.pooled is None:
        raise ConfigError(f"model {bundle.name!r}", given="no prior", expected="a model with a prior")
    weight, rows = next(bundle.prior.parameters()), len(tokens)
    context = _rows(text.context, rows).to(weight.device, weight.dtype)
    pooled = _rows(text.pooled, rows).to(weight.device, weight.dtype)
    mask = None if text.mask is None else _rows(text.mask, rows).to(weight.device)
    found = bundle.prior.log_likelihood(bundle.quantizer, tokens.to(weight.device), context, pooled, mask)
    return -found.cpu() / math.log(2)


@torch.no_grad()
def diffusion_bits(
    bundle: ModelBundle,
    latents: Tensor,
    text: EncodedPrompt,
    *,
    draft: Tensor | None = None,
    levels: int = LEVELS,
    seed: int = 0,
) -> Tensor:
    """Upper bound of -log2 p(latents | text) under the diffusion model, as `diffusion.continuous_bound` estimates it.

    Args:
        bundle: the model.
        latents: normalised. [B,C,h,w]
        text: one row, or one for each picture.
        draft: channels beside the latents; None gives zeros to a network that takes some, which is no draft.
        levels: noise levels; the same seed uses the same levels and noises for every text.

    Returns:
        [B] bits of a density, which may be negative.
    """
    if levels < 1:
        raise InvalidInput("levels", given=levels, expected="an integer >= 1")
    low = max(bundle.schedule.sigma_min, SIGMA_FLOOR)
    high = min(bundle.schedule.sigma_max, SIGMA_CEILING)
    offsets = torch.rand(levels, generator=generator_for(seed, "likelihood levels"), dtype=torch.float64)
    noise = torch.stack([_noise(seed, picture, levels, latents) for picture in range(len(latents))], dim=1)
    channels = bundle.unet.config.draft_channels
    if draft is None and channels:
        draft = latents.new_zeros(1, channels, *latents.shape[2:])
    height, width = (side * bundle.vae.config.downscale for side in latents.shape[2:])
    pooled = bundle.pooled_vector(text.pooled, bundle.size_condition(width, height))
    denoise = bundle.denoiser.bind(Condition(text.context, text.mask, pooled, draft))
    sigmas = stratified_sigmas(low, high, offsets.tolist())
    placed, noise = latents.float().to(bundle.device), noise.to(bundle.device)
    return continuous_bound(denoise, placed, sigmas, noise, sigma_min=low, sigma_max=high).bits.cpu()


def _noise(seed: int, picture: int, levels: int, latents: Tensor) -> Tensor:
    """Noises of one picture [levels + 1, C, h, w], from its own generator."""
    return torch.randn(levels + 1, *latents.shape[1:], generator=generator_for(seed, "likelihood noise", picture))


def _rows(tensor: Tensor, rows: int) -> Tensor:
    return tensor if len(tensor) == rows else tensor.expand(rows, *tensor.shape[1:])
