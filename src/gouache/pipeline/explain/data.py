"""An explanation as plain values: what is stored, sent to a browser, and made into a page."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any

from PIL import Image

from gouache.config import Config

if TYPE_CHECKING:
    from gouache.pipeline.explain.explanation import Explanation

DataUri = str
"""A PNG as `data:image/png;base64,...`."""


class TokenData(Config):
    """A piece of the prompt."""

    text: str
    number: int
    """Its place in the vocabulary."""
    nearest: tuple[tuple[str, float], ...]
    """Entries of the vocabulary whose vectors point most nearly the same way, with the cosine."""
    attention: DataUri | None
    """Where the picture looked at it, black to white; null if nothing could be seen."""


class ScaleData(Config):
    """The draft after one scale of its tokens."""

    tokens: int
    picture: DataUri


class StepData(Config):
    """One step of the sampler."""

    sigma: float
    """Noise level after it."""
    shown: DataUri
    """The noisy latents that the network was shown."""
    denoised: DataUri
    """What it took the picture to be."""
    seconds: float


class FeatureData(Config):
    """What a block of the network held at the last step, as colours."""

    name: str
    picture: DataUri


class ExplanationData(Config):
    """What each part of a model did for one picture."""

    prompt: str
    model: str
    seed: str
    """As text: it may be larger than JavaScript's numbers."""
    sampler: str
    guidance: float
    width: int
    height: int
    picture: DataUri
    tokens: tuple[TokenData, ...]
    likeness: tuple[tuple[float, ...], ...]
    """Cosines of the pieces' vectors behind the text encoder."""
    scales: tuple[ScaleData, ...]
    """The draft after each scale, coarsest first; empty where the model drafts none, or drafts thing by thing."""
    draft: DataUri | None
    """What the picture began on; null without one."""
    steps: tuple[StepData, ...]
    features: tuple[FeatureData, ...]
    seconds: dict[str, float]
    """By part: text, draft, denoiser, decoder, rest."""
    recipe: dict[str, Any]
    """The picture can be painted again from it."""


def to_data(seen: Explanation) -> ExplanationData:
    """The explanation with its pictures as data URIs.

    Args:
        seen: what was seen.
    """
    recipe, image = seen.painted.recipe, seen.painted.image
    return ExplanationData(
        prompt=recipe.request.prompt,
        model=seen.model,
        seed=str(seen.painted.seed),
        sampler=recipe.request.sampler or "",
        guidance=recipe.request.guidance_scale or 0.0,
        width=image.width,
        height=image.height,
        picture=_uri(image),
        tokens=tuple(
            TokenData(
                text=token.text,
                number=token.number,
                nearest=tuple((word, round(value, 4)) for word, value in token.nearest),
                attention=None if token.attention is None else _uri(token.attention.convert("L")),
            )
            for token in seen.tokens
        ),
        likeness=tuple(tuple(round(value, 4) for value in row) for row in seen.likeness),
        scales=tuple(ScaleData(tokens=count, picture=_uri(picture)) for count, picture in seen.scales),
        draft=None if seen.draft is None else _uri(seen.draft),
        steps=tuple(
            StepData(
                sigma=round(step.sigma, 5),
                shown=_uri(step.shown),
                denoised=_uri(step.denoised),
                seconds=round(step.seconds, 4),
            )
            for step in seen.steps
        ),
        features=tuple(FeatureData(name=name, picture=_uri(picture)) for name, picture in seen.features),
        seconds={name: round(value, 4) for name, value in seen.seconds.items()},
        recipe=recipe.model_dump(mode="json"),
    )


def _uri(image: Image.Image) -> DataUri:
    stream = io.BytesIO()
    image.save(stream, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"
