"""`StableDiffusionPipeline`: the lines that users of diffusers write, working with only the import changed.

A thin alias of `Pipeline`. Pictures carry their recipe, seeds and batches behave as everywhere in gouache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeVar

import torch
from PIL import Image

from gouache.errors import InvalidInput
from gouache.pipeline.generate.generation import Painted
from gouache.pipeline.pipeline import Pipeline, find_or_pull
from gouache.pipeline.request import MAX_SEED, Request

Value = TypeVar("Value", str, torch.Generator)


@dataclass(frozen=True)
class PipelineOutput:
    """What a call gives.

    Attributes:
        images: the pictures, prompt by prompt.
        painted: the same with their recipes.
        nsfw_content_detected: always None: nothing was looked for.
    """

    images: list[Image.Image]
    painted: list[Painted]
    nsfw_content_detected: None = None


class StableDiffusionPipeline:
    """The alias. Make one with `from_pretrained`.

    Args:
        pipeline: what does the work.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        torch_dtype: torch.dtype | None = None,
        token: str | bool | None = None,
        use_auth_token: str | bool | None = None,
    ) -> Self:
        """Load a model from a folder or file, or by its name on the hub.

        Args:
            pretrained_model_name_or_path: a path, or OWNER/NAME, which is fetched once and kept.
            torch_dtype: number format; float32 without it.
            token: for gated models; True or None takes the stored one (`HF_TOKEN`).
            use_auth_token: the older name of `token`.

        Raises:
            ModelNotFound, HubError: not on this disk, and not to be had; the error names the cure.
        """
        wanted = token if token is not None else use_auth_token
        token_text = wanted if isinstance(wanted, str) else None
        path = find_or_pull(str(pretrained_model_name_or_path), token=token_text)
        return cls(Pipeline.load(path, device="cpu", dtype=torch_dtype))

    def to(self, device: str | torch.device, dtype: torch.dtype | None = None) -> Self:
        """Move the model; gives itself back.

        Raises:
            DeviceUnavailable: no such device on this machine.
        """
        self.pipeline.to(device, dtype)
        return self

    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        negative_prompt: str | Sequence[str] | None = None,
        num_images_per_prompt: int = 1,
        eta: float | None = None,
        guidance_rescale: float = 0.0,
        clip_skip: int | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
    ) -> PipelineOutput:
        """Paint.

        Args:
            prompt: one text or several.
            height, width: in pixels; the model's own without them.
            num_inference_steps, guidance_scale, eta, guidance_rescale: as in `Request`.
            negative_prompt: one for all, or one for each prompt.
            num_images_per_prompt: pictures of each prompt, with consecutive seeds.
            clip_skip: layers left out at the end, counted as diffusers does (None and 0: none).
            generator: its initial seed is the first picture's seed, and its noise that of a generator on the CPU
                (`determinism` "cpu"); one for all prompts or one for each.

        Raises:
            InvalidInput: lists of different lengths, or a value out of range.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        negatives = _one_each("negative_prompt", negative_prompt, prompts)
        generators = _one_each("generator", generator, prompts)
        painted: list[Painted] = []
        for text, negative, source in zip(prompts, negatives, generators, strict=True):
            values = {
                "prompt": text,
                "negative_prompt": negative or "",
                "height": height,
                "width": width,
                "num_inference_steps": num_inference_steps,
                "guidance_scale": guidance_scale,
                "guidance_rescale": guidance_rescale,
                "eta": eta,
                "clip_skip": clip_skip + 1 if clip_skip else None,
                "count": num_images_per_prompt,
                "seed": None if source is None else source.initial_seed() % (MAX_SEED + 1),
                "determinism": "exact" if source is None else "cpu",
                "emphasis": "none",
            }
            painted += self.pipeline.paint(Request.from_dict(values, where="StableDiffusionPipeline"))
        return PipelineOutput([one.image for one in painted], painted)


def _one_each(name: str, given: Value | Sequence[Value] | None, prompts: Sequence[str]) -> list[Value | None]:
    if isinstance(given, Sequence) and not isinstance(given, str):
        if len(given) != len(prompts):
            expected = f"one, or one for each of {len(prompts)} prompts"
            raise InvalidInput(name, given=f"{len(given)} values", expected=expected)
        return list(given)
    return [given] * len(prompts)
