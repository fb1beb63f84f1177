"""A second account of how AUTOMATIC1111 paints, by other people's code: the judge of same_picture.py.

Nothing of gouache's samplers, noise, schedules, masks or prompt reading is used. The networks are diffusers' and
transformers', the samplers and lists k-diffusion's own functions in fp32, the Brownian tree torchsde's, the blur
OpenCV's, the CPU's noise PyTorch's. What that program does between them (version 1.10: processing.py, rng.py,
sd_samplers_*.py, prompt_parser.py, masking.py, images.py) is written here a second time, in its order. CUDA's noise
alone comes from `gouache.diffusion.rng.Philox`, which its authors' published numbers test.
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
import types
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torchsde._brownian.brownian_interval as torchsde_interval
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor

from gouache.diffusion.rng import Philox

LANCZOS = Image.Resampling.LANCZOS
SAMPLERS: dict[str, tuple[str, str | None, str]] = {
    "Euler": ("sample_euler", None, ""),
    "Euler a": ("sample_euler_ancestral", None, ""),
    "LMS": ("sample_lms", None, ""),
    "Heun": ("sample_heun", None, "second_order"),
    "DPM2": ("sample_dpm_2", "karras", "second_order discard"),
    "DPM2 a": ("sample_dpm_2_ancestral", "karras", "second_order discard"),
    "DPM++ 2S a": ("sample_dpmpp_2s_ancestral", "karras", "second_order"),
    "DPM++ 2M": ("sample_dpmpp_2m", "karras", ""),
    "DPM++ SDE": ("sample_dpmpp_sde", "karras", "second_order brownian"),
    "DPM++ 2M SDE": ("sample_dpmpp_2m_sde", "exponential", "brownian"),
    "DPM++ 2M SDE Heun": ("sample_dpmpp_2m_sde", "exponential", "brownian heun"),
    "DPM++ 3M SDE": ("sample_dpmpp_3m_sde", "exponential", "brownian discard"),
}
"""Label -> k-diffusion's function, the list that belongs to it, and the marks of that program's table."""


@cache
def k_diffusion() -> Any:
    """k-diffusion's sampling.py alone, with the real torchsde; its package asks for more than its samplers use."""
    spec = importlib.util.find_spec("k_diffusion")
    if spec is None or spec.origin is None:
        raise SystemExit("k-diffusion is not installed: pip install --no-deps k-diffusion")
    utils: Any = types.ModuleType("k_diffusion_account.utils")
    utils.append_dims = lambda x, ndim: x.reshape(*x.shape, *(1 for _ in range(ndim - x.ndim)))
    parent: Any = types.ModuleType("k_diffusion_account")
    parent.utils, parent.__path__ = utils, []
    sys.modules |= {"k_diffusion_account": parent, "k_diffusion_account.utils": utils}
    if "torchdiffeq" not in sys.modules and importlib.util.find_spec("torchdiffeq") is None:
        solver: Any = types.ModuleType("torchdiffeq")
        solver.odeint = None
        sys.modules["torchdiffeq"] = solver
    place = Path(spec.origin).with_name("sampling.py")
    loaded = importlib.util.spec_from_file_location("k_diffusion_account.sampling", place)
    if loaded is None or loaded.loader is None:
        raise SystemExit(f"{place} can't be loaded")
    module = importlib.util.module_from_spec(loaded)
    loaded.loader.exec_module(module)
    return module


@dataclass(frozen=True)
class Settings:
    """What a user of that program sets; the names are its own."""

    prompt: str = "a cat"
    negative_prompt: str = "blurry"
    seed: int = 1
    subseed: int = 0
    subseed_strength: float = 0.0
    steps: int = 6
    cfg_scale: float = 3.0
    sampler_name: str = "Euler"
    width: int = 32
    height: int = 32
    randn_source: str = "CPU"
    eta_noise_seed_delta: int = 0
    s_churn: float = 0.0
    s_tmin: float = 0.0
    enable_hr: bool = False
    hr_scale: float = 2.0
    hr_resize_x: int = 0
    hr_resize_y: int = 0
    hr_upscaler: str = "Latent"
    hr_second_pass_steps: int = 0
    denoising_strength: float = 0.75
    init_image: Image.Image | None = None
    resize_mode: int = 0
    mask: Image.Image | None = None
    mask_blur: int = 4
    inpainting_fill: int = 0
    inpaint_full_res: bool = False
    inpaint_full_res_padding: int = 0
    inpainting_mask_invert: int = 0


