"""The figures that need no painting: reconstruction, bits of the prior, bits of the diffusion model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from gouache.errors import ShapeMismatch
from gouache.models.bundle import ModelBundle
from gouache.pipeline.inputs.images import rgba_to_tensor
from gouache.pipeline.likelihood import diffusion_bits, encode_captions, latents_of, prior_bits, tokens_of
from gouache.training.evaluation.figures import Figure
from gouache.training.evaluation.statistics import bootstrap_difference, bootstrap_mean
from gouache.training.losses import psnr
from gouache.training.stage import batched

WINDOW, SIGMA = 11, 1.5
K1, K2 = 0.01, 0.03


def ssim(picture: Tensor, target: Tensor, *, peak: float = 2.0) -> Tensor:
    """Mean structural similarity of each picture: equation 13 under a Gaussian window, equation 17 over the picture.

    Places whose window does not fit in the picture are left out; channels are averaged.

    Args:
        picture, target: [B,C,H,W], sides at least 11.
        peak: range of the values, 2 for [-1,1].

    Returns:
        [B], at most 1; 1 for equal pictures.

    Raises:
        ShapeMismatch: different shapes, or smaller than the window.
    """
    if picture.shape != target.shape or picture.ndim != 4 or min(picture.shape[2:]) < WINDOW:
        raise ShapeMismatch(
            "pictures",
            given=f"{tuple(picture.shape)} and {tuple(target.shape)}",
            expected=f"the same [B,C,H,W] with sides of {WINDOW} or more",
        )
    x, y = picture.double(), target.double()
    mean_x, mean_y = _blur(x), _blur(y)
    variance_x, variance_y = _blur(x * x) - mean_x**2, _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    c1, c2 = (K1 * peak) ** 2, (K2 * peak) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (variance_x + variance_y + c2)
    return (luminance * structure).flatten(1).mean(1)


def _blur(x: Tensor) -> Tensor:
    """Gaussian window sums [B,C,H-10,W-10]."""
    places = torch.arange(WINDOW, dtype=x.dtype, device=x.device) - WINDOW // 2
    window = torch.exp(-places.square() / (2 * SIGMA**2))
    window = window / window.sum()
    channels = x.shape[1]
    rows = window.view(1, 1, -1, 1).expand(channels, 1, -1, 1)
    columns = window.view(1, 1, 1, -1).expand(channels, 1, 1, -1)
    return F.conv2d(F.conv2d(x, rows, groups=channels), columns, groups=channels)


ReferencePictures = NDArray[np.uint8]
FigureValues = NDArray[np.float64]


@torch.no_grad()
def reconstruction(bundle: ModelBundle, pictures: ReferencePictures, *, seed: int) -> list[Figure]:
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


def bits(
    bundle: ModelBundle, pictures: ReferencePictures, captions: Sequence[str], *, levels: int, seed: int
) -> list[Figure]:
    """Bits a token of the prior and bits a dimension of the diffusion model on real pictures, with their captions, and
    what the captions save."""
    parts: dict[str, list[FigureValues]] = {"diffusion": [], "diffusion_without": [], "prior": [], "prior_without": []}
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


def _bits(
    bundle: ModelBundle, pictures: ReferencePictures, captions: list[str], levels: int, seed: int
) -> dict[str, FigureValues]:
    """Per picture: bits a dimension, bits a token; with caption and without."""
    latents = latents_of(bundle, [Image.fromarray(picture, "RGBA") for picture in pictures])
    found: dict[str, FigureValues] = {}
    for suffix, texts in (("", captions), ("_without", [""] * len(captions))):
        text = encode_captions(bundle, texts)
        total = diffusion_bits(bundle, latents, text, levels=levels, seed=seed)
        found[f"diffusion{suffix}"] = (total.double() / latents[0].numel()).numpy()
        if bundle.prior is not None:
            tokens = tokens_of(bundle, latents)
            found[f"prior{suffix}"] = prior_bits(bundle, tokens, text).double().mean(1).numpy()
    return found
