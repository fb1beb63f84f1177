"""Vector and raster sources of a picture, rendered to straight-alpha RGBA at any size."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gouache.errors import DataError, MissingDependency

Picture = NDArray[np.uint8]
"""A picture as uint8 [H,W,4]: red, green, blue, alpha; colours are not multiplied by alpha."""


def svg_document(body: str, width: float, height: float) -> str:
    """Wrap an icon's body in an `<svg>` of its own view box. Size 1: the renderer sets the real one."""
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="0 0 {width:g} {height:g}">{body}</svg>'
    )


def render_svg(document: str, size: int) -> Picture:
    """Draw an SVG document centred in a square, aspect ratio kept.

    Args:
        document: a whole `<svg>` with a view box and no width or height of its own.
        size: side of the square, pixels.

    Returns:
        [size,size,4], transparent where nothing is drawn.

    Raises:
        MissingDependency: the package resvg-py is not installed.
        DataError: the renderer refuses the document.
    """
    try:
        import resvg_py
    except ImportError as error:
        cure = "Install it with `pip install 'gouache[data]'`."
        raise MissingDependency("resvg-py", given=str(error), expected="the package resvg-py", cure=cure) from error
    # Width and height in the tag, not as arguments: then a view box that is not square is centred, not stretched.
    sized = document.replace("<svg ", f'<svg width="{size}" height="{size}" ', 1)
    try:
        png = resvg_py.svg_to_bytes(svg_string=sized, skip_system_fonts=True)
    except ValueError as error:
        raise DataError("svg", given=str(error), expected="a document that resvg can draw") from error
    # PNG alpha is straight by definition: resvg has divided the colours by alpha already.
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"))


def render_raster(content: bytes, size: int) -> Picture:
    """Decode a picture file and fit it, centred and aspect ratio kept, into a square [size,size,4].

    Raises:
        DataError: the bytes are no picture.
    """
    try:
        picture = Image.open(io.BytesIO(content)).convert("RGBA")
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise DataError("picture", given=str(error), expected="a WebP, PNG or JPEG file") from error
    scale = size / max(picture.size)
    fitted = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    # Pillow multiplies RGBA by alpha before it filters and divides after, so edges take no colour from the outside.
    resized = picture.resize(fitted, Image.Resampling.LANCZOS)
    square = np.zeros((size, size, 4), np.uint8)
    top, left = (size - fitted[1]) // 2, (size - fitted[0]) // 2
    square[top : top + fitted[1], left : left + fitted[0]] = np.asarray(resized)
    return square


def render_source(name: str, content: bytes, size: int) -> Picture:
    """Render a stored source by its suffix: ``.svg`` is drawn, anything else decoded. [size,size,4]"""
    if name.endswith(".svg"):
        return render_svg(content.decode("utf-8"), size)
    return render_raster(content, size)
