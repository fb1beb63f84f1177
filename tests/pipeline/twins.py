"""The same tiny random weights in diffusers' pipelines and in ours."""

from __future__ import annotations

import inspect
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import diffusers
import numpy as np
import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from gouache.diffusion.rng import ImageNoise, ImageSeed, NoiseMode
from gouache.models.bundle import ModelBundle
from gouache.models.configs import DenoiserConfig, GenerationDefaults, TextEncoderConfig, UNetConfig, VAEConfig
from gouache.models.text.clip import TextEncoder
from gouache.models.text.stack import TextStack
from gouache.models.text.tokenizers import read_merges, vocabulary
from gouache.models.unet import UNet
from gouache.models.vae import AutoencoderKL
from gouache.pipeline.generate.guided import sigmas_of
from gouache.pipeline.pipeline import Pipeline
from gouache.pipeline.request import Request

Network = TypeVar("Network", bound=nn.Module)
SIDE = 32
CROSS = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
PREDICTION = {"sd1": "epsilon", "sd2": "v_prediction", "sdxl": "epsilon", "sdxl-refiner": "epsilon"}


def tokenizer(folder: Path, pad: str) -> CLIPTokenizer:
    """transformers' tokenizer with the shipped vocabulary."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary()), encoding="utf-8")
    merges = [" ".join(pair) for pair in read_merges()]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
    return CLIPTokenizer.from_pretrained(folder, pad_token=pad, model_max_length=77)


def scrambled(network: Any, seed: int) -> Any:
    """Weights large enough that every part of the network matters, from a generator of their own."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * parameter[0].numel() ** -0.5)
            else:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return network.eval()


