"""How well a model finishes a picture whose draft is right: 24 fixed held-out stickers, each painted from its tokens.

As `gouache edit REAL.png "LABEL, STYLE style" --prior-keep 0,0,1,1 --strength 1 --seed 5 --background transparent` at
the model's defaults: the prior draws nothing, so that what is measured is the U-Net and the autoencoder.

- PSNR: of the painted picture to the real one, both on white, in dB; the mean of the pictures'. With it that of the
  real picture after the autoencoder alone, which is the most that any U-Net could reach.
- Edge width: how wide edges are against the real ones, 1 = as sharp. Taken where the real picture's gradient is in its
  steepest tenth. The width of an edge there is the contrast within 3 pixels (largest minus smallest brightness) over
  the steepest gradient within 2 pixels; the figure is the ratio of the medians. Mottling adds gradient and contrast
  alike and so does not pass for sharpness, as it would with plain gradient energy. Edges of less than half of the real
  one's contrast count as lost and not as narrow; their share is given too.

Run: python benchmarks/true_drafts.py --data stickers [--model models/mine] [--sheet SHEET.png]
With --prompts FILE (one a line) it paints a captioned sheet of those instead, from drafts of the model's own prior.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional as F

from gouache.data.captions import STYLE_WORDS
from gouache.data.stickers import Sticker, Stickers
from gouache.pipeline.inputs.images import on_background
from gouache.pipeline.inputs.tensors import rgba_to_tensor, to_image
from gouache.pipeline.output.sheets import captioned_sheet
from gouache.pipeline.pipeline import Pipeline, open_pipeline
from gouache.pipeline.request import Prior, Request

COUNT, SEED = 24, 5
STEEPEST = 0.1
"""Share of the real picture's pixels whose edges are measured."""
FAINTEST = 0.05
"""Gradient, in brightness 0..1 a pixel, below which even the steepest pixels are no edges."""
CONTRAST_REACH, PEAK_REACH = 3, 2
"""Pixels around, for the contrast of an edge and for its steepest place, which may have moved a little."""
KEPT = 0.5
"""An edge with a smaller share of the real one's contrast is lost."""