Schedule = list[tuple[int, str]]
"""Texts of a prompt with the last step each holds for, written out by hand in the case."""


class ImageNoise:
    """modules/rng.py: one generator a picture; first the latents, then the steps."""

    def __init__(self, settings: Settings, shape: Sequence[int]) -> None:
        self.settings, self.shape = settings, tuple(shape)
        self.generator = generator_of(settings.randn_source, settings.seed)

    def first(self) -> Tensor:
        """The latents' noise. [1,C,h,w]"""
        s = self.settings
        noise = self.generator(self.shape)
        if s.subseed_strength:
            other = generator_of(s.randn_source, s.subseed)(self.shape)
            low, high = (x / torch.norm(x, dim=1, keepdim=True) for x in (noise, other))
            omega = torch.acos((low * high).sum(1))
            parts = [
                torch.sin(share * omega) / torch.sin(omega) for share in (1 - s.subseed_strength, s.subseed_strength)
            ]
            noise = parts[0].unsqueeze(1) * noise + parts[1].unsqueeze(1) * other
        if s.eta_noise_seed_delta:
            self.generator = generator_of(s.randn_source, s.seed + s.eta_noise_seed_delta)
        return noise[None]

    def next(self) -> Tensor:
        """One step's noise. [1,C,h,w]"""
        return self.generator(self.shape)[None]


def generator_of(source: str, seed: int) -> Callable[[Sequence[int]], Tensor]:
    """A fresh source of normal numbers."""
    if source == "NV":
        return Philox(seed).randn
    generator = torch.Generator("cpu").manual_seed(seed)
    return lambda shape: torch.randn(tuple(shape), generator=generator)


