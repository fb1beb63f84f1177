"""Pictures as uint8 arrays with straight alpha: rendered from vector and raster sources, cut, scaled, composited."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from gouache.colours import Picture
from gouache.errors import DataError, MissingDependency


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
    shape = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    # Pillow multiplies RGBA by alpha before it filters and divides after, so edges take no colour from the outside.
    resized = picture.resize(shape, Image.Resampling.LANCZOS)
    square = np.zeros((size, size, 4), np.uint8)
    top, left = (size - shape[1]) // 2, (size - shape[0]) // 2
    square[top : top + shape[1], left : left + shape[0]] = np.asarray(resized)
    return square


def render_source(name: str, content: bytes, size: int) -> Picture:
    """Render a stored source by its suffix: ``.svg`` is drawn, anything else decoded. [size,size,4]"""
    if name.endswith(".svg"):
        return render_svg(content.decode("utf-8"), size)
    return render_raster(content, size)


def cut_out(picture: Picture) -> Picture:
    """The part of a picture that holds anything: its bounding box of alpha over 8. The whole where nothing is seen."""
    seen = picture[..., 3] > 8
    rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
    if len(rows) == 0:
        return picture
    return picture[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def fitted(picture: Picture, side: int) -> Picture:
    """The picture scaled so that its longer side is `side` pixels."""
    scale = side / max(picture.shape[:2])
    size = (max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale)))
    # "RGBa" is multiplied by alpha, so that no fringe of the transparent colour bleeds in.
    scaled = Image.fromarray(picture).convert("RGBa").resize(size, Image.Resampling.BICUBIC)
    return np.asarray(scaled.convert("RGBA"))


def lay(canvas: Picture, sprite: Picture, left: int, top: int) -> None:
    """Composite a sprite over the canvas in place (Porter-Duff "over"); it must fit inside."""
    height, width = sprite.shape[:2]
    under = canvas[top : top + height, left : left + width]
    if not under[..., 3].any():
        under[:] = sprite
        return
    over_alpha = sprite[..., 3:].astype(np.float32) / 255
    under_alpha = under[..., 3:].astype(np.float32) / 255 * (1 - over_alpha)
    alpha = over_alpha + under_alpha
    colours = (sprite[..., :3] * over_alpha + under[..., :3] * under_alpha) / np.maximum(alpha, 1e-6)
    under[..., :3] = np.round(colours).astype(np.uint8)
    under[..., 3:] = np.round(alpha * 255).astype(np.uint8)


def on_ground(picture: Picture, colour: tuple[int, int, int]) -> Picture:
    """The picture on an opaque ground of one colour."""
    alpha = picture[..., 3:].astype(np.uint16)
    ground = np.array(colour, np.uint16)
    result = np.empty_like(picture)
    result[..., :3] = (picture[..., :3] * alpha + ground * (255 - alpha) + 127) // 255
    result[..., 3] = 255
    return result
