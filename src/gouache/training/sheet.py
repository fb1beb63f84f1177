"""Sheets of sample pictures, so that a run can be looked at."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

CHECKER = 8


def sheet_of(pictures: Tensor) -> NDArray[np.uint8]:
    """Lay pictures [N,C,H,W] in [-1,1] (RGB, or RGBA whose colour stands on white) in a near-square sheet [H',W',3].

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
    """Write the sheet as PNG and return it."""
    sheet = sheet_of(pictures)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet).save(path)
    return sheet
