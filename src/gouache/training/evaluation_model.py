"""The figures that need no painting: reconstruction, bits of the prior, bits of the diffusion model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from gouache.errors import ShapeMismatch
from gouache.models.bundle import ModelBundle
from gouache.pipeline.likelihood import diffusion_bits, encode_captions, latents_of, prior_bits, tokens_of
from gouache.pipeline.pixels import rgba_to_tensor
from gouache.training.bootstrap import bootstrap_difference, bootstrap_mean
from gouache.training.evaluation_figures import Figure
from gouache.training.losses import psnr
from gouache.training.ssim import ssim
from gouache.training.stage import batched

Pictures = NDArray[np.uint8]
Values = NDArray[np.float64]


@torch.no_grad()
def reconstruction(bundle: ModelBundle, pictures: Pictures, *, seed: int) -> list[Figure]:
    """PSNR over all channels and SSIM of the colours on white, of pictures uint8 [N,S,S,4] through the autoencoder.

    Raises:
        ShapeMismatch: the pictures' size does not fit the autoencoder.
    """
    ratios, similarities = [], []
    weight = next(bundle.vae.parameters())
    if pictures.shape[1] % bundle.vae.config.downscale:
        raise ShapeMismatch(
            "data",
            given=f"pictures of {pictures.shape[1]} pixels",
            expected=f"a multiple of {bundle.vae.config.downscale}",
        )
    for part in batched(len(pictures), 16):
        image = rgba_to_tensor(pictures[part])[:, : bundle.vae.config.image_channels]
        latents = bundle.vae.normalise(bundle.vae.encode(image.to(weight.device, weight.dtype)).mode())
        decoded = bundle.vae.decode(latents).float().cpu()
        ratios.append(psnr(decoded, image))
        similarities.append(ssim(decoded[:, :3].clamp(-1, 1), image[:, :3]))
    return [
        Figure("vae_psnr_db", "held_out", bootstrap_mean(torch.cat(ratios).double().numpy(), seed=seed)),
        Figure("vae_ssim", "held_out", bootstrap_mean(torch.cat(similarities).double().numpy(), seed=seed)),
    ]


def bits(bundle: ModelBundle, pictures: Pictures, captions: Sequence[str], *, levels: int, seed: int) -> list[Figure]:
    """Bits a token of the prior and bits a dimension of the diffusion model on real pictures, with their captions, and
    what the captions save."""
    parts: dict[str, list[Values]] = {"diffusion": [], "diffusion_without": [], "prior": [], "prior_without": []}
    for part in batched(len(pictures), 16):
        for name, values in _bits(bundle, pictures[part], [captions[i] for i in part], levels, seed).items():
            parts[name].append(values)
    figures = []
    for name, unit in (("prior", "bits_per_token"), ("diffusion", "bits_per_dim")):
        if parts[name]:
            own, without = np.concatenate(parts[name]), np.concatenate(parts[f"{name}_without"])
            saved = bootstrap_difference(without, own, seed=seed)
            figures.append(Figure(f"{name}_{unit}", "held_out", bootstrap_mean(own, seed=seed)))
            figures.append(Figure(f"{name}_{unit}_saved_by_caption", "held_out", saved))
    return figures


def _bits(bundle: ModelBundle, pictures: Pictures, captions: list[str], levels: int, seed: int) -> dict[str, Values]:
    """Per picture: bits a dimension, bits a token; with caption and without."""
    latents = latents_of(bundle, [Image.fromarray(picture, "RGBA") for picture in pictures])
    found: dict[str, Values] = {}
    for suffix, texts in (("", captions), ("_without", [""] * len(captions))):
        text = encode_captions(bundle, texts)
        total = diffusion_bits(bundle, latents, text, levels=levels, seed=seed)
        found[f"diffusion{suffix}"] = (total.double() / latents[0].numel()).numpy()
        if bundle.prior is not None:
            tokens = tokens_of(bundle, latents)
            found[f"prior{suffix}"] = prior_bits(bundle, tokens, text).double().mean(1).numpy()
    return found
