"""The log of a run: JSON lines, TensorBoard, Weights & Biases, sheets of samples, a summary with loss curves."""

from __future__ import annotations

import importlib.util
import json
import math
import secrets
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from gouache.errors import DataError, MissingDependency, TrainingError
from gouache.files import atomic_write, write_bytes
from gouache.training.loop_config import LoopConfig, StageConfig
from gouache.training.stages.registry import STAGES


class RunLog:
    """Appends lines to `RUN/log.jsonl`; on resume, lines past the checkpoint are dropped: those steps run again."""

    def __init__(self, run: Path, images_seen: int, stage: str, config: StageConfig) -> None:
        self.path = run / "log.jsonl"
        kept = [line for line in read_log(run) if line["images_seen"] <= images_seen]
        with atomic_write(self.path) as file:
            file.write("".join(json.dumps(line) + "\n" for line in kept).encode())
        self._board = _tensorboard(run)
        self._wandb = _wandb(run, stage, config) if config.loop.wandb else None

    def write(self, images_seen: int, figures: dict[str, float]) -> None:
        """Add one line of figures."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"images_seen": images_seen, **figures}) + "\n")
        if self._board is not None:
            for name, value in figures.items():
                self._board.add_scalar(name, value, images_seen)
        if self._wandb is not None:
            self._wandb.log({"images_seen": images_seen, **figures})

    def picture(self, images_seen: int, sheet: Any, name: str) -> None:
        """Show a sheet of pictures (uint8 [H,W,3]) in TensorBoard and in Weights & Biases."""
        if self._board is not None:
            self._board.add_image(name, sheet, images_seen, dataformats="HWC")
        if self._wandb is not None:
            from wandb import Image as Shown

            self._wandb.log({"images_seen": images_seen, name: Shown(sheet)})

    def close(self) -> None:
        """Flush what is buffered."""
        if self._board is not None:
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish()


def read_log(run: Path) -> list[dict[str, float]]:
    """All whole lines of a run's log; a last line cut short by a crash is left out."""
    path = run / "log.jsonl"
    if not path.exists():
        return []
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines


def check_log(config: LoopConfig) -> None:
    """Refuse a log whose package is not installed.

    Raises:
        MissingDependency: names it.
    """
    if config.wandb and importlib.util.find_spec("wandb") is None:
        raise MissingDependency(
            "loop.wandb",
            given=config.wandb,
            expected="the package wandb",
            cure="pip install wandb, or leave the key out.",
        )


WANDB_ID = "wandb-id"
"""File with the id of a run at Weights & Biases, which a resumed run goes on with."""


def _wandb(run: Path, stage: str, config: StageConfig) -> Any:
    """A run at Weights & Biases, counted in images; the same one again after a resume.

    Raises:
        MissingDependency: the package is not installed.
        TrainingError: it refuses, for want of a login or of the network.
    """
    check_log(config.loop)
    import wandb

    path = run / WANDB_ID
    if not path.exists():
        write_bytes(path, secrets.token_hex(8).encode(), force=True)
    try:
        session = wandb.init(
            project=config.loop.wandb,
            name=f"{run.parent.name}/{stage}",
            id=path.read_text(encoding="utf-8"),
            dir=run,
            config=config.model_dump(mode="json"),
            resume="allow",
            settings=wandb.Settings(console="off", silent=True),
        )
    except wandb.Error as error:
        raise TrainingError(
            "loop.wandb",
            given=" ".join(str(error).split()),
            expected="a run at Weights & Biases",
            cure="Log in with `wandb login`, set WANDB_MODE=offline, or leave the key out.",
        ) from error
    session.define_metric("*", step_metric="images_seen")
    return session


def _tensorboard(run: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(run / "tensorboard")


CHECKER = 8


def sheet_of(pictures: Tensor) -> NDArray[np.uint8]:
    """Arrange pictures [N,C,H,W] in [-1,1] (RGB, or RGBA with colours on white) in a near-square sheet [H',W',3].

    Transparent parts show a light checkerboard.
    """
    values = ((pictures.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    rows = math.ceil(len(values) / (columns := math.ceil(math.sqrt(len(values)))))
    height, width = values.shape[1:3]
    sheet = np.full((rows * height, columns * width, 3), 255, np.uint8)
    board = 255 - 24 * ((np.indices((height, width)) // CHECKER).sum(0) % 2)[..., None]
    for i, picture in enumerate(values):
        row, column = divmod(i, columns)
        colour = picture[..., :3].astype(np.int16)
        if picture.shape[2] == 4:
            clear = 255 - picture[..., 3:].astype(np.int16)
            # The colour already stands on white: only the board's darker squares are missing.
            colour = colour - clear * (255 - board) // 255
        sheet[row * height : (row + 1) * height, column * width : (column + 1) * width] = colour.clip(0, 255)
    return sheet


def save_sheet(pictures: Tensor, path: Path) -> NDArray[np.uint8]:
    """Write the sheet as PNG, whole or not at all: it is looked at while the run goes on. Returns it."""
    sheet = sheet_of(pictures)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        Image.fromarray(sheet).save(file, "PNG")
    return sheet


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
