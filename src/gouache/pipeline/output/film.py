"""Several pictures as one file: a film (GIF, WebP, MP4) or a strip."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from gouache.errors import InvalidInput, MissingDependency
from gouache.pipeline.inputs.images import on_background
from gouache.pipeline.output.sheets import labelled_sheet

KINDS = (".gif", ".webp", ".mp4", ".png")


def encode_film(pictures: Sequence[Image.Image], suffix: str, *, fps: float = 8.0) -> bytes:
    """Pictures as one file's bytes.

    Args:
        pictures: at least one, all of one size.
        suffix: .gif and .webp repeat for ever, .mp4 plays once, .png is a strip of all.
        fps: frames a second.

    Raises:
        InvalidInput: another suffix, or no picture.
        MissingDependency: .mp4 without imageio and ffmpeg.
    """
    check_film(suffix)
    if not pictures:
        raise InvalidInput("film", given="no pictures", expected="at least one")
    kind = suffix.lower()
    if kind == ".mp4":
        return _mp4(pictures, fps)
    buffer = io.BytesIO()
    if kind == ".png":
        labelled_sheet([pictures], [""] * len(pictures), [""]).save(buffer, "PNG")
        return buffer.getvalue()
    first, *others = pictures
    milliseconds = round(1000 / fps)
    options = {"save_all": True, "append_images": others, "duration": milliseconds, "loop": 0}
    if kind == ".gif":
        first.save(buffer, "GIF", disposal=2, **options)
    else:
        first.save(buffer, "WEBP", lossless=True, **options)
    return buffer.getvalue()


def check_film(suffix: str) -> None:
    """Refuse before the painting what `encode_film` would refuse after it.

    Raises:
        InvalidInput: another suffix.
        MissingDependency: .mp4 without imageio and ffmpeg.
    """
    if suffix.lower() not in KINDS:
        raise InvalidInput(
            "film", given=f"the suffix {suffix!r}", expected=f"one of {', '.join(KINDS)}", cure="Name the file so."
        )
    if suffix.lower() == ".mp4" and (find_spec("imageio") is None or find_spec("imageio_ffmpeg") is None):
        raise MissingDependency(
            "mp4", given="no imageio with ffmpeg", expected="both installed", cure="pip install 'gouache[media]'"
        )


def _mp4(pictures: Sequence[Image.Image], fps: float) -> bytes:
    import imageio.v3 as imageio

    frames = [np.asarray(on_background(picture, "white")) for picture in pictures]
    # The usual players want even sides.
    even = [np.pad(f, ((0, f.shape[0] % 2), (0, f.shape[1] % 2), (0, 0)), mode="edge") for f in frames]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "film.mp4"
        imageio.imwrite(path, np.stack(even), fps=fps, codec="libx264", macro_block_size=1)
        return path.read_bytes()