class Account:
    """Paints with diffusers' networks of one SD 1 model as that program would.

    Args:
        theirs: diffusers' pipeline.
        factor: pixels of one latent.
    """

    def __init__(self, theirs: Any, factor: int) -> None:
        self.theirs, self.factor, self.k = theirs, factor, k_diffusion()
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        products = torch.cumprod(1 - betas, 0).float()
        self.sigmas = ((1 - products) / products) ** 0.5
        self.log_sigmas = self.sigmas.log()

    @torch.no_grad()
    def paint(self, settings: Settings, prompt: Schedule | None = None, second: Schedule | None = None) -> np.ndarray:
        """The picture. uint8 [H,W,3]"""
        s = settings
        texts = prompt or [(10_000, s.prompt)]
        if s.init_image is not None:
            return self._img2img(s, texts)
        channels = self.theirs.unet.config.in_channels
        rng = ImageNoise(s, (channels, s.height // self.factor, s.width // self.factor))
        sigmas = self.get_sigmas(s, s.steps)
        x = self._walk(s, rng.first() * sigmas[0], sigmas, sigmas, rng, texts)
        return self._bytes(self._hires(s, x, second or texts) if s.enable_hr else x)

    def _hires(self, s: Settings, samples: Tensor, texts: Schedule) -> Tensor:
        up, cut = self._target(s)
        f = self.factor
        modes = {"Latent": ("bilinear", False), "Latent (nearest-exact)": ("nearest-exact", False)}
        modes["Latent (bicubic antialiased)"] = ("bicubic", True)
        if s.hr_upscaler in modes:
            mode, antialias = modes[s.hr_upscaler]
            size = (up[1] // f, up[0] // f)
            samples = torch.nn.functional.interpolate(samples, size=size, mode=mode, antialias=antialias)
        else:
            image = Image.fromarray(self._bytes(samples)).resize(up, LANCZOS)
            samples = self._encode(image)
        tx, ty = cut
        samples = samples[:, :, ty // 2 : samples.shape[2] - (ty + 1) // 2, tx // 2 : samples.shape[3] - (tx + 1) // 2]
        rng = ImageNoise(s, samples.shape[1:])
        noise = rng.first()
        steps = s.hr_second_pass_steps or s.steps
        total = int(steps / min(s.denoising_strength, 0.999))
        sigmas = self.get_sigmas(s, total)
        walked = sigmas[total - (steps - 1) - 1 :]
        return self._walk(s, samples + noise * walked[0], walked, sigmas, rng, texts)

    def _target(self, s: Settings) -> tuple[tuple[int, int], tuple[int, int]]:
        if not s.hr_resize_x and not s.hr_resize_y:
            return (int(s.width * s.hr_scale), int(s.height * s.hr_scale)), (0, 0)
        if not s.hr_resize_y:
            return (s.hr_resize_x, s.hr_resize_x * s.height // s.width), (0, 0)
        if not s.hr_resize_x:
            return (s.hr_resize_y * s.width // s.height, s.hr_resize_y), (0, 0)
        if s.width / s.height < s.hr_resize_x / s.hr_resize_y:
            up = (s.hr_resize_x, s.hr_resize_x * s.height // s.width)
        else:
            up = (s.hr_resize_y * s.width // s.height, s.hr_resize_y)
        return up, ((up[0] - s.hr_resize_x) // self.factor, (up[1] - s.hr_resize_y) // self.factor)

    def _img2img(self, s: Settings, texts: Schedule) -> np.ndarray:
        image, mask, overlay, paste = prepared(s)
        if mask is not None and s.inpainting_fill != 1:
            image = filled(image, mask)
        latent = self._encode(image)
        keep = None
        if mask is not None:
            small = mask.convert("RGB").resize((latent.shape[3], latent.shape[2]))
            paint = torch.from_numpy(np.around(np.moveaxis(np.array(small, dtype=np.float32), 2, 0)[0] / 255))[
                None, None
            ]
            if s.inpainting_fill == 2:
                alone = replace(s, subseed_strength=0.0)
                latent = latent * (1 - paint) + ImageNoise(alone, latent.shape[1:]).first() * paint
            elif s.inpainting_fill == 3:
                latent = latent * (1 - paint)
            keep = (1 - paint, latent)
        rng = ImageNoise(s, latent.shape[1:])
        noise = rng.first()
        enc = int(min(s.denoising_strength, 0.999) * s.steps)
        sigmas = self.get_sigmas(s, s.steps)
        walked = sigmas[s.steps - enc - 1 :]
        x = self._walk(s, latent + noise * walked[0], walked, sigmas, rng, texts, keep)
        if keep is not None:
            x = x * (1 - keep[0]) + keep[1] * keep[0]
        return laid_over(Image.fromarray(self._bytes(x)), overlay, paste)

    def get_sigmas(self, s: Settings, steps: int) -> Tensor:
        """sd_samplers_kdiffusion.py: the list of a sampler, fp32. [steps + 1]"""
        _, scheduler, marks = SAMPLERS[s.sampler_name]
        steps += "discard" in marks
        low, high = self.sigmas[0].item(), self.sigmas[-1].item()
        if scheduler is None:
            t = torch.linspace(999, 0, steps)
            below = t.floor().long()
            above = (below + 1).clamp(max=999)
            share = t - below
            sigmas = ((1 - share) * self.log_sigmas[below] + share * self.log_sigmas[above]).exp()
            sigmas = torch.cat([sigmas, sigmas.new_zeros(1)])
        else:
            sigmas = getattr(self.k, f"get_sigmas_{scheduler}")(steps, low, high)
        return torch.cat([sigmas[:-2], sigmas[-1:]]) if "discard" in marks else sigmas

    def _walk(
        self,
        s: Settings,
        x: Tensor,
        sigmas: Tensor,
        whole: Tensor,
        rng: ImageNoise,
        texts: Schedule,
        keep: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        name, _, marks = SAMPLERS[s.sampler_name]
        contexts = [(end, self._context(text)) for end, text in texts]
        uncond, calls = self._context(s.negative_prompt), 0

        def model(state: Tensor, sigma: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            context = next(one for end, one in contexts if calls <= end)
            both = self._denoised(state, sigma, context), self._denoised(state, sigma, uncond)
            denoised = both[1] + (both[0] - both[1]) * s.cfg_scale
            return denoised if keep is None else denoised * (1 - keep[0]) + keep[1] * keep[0]

        function = getattr(self.k, name)
        known = inspect.signature(function).parameters
        options: dict[str, Any] = {"disable": True}
        if "s_churn" in known and s.s_churn:
            options |= {"s_churn": s.s_churn, "s_tmin": s.s_tmin}
        if "heun" in marks:
            options["solver_type"] = "heun"
        if "brownian" in marks:
            torchsde_interval._randn = lambda size, dtype, device, seed: generator_of(s.randn_source, int(seed))(size)  # noqa: ARG005
            low = whole[whole > 0].min()
            options["noise_sampler"] = self.k.BrownianTreeNoiseSampler(x, low, whole.max(), seed=[s.seed])
        self.k.torch = types.SimpleNamespace(**{**vars(torch), "randn_like": lambda _: rng.next()})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return function(model, x, sigmas, **options)

    def _denoised(self, x: Tensor, sigma: Tensor, context: Tensor) -> Tensor:
        """k-diffusion's CompVisDenoiser: eps at the interpolated timestep."""
        log_sigma = sigma.log()
        distances = log_sigma - self.log_sigmas[:, None]
        low = distances.ge(0).cumsum(dim=0).argmax(dim=0).clamp(max=998)
        share = ((self.log_sigmas[low] - log_sigma) / (self.log_sigmas[low] - self.log_sigmas[low + 1])).clamp(0, 1)
        t = (1 - share) * low + share * (low + 1)
        scaled = x / (sigma**2 + 1).sqrt()[:, None, None, None]
        eps = self.theirs.unet(scaled, t, encoder_hidden_states=context).sample
        return x - eps * sigma[:, None, None, None]

    def _context(self, text: str) -> Tensor:
        """sd_hijack_clip.py without emphasis: chunks of 75 tokens, BREAK between."""
        tokenizer = self.theirs.tokenizer
        parts = [tokenizer(part.strip(), add_special_tokens=False).input_ids for part in text.split("BREAK")]
        chunks = parts if parts[-1] or len(parts) == 1 else parts[:-1]
        start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
        rows = [[start, *chunk, *[end] * (76 - len(chunk))] for chunk in chunks]
        return torch.hstack([self.theirs.text_encoder(torch.tensor([row]))[0] for row in rows])

    def _encode(self, image: Image.Image) -> Tensor:
        pixels = torch.from_numpy(np.moveaxis(np.array(image).astype(np.float32) / 255.0, 2, 0))[None]
        vae = self.theirs.vae
        return vae.encode(pixels * 2 - 1).latent_dist.mode() * vae.config.scaling_factor

    def _bytes(self, latent: Tensor) -> np.ndarray:
        vae = self.theirs.vae
        image = vae.decode(latent / vae.config.scaling_factor).sample
        unit = torch.clamp((image + 1.0) / 2.0, min=0.0, max=1.0)[0].numpy()
        pixels: np.ndarray = (255.0 * np.moveaxis(unit, 0, 2)).astype(np.uint8)
        return pixels


Prepared = tuple[Image.Image, Image.Image | None, Image.Image | None, tuple[int, int, int, int] | None]


def prepared(s: Settings) -> Prepared:
    """processing.py: picture and mask at working size, the overlay, and where the painted part is pasted."""
    image = s.init_image
    assert image is not None, "img2img has a picture"
    if s.mask is None:
        return resize_image(s.resize_mode, image, s.width, s.height), None, None, None
    mask, paste = s.mask.convert("L"), None
    mask = ImageOps.invert(mask) if s.inpainting_mask_invert else mask
    if s.mask_blur:
        kernel = 2 * int(2.5 * s.mask_blur + 0.5) + 1
        pixels = cv2.GaussianBlur(np.array(mask), (kernel, 1), s.mask_blur)
        mask = Image.fromarray(cv2.GaussianBlur(pixels, (1, kernel), s.mask_blur))
    if s.inpaint_full_res:
        x1, y1, x2, y2 = crop_region(mask, s)
        over, paste = mask, (x1, y1, x2 - x1, y2 - y1)
        mask = resize_image(2, mask.crop((x1, y1, x2, y2)), s.width, s.height)
    else:
        image = resize_image(s.resize_mode, image, s.width, s.height)
        mask = resize_image(s.resize_mode, mask, s.width, s.height)
        over = Image.fromarray(np.clip(np.array(mask).astype(np.float32) * 2, 0, 255).astype(np.uint8))
    overlay = Image.new("RGBa", image.size)
    overlay.paste(image.convert("RGBA").convert("RGBa"), mask=ImageOps.invert(over.convert("L")))
    if paste is not None:
        left, top, wide, high = paste
        image = resize_image(2, image.crop((left, top, left + wide, top + high)), s.width, s.height)
    return image, mask, overlay.convert("RGBA"), paste


def crop_region(mask: Image.Image, s: Settings) -> tuple[int, int, int, int]:
    """masking.py: the box around the mask, padded, then grown to the working size's shape."""
    box = mask.getbbox()
    assert box is not None, "there is something to paint"
    pad, (w, h) = s.inpaint_full_res_padding, mask.size
    x1, y1, x2, y2 = max(box[0] - pad, 0), max(box[1] - pad, 0), min(box[2] + pad, w), min(box[3] + pad, h)
    if (x2 - x1) / (y2 - y1) > s.width / s.height:
        more = int((x2 - x1) / (s.width / s.height) - (y2 - y1))
        y1, y2 = grown(y1 - more // 2, y2 + more - more // 2, h)
    else:
        more = int((y2 - y1) * (s.width / s.height) - (x2 - x1))
        x1, x2 = grown(x1 - more // 2, x2 + more - more // 2, w)
    return x1, y1, x2, y2


def grown(low: int, high: int, limit: int) -> tuple[int, int]:
    """Push an interval back inside, first from above, then from below."""
    shift = max(high - limit, 0)
    low, high = low - shift, high - shift
    low, high = max(low, 0), high + max(-low, 0)
    return low, min(high, limit)


def resize_image(mode: int, image: Image.Image, width: int, height: int) -> Image.Image:
    """images.py: 0 stretches; 1 and 2 are judged here for shapes that need no border only."""
    ratio, source = width / height, image.width / image.height
    if mode == 0 or ratio == source:
        return image.resize((width, height), LANCZOS)
    wide = width if (ratio > source) == (mode == 1) else image.width * height // image.height
    high = height if (ratio <= source) == (mode == 1) else image.height * width // image.width
    if mode == 2 and (wide, high) != (width, height):
        raise NotImplementedError("a border would have to be filled")
    result = Image.new("RGB", (width, height))
    result.paste(image.resize((wide, high), LANCZOS), (width // 2 - wide // 2, height // 2 - high // 2))
    return result


def filled(image: Image.Image, mask: Image.Image) -> Image.Image:
    """masking.py: fill."""
    known = Image.new("RGBa", image.size)
    known.paste(image.convert("RGBA").convert("RGBa"), mask=ImageOps.invert(mask.convert("L")))
    result = Image.new("RGBA", image.size)
    for radius in (256, 64, 16, 16, 4, 4, 4, 4, 2, 2, 0):
        result.alpha_composite(known.filter(ImageFilter.GaussianBlur(radius)).convert("RGBA"))
    return result.convert("RGB")


def laid_over(image: Image.Image, overlay: Image.Image | None, paste: tuple[int, int, int, int] | None) -> np.ndarray:
    """processing.py: apply_overlay."""
    if overlay is None:
        return np.array(image)
    if paste is not None:
        x, y, w, h = paste
        base = Image.new("RGBA", overlay.size)
        base.paste(resize_image(1, image, w, h), (x, y))
        image = base
    image = image.convert("RGBA")
    image.alpha_composite(overlay)
    return np.array(image.convert("RGB"))
