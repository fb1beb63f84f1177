"""The same settings in another program: how far is our picture from that program's? In dB, measured here.

    python benchmarks/same_picture.py               # prints the table and writes docs/same_picture.md
    python benchmarks/same_picture.py --only hires  # cases whose name holds a word; writes nothing

The judges are installed programs: diffusers' own pipelines, and for AUTOMATIC1111 the second account of its procedure
in a1111_account.py, which runs k-diffusion, torchsde and OpenCV on diffusers' networks. Theirs and ours get one set of
tiny random weights (tests/pipeline/twins.py), pictures of 32 to 96 pixels and few steps.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from a1111_account import SAMPLERS, Account, Schedule, Settings  # noqa: E402
from tests.pipeline.twins import BETAS, PREDICTION, Pair, Twins  # noqa: E402

from gouache.pipeline.request import Request  # noqa: E402

PAGE = ROOT / "docs" / "same_picture.md"
REACH = 60.0
"""dB that a case has to reach."""
FACTOR = 4
"""Pixels of one latent of the twins' autoencoder."""
SPREAD = 8.0
"""Deviation of a judge's pixels, of 255, below which agreement would say nothing."""
PROMPT, NEGATIVE = "a red fire engine on a hill", "blurry, grey"
NOT_JUDGED = (
    "ComfyUI, InvokeAI and stable-diffusion.cpp: their programs are not run here. `cpu` has ComfyUI's initial noise; "
    "the noise of its steps comes from a generator of its own.",
    "A1111's samplers that walk timesteps (DDIM, PLMS, UniPC), DPM fast, DPM adaptive and Restart: this account has "
    "k-diffusion's samplers only.",
    "A1111's emphasis, textual inversions, LoRA, refiner, `seed resize`, soft inpainting and upscalers of pictures "
    "other than Lanczos.",
    "A1111's image to image samples the latents of the starting picture with a generator that nobody seeds; here and "
    "in the account the latents are their mean. With a trained autoencoder the two are hard to tell apart.",
    "Rounding of a GPU: the account runs on the CPU in fp32. CUDA's noise is Philox there and here, tested by itself.",
    "diffusers' schedulers that start from noise of deviation 1 while the first level is higher (DDIM, DDPM, PNDM, DPM-"
    "Solver, UniPC, DEIS, LCM), and its image to image, which samples the latents with the same generator first.",
)


