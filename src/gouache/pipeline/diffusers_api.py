"""`StableDiffusionPipeline`: the lines that users of diffusers write, working with only the import changed.

A thin alias of `Pipeline`. Pictures carry their recipe, seeds and batches behave as everywhere in gouache.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Self, TypeVar

import torch
from PIL import Image

from gouache.checkpoints import hub
from gouache.checkpoints.adapters.ip_adapter_library import find_ip_adapter
from gouache.errors import InvalidInput
from gouache.pipeline.generate.generation import Painted
from gouache.pipeline.pipeline import Pipeline, find_or_pull
from gouache.pipeline.request import MAX_SEED, Request, guidance_of_diffusers

Value = TypeVar("Value", str, torch.Generator)
IPAdapterImages = Image.Image | Sequence[Image.Image | Sequence[Image.Image]]


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
        self.pag_applied_layers = ["mid"]
        """Where `pag_scale` perturbs self-attention."""
        self._freeu: dict[str, float | int] | None = None
        self._ip_adapters: list[tuple[str, float]] = []  # name, weight

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

    def set_pag_applied_layers(self, pag_applied_layers: str | Sequence[str]) -> None:
        """Choose where `pag_scale` perturbs self-attention: down, mid, up or a part of them, as `up_blocks.1`."""
        layers = [pag_applied_layers] if isinstance(pag_applied_layers, str) else list(pag_applied_layers)
        self.pag_applied_layers = layers

    def enable_freeu(self, s1: float, s2: float, b1: float, b2: float) -> None:
        """Use FreeU, in its first version as diffusers does, until `disable_freeu`."""
        self._freeu = {"s1": s1, "s2": s2, "b1": b1, "b2": b2, "version": 1}

    def disable_freeu(self) -> None:
        """Use FreeU no longer."""
        self._freeu = None

    def load_ip_adapter(
        self,
        pretrained_model_name_or_path_or_dict: str | Path,
        *,
        subfolder: str = "",
        weight_name: str | Sequence[str],
    ) -> None:
        """Use IP-Adapters for `ip_adapter_image`, until `unload_ip_adapter`; their vision tower lies beside them.

        Args:
            pretrained_model_name_or_path_or_dict: a folder, or OWNER/NAME in the hub's cache; nothing is fetched.
            subfolder: below it.
            weight_name: file, or several.

        Raises:
            ModelNotFound: no such file there.
        """
        top = hub.find(str(pretrained_model_name_or_path_or_dict)) / subfolder
        names = [weight_name] if isinstance(weight_name, str) else list(weight_name)
        self._ip_adapters = [(str(find_ip_adapter(str(top / name)).path), 1.0) for name in names]

    def set_ip_adapter_scale(self, scale: float | Sequence[float]) -> None:
        """How much pictures count beside the words: one weight for all adapters, or one for each.

        Raises:
            InvalidInput: another number of weights than adapters.
        """
        count = len(self._ip_adapters)
        weights = [float(one) for one in scale] if isinstance(scale, Sequence) else [float(scale)] * count
        if len(weights) != count:
            raise InvalidInput(
                "scale", given=f"{len(weights)} weights", expected=f"one, or {count} for {count} adapters"
            )
        self._ip_adapters = [(name, weight) for (name, _), weight in zip(self._ip_adapters, weights, strict=True)]

    def unload_ip_adapter(self) -> None:
        """Use them no longer."""
        self._ip_adapters = []

    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        negative_prompt: str | Sequence[str] | None = None,
        prompt_2: str | Sequence[str] | None = None,
        negative_prompt_2: str | Sequence[str] | None = None,
        prompt_3: str | Sequence[str] | None = None,
        negative_prompt_3: str | Sequence[str] | None = None,
        max_sequence_length: int | None = None,
        original_size: tuple[int, int] | None = None,
        crops_coords_top_left: tuple[int, int] = (0, 0),
        target_size: tuple[int, int] | None = None,
        num_images_per_prompt: int = 1,
        eta: float | None = None,
        guidance_rescale: float = 0.0,
        pag_scale: float = 0.0,
        pag_adaptive_scale: float = 0.0,
        sag_scale: float = 0.0,
        clip_skip: int | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        ip_adapter_image: IPAdapterImages | None = None,
    ) -> PipelineOutput:
        """Paint.

        Args:
            prompt: one text or several.
            height, width: in pixels; the model's own without them.
            num_inference_steps, eta, guidance_rescale: as in `Request`.
            guidance_scale: as diffusers means it: at 1 and below, 0.0 too, guidance is off and the prompt holds.
            negative_prompt: one for all, or one for each prompt. SDXL takes zeros where it is None, and encodes "".
            prompt_2, negative_prompt_2: for the second text encoder of SDXL and SD 3; likewise.
            prompt_3, negative_prompt_3: for SD 3's T5; likewise.
            max_sequence_length: tokens that T5 reads; 256 without it.
            original_size, crops_coords_top_left, target_size: SDXL's size numbers, as (height, width) and (top, left).
            num_images_per_prompt: pictures of each prompt, with consecutive seeds.
            pag_scale, pag_adaptive_scale: perturbed-attention guidance, as in diffusers' PAG pipelines; 0 is off.
            sag_scale: self-attention guidance, as in diffusers' SAG pipeline; 0 is off.
            clip_skip: layers left out at the end, counted as diffusers does (None and 0: none).
            generator: its initial seed is the first picture's seed, and its noise that of a generator on the CPU
                (`determinism` "cpu"); one for all prompts or one for each.
            ip_adapter_image: a picture for each IP-Adapter that was loaded, or a list of pictures for one.

        Raises:
            InvalidInput: lists of different lengths, or a value out of range.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        texts = {"negative_prompt": negative_prompt, "prompt_2": prompt_2, "negative_prompt_2": negative_prompt_2}
        texts |= {"prompt_3": prompt_3, "negative_prompt_3": negative_prompt_3}
        others = {name: _one_each(name, given, prompts) for name, given in texts.items()}
        sizes = _size_condition(original_size, crops_coords_top_left, target_size)
        generators = _one_each("generator", generator, prompts)
        image_prompts, attachments = _image_prompts(self._ip_adapters, ip_adapter_image)
        painted: list[Painted] = []
        for k, (text, source) in enumerate(zip(prompts, generators, strict=True)):
            values = {
                "prompt": text,
                **{name: given[k] for name, given in others.items()},
                "max_sequence_length": max_sequence_length,
                "size_condition": sizes,
                "height": height,
                "width": width,
                "num_inference_steps": num_inference_steps,
                "guidance_scale": guidance_of_diffusers(guidance_scale),
                "guidance_rescale": guidance_rescale,
                "pag": self._pag(pag_scale, pag_adaptive_scale),
                "sag": {"scale": sag_scale} if sag_scale else None,
                "freeu": self._freeu,
                "eta": eta,
                "clip_skip": clip_skip + 1 if clip_skip else None,
                "count": num_images_per_prompt,
                "seed": None if source is None else source.initial_seed() % (MAX_SEED + 1),
                "determinism": "exact" if source is None else "cpu",
                "emphasis": "none",
                "image_prompts": image_prompts,
            }
            painted += self.pipeline.paint(Request.from_dict(values, where="StableDiffusionPipeline"), attachments)
        return PipelineOutput([one.image for one in painted], painted)

    def _pag(self, scale: float, adaptive_scale: float) -> dict[str, object] | None:
        if scale == 0:
            return None
        return {"scale": scale, "adaptive_scale": adaptive_scale, "layers": self.pag_applied_layers}


