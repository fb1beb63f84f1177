"""CLIP's vision tower (Radford et al. 2021, arXiv:2103.00020): a picture as one vector in the space of captions.

The parameter names are those of transformers' `CLIPVisionModelWithProjection` without the prefix `vision_model.`.

The safety checker stands on it: vectors of concepts that a picture should not be near, by the rule of Stable
Diffusion's published checker as Rando et al. 2022 (arXiv:2210.04610), section 3, describe it.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gouache.errors import ShapeMismatch
from gouache.models.configs import ImageEncoderConfig
from gouache.nn.clip import ClipTransformer

__all__ = ["ImageEncoder", "ImageEncoderConfig", "ImageEncoding", "PictureEncoder", "normalised", "preprocess"]


CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, slots=True)
class ImageEncoding:
    """What the tower makes of a picture.

    Attributes:
        embedding: the picture in the space it shares with captions, not normalised. [B, projection_width]
        hidden: the last layer's state for the class token and every patch. [B, 1 + patches, width]
        penultimate: the same one layer earlier, which image prompts use. [B, 1 + patches, width]
    """

    embedding: Tensor
    hidden: Tensor
    penultimate: Tensor


class PatchEmbeddings(nn.Module):
    """A vector for the class, then one for each patch, plus one for each place."""

    def __init__(self, config: ImageEncoderConfig) -> None:
        super().__init__()
        places = (config.image_size // config.patch_size) ** 2 + 1
        self.class_embedding = nn.Parameter(torch.zeros(config.width))
        self.patch_embedding = nn.Conv2d(3, config.width, config.patch_size, stride=config.patch_size, bias=False)
        self.position_embedding = nn.Embedding(places, config.width)

    def forward(self, image: Tensor) -> Tensor:
        """image [B, 3, S, S] -> [B, 1 + patches, width]."""
        patches = self.patch_embedding(image).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(image.shape[0], 1, -1)
        return torch.cat([first, patches], dim=1) + self.position_embedding.weight


class ImageEncoder(nn.Module):
    """Preprocessed pictures to vectors."""

    def __init__(self, config: ImageEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = PatchEmbeddings(config)
        # Spelt so in every published file.
        self.pre_layrnorm = nn.LayerNorm(config.width)
        self.encoder = ClipTransformer(
            config.layers,
            config.width,
            inner=config.inner_width,
            heads=config.heads,
            activation=config.activation,
            causal=False,
        )
        self.post_layernorm = nn.LayerNorm(config.width)
        self.visual_projection = nn.Linear(config.width, config.projection_width, bias=False)

    def forward(self, image: Tensor) -> ImageEncoding:
        """Encode pictures that went through `preprocess`: [B, 3, image_size, image_size].

        Raises:
            ShapeMismatch: another size or number of channels.
        """
        size = self.config.image_size
        if image.ndim != 4 or tuple(image.shape[1:]) != (3, size, size):
            raise ShapeMismatch("image", given=tuple(image.shape), expected=f"[B, 3, {size}, {size}]")
        penultimate: Tensor = self.encoder(self.pre_layrnorm(self.embeddings(image)), end=self.config.layers - 1)
        hidden: Tensor = self.encoder(penultimate, first=self.config.layers - 1)
        embedding: Tensor = self.visual_projection(self.post_layernorm(hidden[:, 0]))
        return ImageEncoding(embedding, hidden, penultimate)


class PictureEncoder:
    """A vision tower that remembers what it made of the last pictures.

    Args:
        network: the tower.
    """

    KEPT = 16

    def __init__(self, network: ImageEncoder) -> None:
        self.network = network
        self._kept: dict[str, ImageEncoding] = {}

    @torch.no_grad()
    def encode(self, image: Tensor) -> ImageEncoding:
        """What the tower makes of preprocessed pictures, one by one: [B, 3, image_size, image_size]."""
        each = [self._one(row[None]) for row in image]
        return ImageEncoding(
            torch.cat([one.embedding for one in each]),
            torch.cat([one.hidden for one in each]),
            torch.cat([one.penultimate for one in each]),
        )

    def blank(self, count: int) -> ImageEncoding:
        """What guidance leads away from, for so many pictures: no embedding, and the states of a picture of zeros."""
        size = self.network.config.image_size
        states = self.encode(torch.zeros(1, 3, size, size).expand(count, -1, -1, -1))
        return ImageEncoding(torch.zeros_like(states.embedding), states.hidden, states.penultimate)

    def _one(self, row: Tensor) -> ImageEncoding:
        key = blake2b(row.float().cpu().contiguous().numpy().tobytes(), digest_size=16).hexdigest()
        if key not in self._kept:
            if len(self._kept) >= self.KEPT:
                del self._kept[next(iter(self._kept))]
            weight = self.network.visual_projection.weight
            self._kept[key] = self.network(row.to(weight.device, weight.dtype))
        return self._kept[key]


def preprocess(image: Tensor, size: int) -> Tensor:
    """Resize the shorter edge to `size` (bicubic, antialiased), crop the middle, normalise as CLIP was trained.

    Args:
        image: [B, 3, H, W] in [-1, 1].
        size: edge of the result, in pixels.

    Returns:
        [B, 3, size, size] with about zero mean and unit variance.
    """
    if image.ndim != 4 or image.shape[1] != 3:
        raise ShapeMismatch("image", given=tuple(image.shape), expected="[B, 3, H, W]")
    height, width = image.shape[2:]
    shorter = min(height, width)
    resized = F.interpolate(
        (image + 1) / 2,
        size=(height * size // shorter, width * size // shorter),
        mode="bicubic",
        antialias=True,
    ).clamp(0, 1)
    top, left = (resized.shape[2] - size) // 2, (resized.shape[3] - size) // 2
    return normalised(resized[:, :, top : top + size, left : left + size])


def normalised(image: Tensor) -> Tensor:
    """Pictures [B, 3, H, W] in [0, 1] with about zero mean and unit variance, as CLIP was trained."""
    mean, std = (torch.tensor(value, dtype=image.dtype, device=image.device)[:, None, None] for value in _STATISTICS)
    return (image - mean) / std


_STATISTICS = (CLIP_MEAN, CLIP_STD)


STRICTER = 0.01
"""How much nearer every concept counts once a picture is near one of those that need special care."""


class SafetyChecker(nn.Module):
    """Preprocessed pictures to the concepts they are too near to.

    Args:
        tower: sizes of the vision tower.
        concepts: unwanted concepts.
        special: concepts that only make the checker stricter.
    """

    def __init__(self, tower: ImageEncoderConfig, concepts: int = 17, special: int = 3) -> None:
        super().__init__()
        self.config = tower
        self.tower = ImageEncoder(tower)
        width = tower.projection_width
        self.concept_embeds = nn.Parameter(torch.ones(concepts, width))
        self.concept_embeds_weights = nn.Parameter(torch.ones(concepts))
        self.special_care_embeds = nn.Parameter(torch.ones(special, width))
        self.special_care_embeds_weights = nn.Parameter(torch.ones(special))

    @torch.no_grad()
    def forward(self, image: Tensor) -> list[tuple[int, ...]]:
        """Numbers of the unwanted concepts of each picture; none = it may be shown.

        Args:
            image: as `image_encoder.preprocess` leaves it. [B,3,image_size,image_size]

        Raises:
            ShapeMismatch: another size.
        """
        if image.ndim != 4:
            raise ShapeMismatch("image", given=tuple(image.shape), expected="[B, 3, H, W]")
        embedding = F.normalize(self.tower(image).embedding.float())  # [B,P]
        special = embedding @ F.normalize(self.special_care_embeds.float()).T - self.special_care_embeds_weights.float()
        concepts = embedding @ F.normalize(self.concept_embeds.float()).T - self.concept_embeds_weights.float()
        return [_too_near(one.tolist(), other.tolist()) for one, other in zip(special, concepts, strict=True)]


def _too_near(special: list[float], concepts: list[float]) -> tuple[int, ...]:
    """Cosines above their thresholds, rounded to three digits as the published rule has it."""
    stricter = 0.0
    for excess in special:
        if round(excess + stricter, 3) > 0:
            stricter = STRICTER
    return tuple(number for number, excess in enumerate(concepts) if round(excess + stricter, 3) > 0)
