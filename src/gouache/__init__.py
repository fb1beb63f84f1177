"""gouache: a complete Stable Diffusion in one readable package.

Importing the package is cheap: torch is loaded when a name that needs it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gouache.pipeline.diffusers_api import StableDiffusionPipeline
    from gouache.pipeline.pipeline import Pipeline
    from gouache.pipeline.request import Request

    __version__: str

__all__ = ["Pipeline", "Request", "StableDiffusionPipeline", "__version__"]

_HOMES = {
    "Pipeline": "gouache.pipeline.pipeline",
    "Request": "gouache.pipeline.request",
    "StableDiffusionPipeline": "gouache.pipeline.diffusers_api",
}


def __getattr__(name: str) -> object:
    if name == "__version__":
        return import_module("importlib.metadata").version("gouache")
    if name not in _HOMES:
        raise AttributeError(f"gouache has no attribute {name!r}; it offers {', '.join(__all__)}.")
    return getattr(import_module(_HOMES[name]), name)