def _image_prompts(
    adapters: list[tuple[str, float]], given: IPAdapterImages | None
) -> tuple[list[dict[str, object]], dict[str, bytes]]:
    """The image prompts of a call, and the pictures' bytes by their sha256.

    Raises:
        InvalidInput: another number of pictures than adapters.
    """
    if given is None:
        return [], {}
    each = [given] if isinstance(given, Image.Image) else list(given)
    if len(each) != len(adapters):
        raise InvalidInput(
            "ip_adapter_image",
            given=f"{len(each)} for {len(adapters)} IP-Adapters",
            expected="a picture, or a list of them, for each",
            cure="Call load_ip_adapter first." if not adapters else "",
        )
    prompts: list[dict[str, object]] = []
    attachments: dict[str, bytes] = {}
    for (name, weight), pictures in zip(adapters, each, strict=True):
        images = []
        for picture in [pictures] if isinstance(pictures, Image.Image) else pictures:
            stream = io.BytesIO()
            picture.save(stream, "PNG")
            digest = sha256(stream.getvalue()).hexdigest()
            attachments[digest] = stream.getvalue()
            images.append(f"sha256:{digest}")
        prompts.append({"adapter": name, "images": images, "weight": weight})
    return prompts, attachments


def _size_condition(
    original: tuple[int, int] | None, crop: tuple[int, int], target: tuple[int, int] | None
) -> dict[str, int] | None:
    """diffusers' pairs, height and top first, as a request's `size_condition`; None where they say nothing."""
    values = dict(zip(("crop_top", "crop_left"), crop, strict=True)) if any(crop) else {}
    if original is not None:
        values |= dict(zip(("original_height", "original_width"), original, strict=True))
    if target is not None:
        values |= dict(zip(("target_height", "target_width"), target, strict=True))
    return values or None


def _one_each(name: str, given: Value | Sequence[Value] | None, prompts: Sequence[str]) -> list[Value | None]:
    if isinstance(given, Sequence) and not isinstance(given, str):
        if len(given) != len(prompts):
            expected = f"one, or one for each of {len(prompts)} prompts"
            raise InvalidInput(name, given=f"{len(given)} values", expected=expected)
        return list(given)
    return [given] * len(prompts)
