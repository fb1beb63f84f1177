"""Stable Diffusion 3 in both programs: a folder of tiny random parts that diffusers writes and gouache loads."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from gouache.diffusion.rng import ImageNoise, ImageSeed
from gouache.pipeline.pipeline import Pipeline
from gouache.pipeline.request import Request

SIDE = 32
KINDS: dict[str, dict[str, Any]] = {
    "3 medium": {},
    "3.5 large": {"qk_norm": "rms_norm"},
    "3.5 medium": {"qk_norm": "rms_norm", "dual_attention_layers": (0, 1)},
}
CONTEXT, POOLED = 64, 40


def text_encoder(width: int, projection: int, act: str) -> Any:
    config = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=width,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=1,
        hidden_act=act,
        projection_dim=projection,
        bos_token_id=49406,
        eos_token_id=49407,
    )
    return CLIPTextModelWithProjection(config)


def transformer(kind: str, layers: int = 3) -> Any:
    config = {"num_attention_heads": 2, "attention_head_dim": 16, "caption_projection_dim": 32, "num_layers": layers}
    sizes = {"joint_attention_dim": CONTEXT, "pooled_projection_dim": POOLED, "pos_embed_max_size": 12}
    theirs = diffusers.SD3Transformer2DModel(sample_size=SIDE // 4, **config, **sizes, **KINDS[kind])
    # Places that no formula gives: a loaded table is to be used as it stands.
    theirs.pos_embed.pos_embed.add_(torch.linspace(-0.1, 0.1, theirs.pos_embed.pos_embed.numel()).view(1, 144, 32))
    return theirs


def autoencoder() -> Any:
    return diffusers.AutoencoderKL(
        block_out_channels=(16, 16, 32),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=8,
        sample_size=SIDE,
        scaling_factor=1.5305,
        shift_factor=0.0609,
        use_quant_conv=False,
        use_post_quant_conv=False,
        force_upcast=False,
    )


class Sd3Twins:
    """Builds each kind once, below a folder; `twins` is the module of that name."""

    def __init__(self, folder: Path, twins: Any) -> None:
        self.folder, self.twins = folder, twins
        self.theirs, self.ours, self.path = cache(self._theirs), cache(self._ours), cache(self._path)
        self.shared = cache(self._shared)

    def _theirs(self, kind: str) -> Any:
        """diffusers' pipeline."""
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
        pipeline = diffusers.StableDiffusion3Pipeline(
            transformer=self.twins.scrambled(transformer(kind), 3), scheduler=scheduler, **self.shared()
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def _shared(self) -> dict[str, Any]:
        """The parts that all kinds have in common."""
        scrambled = self.twins.scrambled
        first, second = (
            self.twins.tokenizer(self.folder / name, pad) for name, pad in (("l", "<|endoftext|>"), ("g", "!"))
        )
        return {
            "vae": scrambled(autoencoder(), 4),
            "text_encoder": scrambled(text_encoder(24, 16, "quick_gelu"), 1),
            "tokenizer": first,
            "text_encoder_2": scrambled(text_encoder(32, 24, "gelu"), 2),
            "tokenizer_2": second,
            "text_encoder_3": None,
            "tokenizer_3": None,
        }

    def _path(self, kind: str) -> Path:
        """The folder that diffusers wrote."""
        self.theirs(kind).save_pretrained(self.folder / kind)
        return self.folder / kind

    def _ours(self, kind: str) -> Pipeline:
        return Pipeline.load(self.path(kind))

    def variant(self, kind: str, name: str, scheduler: Any = None, **others: Any) -> Any:
        """Another of diffusers' pipelines around the same parts and others, with a scheduler of its own."""
        parts = {**self.theirs(kind).components, **others}
        parts["scheduler"] = scheduler or diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
        pipeline = getattr(diffusers, name)(**parts)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def noise(self, request: Request) -> Tensor:
        """The noise that ours draws for the request's only picture. [1,16,h,w]"""
        return ImageNoise([ImageSeed(request.seed or 0)]).initial((16, SIDE // 4, SIDE // 4))

    def their_picture(self, pipeline: Any, request: Request, **others: Any) -> np.ndarray:
        """diffusers' picture from the same noise, [H,W,3] in [0, 1].

        It is decoded here: their inpainting (0.42) forgets the autoencoder's shift in decoding.
        """
        given = {"latents": self.noise(request), "height": SIDE, "width": SIDE, **others}
        latents = pipeline(
            prompt=request.prompt,
            negative_prompt=request.negative_prompt,
            num_inference_steps=request.num_inference_steps,
            guidance_scale=request.guidance_scale,
            max_sequence_length=request.max_sequence_length or 256,
            output_type="latent",
            **given,
        ).images
        with torch.no_grad():
            decoded = pipeline.vae.decode(
                latents / pipeline.vae.config.scaling_factor + pipeline.vae.config.shift_factor
            )
        picture: np.ndarray = pipeline.image_processor.postprocess(decoded.sample, output_type="np")[0]
        return picture
