"""Which model a request means: a path, a name, or the one that comes with the package."""

from __future__ import annotations

from pathlib import Path

import torch

from gouache.checkpoints import hub
from gouache.checkpoints.hub import shipped_model
from gouache.errors import ModelNotFound
from gouache.pipeline import untrained
from gouache.pipeline.pipeline import Pipeline

__all__ = ["UNTRAINED_NOTE", "find_model", "find_or_pull", "open_pipeline", "shipped_model"]
UNTRAINED_NOTE = "no trained model is at hand: painting abstract colours with untrained random weights"


def open_pipeline(
    model: str | None, *, device: str | None = None, dtype: torch.dtype | None = None
) -> tuple[Pipeline, str | None]:
    """Load the model a request names.

    Args:
        model: a path, a name in the model folders, or None for the shipped model.
        device, dtype: as `Pipeline.load`.

    Returns:
        The pipeline, and one line to tell the user if it isn't what one would expect.

    Raises:
        ModelNotFound: nothing at that path or under that name.
    """
    if model == untrained.NAME or (model is None and shipped_model() is None):
        pipeline = Pipeline(untrained.untrained_bundle())
        return (pipeline if device is None else pipeline.to(device)), UNTRAINED_NOTE
    return Pipeline.load(find_model(model), device=device, dtype=dtype), None


def find_model(model: str | None) -> Path:
    """The path of a model by path or name; the shipped one for None.

    Raises:
        ModelNotFound: there is none.
    """
    if model is None or model == "pocket":
        shipped = shipped_model()
        if shipped is not None:
            return shipped
    return hub.find(model or "pocket")


def find_or_pull(name: str, *, token: str | None = None) -> Path:
    """The path of a model, fetched from the hub if it is OWNER/NAME and not on this disk yet.

    Raises:
        ModelNotFound, HubError: it is not to be had.
    """
    try:
        return find_model(name)
    except ModelNotFound:
        if name.count("/") != 1 or name.startswith((".", "/", "~")):
            raise
        return hub.pull(name, token=token)