@dataclass(frozen=True)
class Case:
    """One comparison.

    Attributes:
        name: what is compared, for people.
        judge: the other program.
        ours: the fields of our request.
        theirs: paints the other picture, uint8 [H,W,3].
        family: of the twins.
        pictures: attachments of our request, by name.
    """

    name: str
    judge: str
    ours: dict[str, Any]
    theirs: Callable[[Pair], np.ndarray]
    family: str = "sd1"
    pictures: dict[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Measured:
    """A case with its result; `spread` is the deviation of the judge's pixels."""

    case: Case
    decibels: float
    spread: float


DIFFUSERS = (
    ("EulerDiscreteScheduler", "euler", "trailing", ("sd1", "sd2", "sdxl"), {}),
    ("EulerAncestralDiscreteScheduler", "euler_ancestral", "trailing", ("sd1", "sd2", "sdxl"), {}),
    ("HeunDiscreteScheduler", "heun", "trailing", ("sd1",), {}),
    ("LMSDiscreteScheduler", "lms", "trailing", ("sd1",), {}),
    ("KDPM2AncestralDiscreteScheduler", "dpm_2_ancestral", "trailing", ("sd1",), {}),
    ("DPMSolverSDEScheduler", "dpmpp_sde", "trailing", ("sd1",), {"noise_sampler_seed": 5}),
)


def diffusers_cases() -> Iterator[Case]:
    """`determinism="cpu"` beside a pipeline with `generator=torch.Generator().manual_seed(seed)`."""
    for name, sampler, spacing, families, more in DIFFUSERS:
        for family in families:
            ours = {
                "prompt": PROMPT,
                "negative_prompt": NEGATIVE,
                "seed": 5,
                "num_inference_steps": 8,
                "guidance_scale": 4.0,
                "sampler": sampler,
                "schedule": spacing,
                "determinism": "cpu",
                "emphasis": "none",
            }
            options = {**BETAS, "timestep_spacing": spacing, **more}
            label = f"{name}, {spacing}, {family}"
            yield Case(label, "diffusers", ours, _by_diffusers(name, options, family), family)


def _by_diffusers(name: str, options: dict[str, Any], family: str) -> Callable[[Pair], np.ndarray]:
    def paint(pair: Pair) -> np.ndarray:
        options["prediction_type"] = PREDICTION[family]
        pair.theirs.scheduler = getattr(diffusers, name)(**options)
        generator = torch.Generator().manual_seed(5)
        picture = pair.theirs(
            prompt=PROMPT,
            negative_prompt=NEGATIVE,
            num_inference_steps=8,
            guidance_scale=4.0,
            generator=generator,
            height=32,
            width=32,
            output_type="np",
        ).images[0]
        return (picture * 255).round().astype(np.uint8)

    return paint


def a1111(
    name: str, *, text: str = PROMPT, prompt: Schedule | None = None, second: Schedule | None = None, **settings: Any
) -> Case:
    """A case of that program: its own settings, from which our request follows word by word.

    Args:
        name: what is compared.
        text: the prompt.
        prompt, second: the texts that its edits mean in each pass, written out.
        settings: of `Settings`.
    """
    asked = Settings(**{"prompt": text, "negative_prompt": NEGATIVE, "cfg_scale": 4.0, **settings})
    ours: dict[str, Any] = {
        "prompt": asked.prompt,
        "negative_prompt": asked.negative_prompt,
        "seed": asked.seed,
        "subseed": asked.subseed,
        "subseed_strength": asked.subseed_strength,
        "num_inference_steps": asked.steps,
        "guidance_scale": asked.cfg_scale,
        "sampler": asked.sampler_name,
        "width": asked.width,
        "height": asked.height,
        "determinism": "a1111" if asked.randn_source == "NV" else "cpu",
        "procedure": "a1111",
        "eta_noise_seed_delta": asked.eta_noise_seed_delta,
    }
    if asked.s_churn:
        ours["churn"] = {"amount": asked.s_churn, "sigma_min": asked.s_tmin}
    if asked.enable_hr:
        upscalers = {"Latent": "latent", "Lanczos": "lanczos", "Latent (nearest-exact)": "latent-nearest-exact"}
        ours["hires"] = {
            "scale": asked.hr_scale,
            "width": asked.hr_resize_x or None,
            "height": asked.hr_resize_y or None,
            "upscaler": upscalers.get(asked.hr_upscaler, "latent-bicubic-antialiased"),
            "strength": asked.denoising_strength,
            "num_inference_steps": asked.hr_second_pass_steps or None,
        }
    pictures: dict[str, bytes] = {}
    if asked.init_image is not None:
        pictures["start"] = _png(asked.init_image)
        modes = {0: "stretch", 1: "crop", 2: "pad"}
        ours |= {"init_image": "start", "strength": asked.denoising_strength}
        ours["resize_mode"] = modes[asked.resize_mode]
    if asked.mask is not None:
        pictures["mask"] = _png(asked.mask)
        ours["mask"] = {
            "image": "mask",
            "blur": asked.mask_blur,
            "fill": {0: "fill", 1: "original", 2: "noise", 3: "nothing"}[asked.inpainting_fill],
            "invert": bool(asked.inpainting_mask_invert),
            "only_masked": asked.inpaint_full_res,
            "padding": asked.inpaint_full_res_padding,
        }

    def paint(pair: Pair) -> np.ndarray:
        return Account(pair.theirs, FACTOR).paint(asked, prompt, second)

    return Case(name, "A1111", ours, paint, "sd1", pictures)


def a1111_cases() -> Iterator[Case]:
    """Text to image, image to image, masks and second passes as that program does them."""
    for sampler in SAMPLERS:
        yield a1111(f"{sampler}, RNG: CPU", sampler_name=sampler, steps=8)
    for sampler in ("Euler a", "DPM++ SDE", "DPM++ 2M SDE"):
        yield a1111(f"{sampler}, RNG: NV (as the GPU)", sampler_name=sampler, steps=8, randn_source="NV")
    yield a1111("variation seed, strength 0.3", subseed=9, subseed_strength=0.3)
    yield a1111("variation seed, RNG: NV", subseed=9, subseed_strength=0.6, randn_source="NV", sampler_name="Euler a")
    yield a1111("ENSD 31337, Euler a", eta_noise_seed_delta=31337, sampler_name="Euler a")
    yield a1111(
        "ENSD 31337, DPM++ 2S a, RNG: NV", eta_noise_seed_delta=31337, sampler_name="DPM++ 2S a", randn_source="NV"
    )
    yield a1111("sigma churn 3 below no 0.5, Heun", s_churn=3.0, s_tmin=0.5, sampler_name="Heun")
    edits: Schedule = [(6, "a cat on a hill"), (99, "a dog on a hill")]
    yield a1111("prompt edit [cat:dog:0.5], Heun counts calls", prompt=edits, **_edited(0.5), sampler_name="Heun")
    yield a1111("BREAK at the end", text="a red apple BREAK")
    yield a1111("BREAK at the start", text="BREAK a red apple")
    yield from _image_cases()
    yield from _hires_cases()


def _edited(share: float) -> dict[str, Any]:
    return {"steps": 6, "text": f"a [cat:dog:{share}] on a hill"}


def _image_cases() -> Iterator[Case]:
    start, mask = picture(48, 40), half_mask(48, 40)
    base: dict[str, Any] = {"init_image": start, "width": 48, "height": 40, "steps": 8}
    for strength in (0.75, 0.5, 0.0, 1.0):
        yield a1111(f"img2img, denoising strength {strength:g}", **base, denoising_strength=strength)
    yield a1111("img2img, DPM++ 2M SDE, 0.6", **base, denoising_strength=0.6, sampler_name="DPM++ 2M SDE")
    yield a1111("img2img, crop and resize", **{**base, "width": 40, "height": 40}, resize_mode=1)
    for fill, name in enumerate(("fill", "original", "latent noise", "latent nothing")):
        yield a1111(f"inpaint, masked content {name}", **base, mask=mask, inpainting_fill=fill)
    yield a1111("inpaint, strength 1, no blur", **base, mask=mask, mask_blur=0, denoising_strength=1.0)
    yield a1111("inpaint, not masked, Euler a", **base, mask=mask, inpainting_mask_invert=1, sampler_name="Euler a")
    wide = {**base, "init_image": picture(96, 80), "width": 40, "height": 40}
    spot = half_mask(96, 80, (30, 24, 54, 48))
    yield a1111("inpaint, only masked", **wide, mask=spot, inpaint_full_res=True, inpaint_full_res_padding=8)
    yield a1111("inpaint, soft mask", **base, mask=mask.filter(ImageFilter.GaussianBlur(6)), inpainting_fill=1)


def _hires_cases() -> Iterator[Case]:
    base: dict[str, Any] = {"enable_hr": True, "denoising_strength": 0.7}
    yield a1111("hires fix, Latent", **base)
    yield a1111("hires fix, 3 second steps, Euler a", **base, hr_second_pass_steps=3, sampler_name="Euler a")
    yield a1111("hires fix, Lanczos, RNG: NV", **base, hr_upscaler="Lanczos", randn_source="NV")
    yield a1111(
        "hires fix, Latent (nearest-exact), DPM++ SDE",
        **base,
        hr_upscaler="Latent (nearest-exact)",
        sampler_name="DPM++ SDE",
    )
    yield a1111(
        "hires fix, Latent (bicubic antialiased)", **base, hr_upscaler="Latent (bicubic antialiased)", hr_scale=1.5
    )
    yield a1111("hires fix, one side given", **base, width=48, hr_resize_x=72)
    yield a1111("hires fix, both sides cut", **base, width=48, hr_resize_x=64, hr_resize_y=64)
    first: Schedule = [(3, "a cat on a hill"), (99, "a dog on a hill")]
    later: Schedule = [(99, "a dog on a hill")]
    yield a1111("hires fix, prompt edit is over", **base, prompt=first, second=later, **_edited(0.5))


def picture(width: int, height: int) -> Image.Image:
    """A starting picture: colours that change everywhere, and an edge."""
    across, down = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    rows = np.stack([across, down, (np.sin(9 * across * down) + 1) / 2], -1)
    result = Image.fromarray((rows * 255).astype(np.uint8))
    ImageDraw.Draw(result).ellipse((width // 4, height // 4, width // 2, height // 2), fill=(230, 40, 30))
    return result


def half_mask(width: int, height: int, box: tuple[int, int, int, int] | None = None) -> Image.Image:
    """White in a box: what is to be painted."""
    result = Image.new("L", (width, height), 0)
    ImageDraw.Draw(result).rectangle(box or (width // 2, height // 4, width - 5, height - 4), fill=255)
    return result


def _png(image: Image.Image) -> bytes:
    import io

    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def decibels(first: np.ndarray, second: np.ndarray) -> float:
    """Peak signal-to-noise ratio of two pictures of one size; inf if they are equal."""
    if first.shape != second.shape:
        raise SystemExit(f"pictures of {first.shape} and {second.shape} can't be compared")
    error = float(np.mean((first.astype(np.float64) - second.astype(np.float64)) ** 2))
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def measure(case: Case, twins: Twins) -> Measured:
    """Paint with both and compare."""
    pair = twins.of(case.family)
    (painted,) = pair.ours.paint(Request.from_dict(case.ours, where=case.name), case.pictures)
    theirs = case.theirs(pair)
    return Measured(case, decibels(np.asarray(painted.image), theirs), float(theirs.std()))


def all_cases() -> list[Case]:
    """Every case, in the order of the table."""
    return [*diffusers_cases(), *a1111_cases()]


def table(found: list[Measured]) -> str:
    """The page."""
    reached = sum(one.decibels >= REACH for one in found)
    rows = [
        f"| {number} | {one.case.judge} | {one.case.name} | {_shown(one.decibels)} |"
        for number, one in enumerate(found, 1)
    ]
    return "\n".join(
        (
            "# The same picture in another program",
            "",
            f"Written by `python benchmarks/same_picture.py`. {reached} of {len(found)} cases reach {REACH:g} dB, the",
            "peak signal-to-noise ratio between the other program's 8-bit picture and ours; one level of 255 in every",
            "pixel would be 48 dB. Both paint with the same tiny random weights, 32 to 96 pixels and 6 to 8 steps.",
            "",
            "- **diffusers**: its own pipeline with `generator=torch.Generator().manual_seed(seed)`; ours with",
            "  `determinism=cpu`.",
            "- **A1111**: a second account of its procedure by other people's code (`benchmarks/a1111_account.py`:",
            "  k-diffusion, torchsde, OpenCV, diffusers' networks). Ours with `procedure=a1111`, and with",
            "  `determinism=cpu` for its `RNG: CPU` or `determinism=a1111` for its `RNG: NV`, a GPU's noise.",
            "",
            "| case | program | setting | dB |",
            "|---:|---|---|---:|",
            *rows,
            "",
            "## Not judged here, and not claimed",
            "",
            *(f"- {line}" for line in NOT_JUDGED),
            "",
        )
    )


def _shown(value: float) -> str:
    return "equal" if math.isinf(value) else f"{value:.1f}"


def main() -> int:
    """Measure, print, write; 1 if a case falls short."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="", help="cases whose name or program holds this text; writes nothing")
    only = parser.parse_args().only
    torch.set_num_threads(1)
    torch.manual_seed(0)  # the twins keep their networks' first biases
    warnings.simplefilter("ignore")
    found = []
    with tempfile.TemporaryDirectory() as folder:
        twins = Twins(Path(folder))
        for case in all_cases():
            if only.casefold() not in f"{case.judge} {case.name}".casefold():
                continue
            start = time.perf_counter()
            one = measure(case, twins)
            found.append(one)
            short = "" if one.decibels >= REACH and one.spread >= SPREAD else "   <-- falls short"
            took = time.perf_counter() - start
            line = f"{_shown(one.decibels):>6}  {case.judge}: {case.name}  [{one.spread:.0f}, {took:.1f} s]{short}"
            sys.stdout.write(f"{line}\n")
    if not only:
        PAGE.write_text(table(found), encoding="utf-8")
    return int(any(one.decibels < REACH for one in found))


if __name__ == "__main__":
    raise SystemExit(main())
