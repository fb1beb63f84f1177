"""Pictures traced to vector graphics, by vtracer."""

from __future__ import annotations

import io
from importlib.util import find_spec

from PIL import Image

from gouache.errors import MissingDependency


def traced(picture: Image.Image) -> str:
    """The picture as SVG text; transparency stays transparent.

    Raises:
        MissingDependency: vtracer is not installed.
    """
    if find_spec("vtracer") is None:
        raise MissingDependency(
            "svg", given="no vtracer", expected="the package vtracer", cure="pip install 'gouache[media]'"
        )
    import vtracer

    buffer = io.BytesIO()
    picture.convert("RGBA").save(buffer, "PNG")
    svg: str = vtracer.convert_raw_image_to_svg(buffer.getvalue(), img_format="png", colormode="color")
    return svg