def chosen(stickers: Stickers) -> list[Sticker]:
    """The same held-out stickers whenever the data set is the same: evenly spaced over its rows."""
    rows = stickers.indices("held_out")
    return [stickers.records[int(rows[k * len(rows) // COUNT])] for k in range(COUNT)]


def finished(pipeline: Pipeline, real: Image.Image, sticker: Sticker) -> Image.Image:
    """The picture that the model makes of the true draft."""
    file = io.BytesIO()
    real.save(file, "PNG")
    request = Request(
        prompt=f"{sticker.label}, {STYLE_WORDS[sticker.style]}",
        init_image="real.png",
        strength=1.0,
        seed=SEED,
        background="transparent",
        prior=Prior(keep=(0.0, 0.0, 1.0, 1.0)),
    )
    return pipeline.paint(request, {"real.png": file.getvalue()})[0].image


@torch.no_grad()
def through_autoencoder(pipeline: Pipeline, real: Image.Image) -> Image.Image:
    """The real picture, encoded and decoded."""
    vae = pipeline.bundle.vae
    image = rgba_to_tensor(np.asarray(real)[None])[:, : vae.config.image_channels]
    return to_image(vae.decode(vae.normalise(vae.encode(image).mode()))[0])


def on_white(picture: Image.Image) -> NDArray[np.float64]:
    """Colours in 0..1 [H,W,3]."""
    return np.asarray(on_background(picture, "white"), np.float64) / 255


def psnr(picture: NDArray[np.float64], real: NDArray[np.float64]) -> float:
    """In dB."""
    return float(-10 * np.log10(max(((picture - real) ** 2).mean(), 1e-10)))


def largest_near(values: torch.Tensor, reach: int) -> torch.Tensor:
    """The largest value within `reach` pixels of every pixel. [H,W]"""
    return F.max_pool2d(values[None, None], 2 * reach + 1, stride=1, padding=reach)[0, 0]


def edges(picture: NDArray[np.float64]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradient, contrast nearby and steepest gradient nearby, of the brightness at every pixel. [H,W] each"""
    light = torch.from_numpy(picture @ np.array([0.299, 0.587, 0.114]))
    down, right = torch.gradient(light)
    gradient = (down.square() + right.square()).sqrt()
    contrast = largest_near(light, CONTRAST_REACH) + largest_near(-light, CONTRAST_REACH)
    return gradient, contrast, largest_near(gradient, PEAK_REACH)


def edge_widths(
    picture: NDArray[np.float64], real: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Widths of the picture's and the real one's edges at the real one's edges, in pixels; share of edges lost."""
    gradient, real_contrast, real_peak = edges(real)
    _, contrast, peak = edges(picture)
    at = gradient >= max(float(gradient.flatten().quantile(1 - STEEPEST)), FAINTEST)
    kept = at & (contrast >= KEPT * real_contrast)
    lost = 1 - float(kept.sum()) / max(float(at.sum()), 1.0)
    return (contrast[kept] / peak[kept]).numpy(), (real_contrast[at] / real_peak[at]).numpy(), lost


def figures(pictures: Sequence[NDArray[np.float64]], reals: Sequence[NDArray[np.float64]]) -> dict[str, float]:
    """PSNR, edge width and lost edges of some pictures compared with the real ones."""
    measured = [edge_widths(picture, real) for picture, real in zip(pictures, reals, strict=True)]
    widths, real_widths = (np.median(np.concatenate([one[k] for one in measured])) for k in (0, 1))
    return {
        "psnr": float(np.mean([psnr(picture, real) for picture, real in zip(pictures, reals, strict=True)])),
        "edge_width": float(widths / real_widths),
        "edges_lost": float(np.mean([one[2] for one in measured])),
    }


def measure(pipeline: Pipeline, data: Path, sheet: Path | None) -> dict[str, object]:
    """All figures; the sheet shows each real picture, it after the autoencoder, and the painted one."""
    stickers = Stickers.open(data)
    records = chosen(stickers)
    reals = [Image.fromarray(np.array(stickers.pictures[record.index])) for record in records]
    decoded = [through_autoencoder(pipeline, real) for real in reals]
    painted = [finished(pipeline, real, record) for real, record in zip(reals, records, strict=True)]
    truth = [on_white(picture) for picture in reals]
    if sheet is not None:
        rows = [picture for three in zip(reals, decoded, painted, strict=True) for picture in three]
        words = [text for record in records for text in (f"{record.label}, {record.style}", "autoencoder", "painted")]
        captioned_sheet(rows, words, columns=12).save(sheet)
    return {
        "model": pipeline.bundle.name,
        "sha256": pipeline.bundle.sha256[:16],
        "painted": figures([on_white(picture) for picture in painted], truth),
        "autoencoder": figures([on_white(picture) for picture in decoded], truth),
    }


def main() -> None:
    """Measure, or paint a sheet of prompts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the built recipe `stickers`")
    parser.add_argument("--model", help="path or name; the shipped one without it")
    parser.add_argument("--prompts", type=Path, help="paint these instead, one a line")
    parser.add_argument("--sheet", type=Path, help="write what was painted as one picture")
    asked = parser.parse_args()
    pipeline, note = open_pipeline(asked.model)
    if note:
        parser.error(note)
    if asked.prompts is not None:
        prompts = [line for line in asked.prompts.read_text(encoding="utf-8").splitlines() if line.strip()]
        pictures = [pipeline.paint(Request(prompt=prompt, seed=SEED))[0].image for prompt in prompts]
        captioned_sheet(pictures, prompts, columns=6).save(asked.sheet or "sheet.png")
    elif asked.data is not None:
        sys.stdout.write(json.dumps(measure(pipeline, asked.data, asked.sheet), indent=2) + "\n")
    else:
        parser.error("--data or --prompts is needed")


if __name__ == "__main__":
    main()