@dataclass
class Pair:
    """One family in both programs."""

    family: str
    theirs: Any
    ours: Pipeline

    def noise(self, request: Request) -> Tensor:
        """The noise our pipeline draws for the request's only picture. [1,4,h,w]"""
        mode: NoiseMode = "cpu" if request.determinism == "cpu" else "torch"
        return ImageNoise([ImageSeed(request.seed or 0)], mode=mode).initial((4, SIDE // 4, SIDE // 4))

    def use_scheduler(self, request: Request) -> None:
        """Give diffusers the scheduler that walks the request's noise levels."""
        common = {**BETAS, "prediction_type": PREDICTION[self.family], "timestep_spacing": request.schedule}
        if request.sampler == "ddim":
            self.theirs.scheduler = diffusers.DDIMScheduler(**common, clip_sample=False, set_alpha_to_one=True)
        else:
            self.theirs.scheduler = diffusers.EulerDiscreteScheduler(**common)

    def save(self, folder: Path) -> None:
        """Write diffusers' folder with the scheduler that the pair was built with: the session shares it, so that an
        earlier test's `use_scheduler` would otherwise stand in the file, which gouache reads.
        """
        left, self.theirs.scheduler = self.theirs.scheduler, diffusers.EulerDiscreteScheduler(**BETAS)
        try:
            self.theirs.save_pretrained(folder)
        finally:
            self.theirs.scheduler = left

    def scaled(self, request: Request, noise: Tensor) -> Tensor:
        """Noise such that diffusers starts from the state x = sigma * noise, in its own units."""
        sigma = float(sigmas_of(self.ours.resolve(request), self.ours.bundle)[0])
        self.theirs.scheduler.set_timesteps(request.num_inference_steps)
        ddim = request.sampler == "ddim"
        return noise * (sigma / math_hypot(sigma) if ddim else sigma / float(self.theirs.scheduler.init_noise_sigma))

    def text_to_image(self, request: Request, **others: Any) -> np.ndarray:
        """Their picture, [H,W,3] in [0, 1]."""
        self.use_scheduler(request)
        picture: np.ndarray = self.theirs(
            prompt=request.prompt,
            negative_prompt=request.negative_prompt,
            num_inference_steps=request.num_inference_steps,
            guidance_scale=request.guidance_scale if request.guidance_scale is not None else 3.0,
            guidance_rescale=request.guidance_rescale,
            latents=self.scaled(request, self.noise(request)),
            height=SIDE,
            width=SIDE,
            output_type="np",
            **others,
        ).images[0]
        return picture

    def variant(self, name: str, **others: Any) -> Any:
        """Another of diffusers' pipelines around the same networks, and others that it needs."""
        parts = {**self.theirs.components, **others}
        kept = inspect.signature(getattr(diffusers, name).__init__).parameters
        parts = {key: part for key, part in parts.items() if key in kept}
        parts |= {key: None for key in ("depth_estimator", "feature_extractor") if key in kept}
        more = {"requires_safety_checker": False} if "requires_safety_checker" in kept else {}
        pipeline = getattr(diffusers, name)(**parts, **more)
        pipeline.scheduler = self.theirs.scheduler
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def settings(self, request: Request) -> dict[str, Any]:
        """What every call of theirs shares."""
        return {
            "prompt": request.prompt,
            "negative_prompt": request.negative_prompt,
            "num_inference_steps": request.num_inference_steps,
            "guidance_scale": request.guidance_scale,
            "output_type": "np",
        }


def math_hypot(sigma: float) -> float:
    """sqrt(1 + sigma^2): the length of data and noise together in the variance-preserving scale."""
    return float(np.hypot(1.0, sigma))


class Twins:
    """Builds each family once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._built: dict[tuple[str, int, bool], Pair] = {}

    def of(self, family: str, draft_channels: int = 0, *, deep: bool = False) -> Pair:
        """The pair of one family: sd1, sd2 (v-prediction), sdxl or its refiner.

        draft_channels: more input channels for inpainting and others.
        deep: three levels, of which one has no attention: SDXL's first, the last of the others.
        """
        key = (family, draft_channels, deep)
        if key not in self._built:
            self._built[key] = self._build(family, draft_channels, deep=deep)
        return self._built[key]

    def _build(self, family: str, draft_channels: int, *, deep: bool) -> Pair:
        sdxl, refiner = family.startswith("sdxl"), family == "sdxl-refiner"
        text = [] if refiner else [self._text(32, 0, family, 1)]
        text += [self._text(24, 24, family, 2)] if sdxl else []
        unet_config = UNetConfig(
            draft_channels=draft_channels,
            channels=(16, 32, 32) if deep else (16, 32),
            layers_per_level=1,
            transformer_layers=((0, 1, 1) if sdxl else (1, 1, 0)) if deep else (1, 1),
            heads=(2, 2, 2) if deep else (2, 2),
            context_width=24 if refiner else 56 if sdxl else 32,
            linear_projection=family != "sd1",
            norm_groups=8,
            pooled_width=24 + (5 if refiner else 6) * 256 if sdxl else 0,
            noise_levels=1000 if draft_channels == 3 else 0,
            only_cross_attention=(True, False) if draft_channels == 3 else (),
        )
        unet = scrambled(self._unet(unet_config, sdxl), 13 if refiner else 3)
        # The pipeline of the x4 upscaler insists on its own scale.
        scale = 0.08333 if draft_channels == 3 else VAEConfig().scale
        vae_config = VAEConfig(channels=(16, 16, 32), layers_per_level=1, norm_groups=8, scale=scale)
        vae = scrambled(self._vae(vae_config), 4)
        denoiser = DenoiserConfig(parameterization="v" if family == "sd2" else "eps")
        bundle = ModelBundle(
            family=family,
            unet=copied(UNet(unet_config), unet),
            vae=copied(AutoencoderKL(vae_config), vae),
            text=TextStack.of_clip([ours for _, ours in text]),
            denoiser_config=denoiser,
            defaults=GenerationDefaults(width=SIDE, height=SIDE, num_inference_steps=4, guidance_scale=3.0),
        )
        return Pair(family, self._pipeline(family, unet, vae, [theirs for theirs, _ in text]), Pipeline(bundle))

    def _pipeline(self, family: str, unet: Any, vae: Any, text: list[Any]) -> Any:
        scheduler = diffusers.EulerDiscreteScheduler(**BETAS)
        pad = "!" if family == "sd2" else "<|endoftext|>"
        tokens = tokenizer(self.folder / family, pad)
        if family == "sdxl-refiner":
            second = tokenizer(self.folder / "sdxl-2", "!")
            pipeline = diffusers.StableDiffusionXLImg2ImgPipeline(
                vae,
                None,
                text[0],
                None,
                second,
                unet,
                scheduler,
                requires_aesthetics_score=True,
                force_zeros_for_empty_prompt=False,
                add_watermarker=False,
            )
        elif family == "sdxl":
            second = tokenizer(self.folder / "sdxl-2", "!")
            pipeline = diffusers.StableDiffusionXLPipeline(
                vae, text[0], text[1], tokens, second, unet, scheduler, add_watermarker=False
            )
        else:
            pipeline = diffusers.StableDiffusionPipeline(
                vae, text[0], tokens, unet, scheduler, None, None, requires_safety_checker=False
            )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def _text(self, width: int, projection: int, family: str, seed: int) -> tuple[Any, TextEncoder]:
        shape = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "hidden_size": width}
        config = CLIPTextConfig(
            vocab_size=49408, projection_dim=projection or 64, bos_token_id=49406, eos_token_id=49407, **shape
        )
        theirs = scrambled((CLIPTextModelWithProjection if projection else CLIPTextModel)(config), seed)
        ours = TextEncoder(
            TextEncoderConfig(
                width=width,
                inner_width=64,
                layers=2,
                heads=2,
                projection_width=projection,
                skip_layers=int(family.startswith("sdxl")),
                final_norm=not family.startswith("sdxl"),
                pad_id=0 if seed == 2 or family == "sd2" else 49407,
            )
        )
        return theirs, copied(ours, theirs)

    def _unet(self, config: UNetConfig, sdxl: bool) -> Any:
        more = {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": config.pooled_width,
        }
        return diffusers.UNet2DConditionModel(
            sample_size=SIDE // 4,
            in_channels=config.in_channels + config.draft_channels,
            block_out_channels=config.channels,
            down_block_types=[CROSS[0] if depth else "DownBlock2D" for depth in config.transformer_layers],
            up_block_types=[CROSS[1] if depth else "UpBlock2D" for depth in reversed(config.transformer_layers)],
            layers_per_block=1,
            cross_attention_dim=config.context_width,
            attention_head_dim=2,
            norm_num_groups=8,
            use_linear_projection=config.linear_projection,
            num_class_embeds=config.noise_levels or None,
            only_cross_attention=list(config.only_cross_attention) or False,
            **(more if sdxl else {}),
        )

    def _vae(self, config: VAEConfig) -> Any:
        levels = len(config.channels)
        return diffusers.AutoencoderKL(
            block_out_channels=config.channels,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            layers_per_block=1,
            norm_num_groups=8,
            sample_size=SIDE,
            scaling_factor=config.scale,
            force_upcast=False,
        )


def copied(ours: Network, theirs: nn.Module) -> Network:
    """Our network with their weights, strictly."""
    state = {name.removeprefix("text_model."): tensor for name, tensor in theirs.state_dict().items()}
    known = ours.state_dict()
    ours.load_state_dict({name: state[name] for name in known if name in state})
    return ours
