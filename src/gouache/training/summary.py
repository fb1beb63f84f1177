"""What a run has come to: its last figures and its loss curves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from gouache.errors import DataError
from gouache.training.config import STAGES
from gouache.training.log import read_log

WIDTH, HEIGHT, MARGIN = 900, 260, 46
INK, LINE, SOFT = (40, 40, 40), (30, 100, 200), (225, 225, 225)


def summarise(run: Path) -> list[dict[str, Any]]:
    """For every stage of a run: name, images seen, last value of every figure, and the drawn curves' file.

    Raises:
        DataError: the folder holds no run.
    """
    summaries = []
    for stage in STAGES:
        log = read_log(run / stage)
        if not log:
            continue
        figures = {name: value for line in log for name, value in line.items() if name != "images_seen"}
        curves = draw_curves(log, run / stage / "losses.png")
        summaries.append(
            {"stage": stage, "images_seen": log[-1]["images_seen"], "figures": figures, "curves": str(curves)}
        )
    if not summaries:
        raise DataError(str(run), given="no log of any stage", expected="the folder given to gouache train --out")
    return summaries


def draw_curves(log: list[dict[str, float]], path: Path) -> Path:
    """Draw the training loss and every validation figure over images seen, one panel each, to a PNG."""
    names = ["loss", *sorted({name for line in log for name in line if name.startswith("validation/")})]
    series = {n: [(line["images_seen"], line[n]) for line in log if n in line] for n in names}
    series = {name: points for name, points in series.items() if len(points) > 1}
    sheet = Image.new("RGB", (WIDTH, max(1, len(series)) * HEIGHT), "white")
    for row, (name, points) in enumerate(series.items()):
        _panel(ImageDraw.Draw(sheet), row * HEIGHT, name, points)
    sheet.save(path)
    return path


def _panel(draw: ImageDraw.ImageDraw, top: int, name: str, points: list[tuple[float, float]]) -> None:
    values = sorted(value for _, value in points)
    # The first values dwarf the rest: show from the smallest to the 95th percentile.
    low, high = values[0], values[int(0.95 * (len(values) - 1))]
    high = high if high > low else low + 1e-9
    last = points[-1][0]
    box = (MARGIN + 20, top + 30, WIDTH - 20, top + HEIGHT - 30)
    for i in range(5):
        y = box[3] - i * (box[3] - box[1]) / 4
        draw.line((box[0], y, box[2], y), fill=SOFT)
        draw.text((4, y - 6), f"{low + i * (high - low) / 4:.4g}", fill=INK)
    draw.text((box[0], top + 8), f"{name}: {points[-1][1]:.4g}", fill=INK)
    draw.text((box[2] - 120, box[3] + 8), f"{int(last):,} images", fill=INK)
    path = [
        (
            box[0] + x / last * (box[2] - box[0]),
            box[3] - (min(max(y, low), high) - low) / (high - low) * (box[3] - box[1]),
        )
        for x, y in points
    ]
    draw.line(path, fill=LINE, width=2)
