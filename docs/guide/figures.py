"""Drawing functions that the guide's pages share, so that the pages themselves show the model and not the plotting."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib_inline.backend_inline import set_matplotlib_formats
from PIL import Image
from torch import Tensor

set_matplotlib_formats("svg")
plt.rcParams.update(
    {
        "figure.dpi": 96,
        "savefig.dpi": 192,
        "svg.hashsalt": "gouache",
        "font.size": 9,
        "axes.titlesize": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.25,
        "lines.linewidth": 1.5,
        "legend.frameon": False,
    }
)

Picture = Image.Image | Tensor | np.ndarray
"""Anything that can be shown: an image; a tensor [3,h,w] in -1..1 or [h,w]; an array [h,w] or [h,w,3 or 4]."""


def shown(picture: Picture) -> np.ndarray:
    """What matplotlib shows: [h,w] or [h,w,3 or 4]."""
    if isinstance(picture, Tensor):
        picture = picture.detach().float().cpu()
        return (picture.permute(1, 2, 0).clamp(-1, 1) / 2 + 0.5).numpy() if picture.dim() == 3 else picture.numpy()
    return np.asarray(picture)


def grid(
    pictures: Sequence[Sequence[Picture]], columns: Sequence[str] = (), rows: Sequence[str] = (), inch: float = 1.2
) -> None:
    """Show pictures in rows and columns with their titles.

    Args:
        pictures: row by row.
        columns: a title for each column.
        rows: a title for each row.
        inch: width of a picture.
    """
    wide = max(len(row) for row in pictures)
    size = (wide * inch, len(pictures) * inch * 1.08)
    _, axes = plt.subplots(len(pictures), wide, figsize=size, squeeze=False, layout="compressed")
    for at, row in enumerate(axes):
        for across, axis in enumerate(row):
            axis.set_xticks([])
            axis.set_yticks([])
            axis.grid(visible=False)
            for spine in axis.spines.values():
                spine.set_visible(False)
            if across < len(pictures[at]):
                picture = shown(pictures[at][across])
                axis.imshow(picture, cmap="viridis" if picture.ndim == 2 else None, interpolation="none")
            if at == 0 and across < len(columns):
                axis.set_title(columns[across])
            if across == 0 and at < len(rows):
                axis.set_ylabel(rows[at])
    plt.show()


def row(pictures: Sequence[Picture], titles: Sequence[str] = (), inch: float = 1.2) -> None:
    """Show pictures side by side with their titles."""
    grid([pictures], titles, (), inch)
