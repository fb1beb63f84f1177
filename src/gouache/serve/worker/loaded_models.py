"""Loaded models of one worker: the least recently used leave when memory is short, and leave for good."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

from gouache.pipeline.engine.names import TORCH
from gouache.pipeline.generate.generation import Event
from gouache.pipeline.request import Request
from gouache.serve.models.catalog import ModelEntry

log = logging.getLogger("gouache.worker")


class Painter(Protocol):
    """What paints: a `Pipeline`, or anything like it."""

    def run(self, request: Request, attachments: Mapping[str, bytes] | None = None) -> Iterator[Event]:
        """Progress after each step and each finished picture; closing the iterator stops it."""
        ...


OpenModel = Callable[[ModelEntry, str | None, str | None, str], Painter]
"""Loads a model onto a device (None = a GPU if available), in a number format and for an engine, as `Pipeline.load`."""


def open_pipeline(entry: ModelEntry, device: str | None, dtype: str | None = None, engine: str = TORCH) -> Painter:
    """Load a model from disk, or the shipped one.

    Raises:
        ModelNotFound, CheckpointError: it isn't there or can't be loaded.
        DeviceUnavailable: no such device.
        MissingDependency, InvalidInput: the engine isn't installed, or can't run this model.
    """
    from gouache.pipeline.pipeline import Pipeline
    from gouache.pipeline.pipeline import open_pipeline as open_by_name

    if entry.path is not None:
        return Pipeline.load(entry.path, device=device, dtype=dtype, engine=engine)
    pipeline, note = open_by_name(None, device=device, dtype=dtype, engine=engine)
    if note:
        log.warning(note)
    return pipeline


class LoadedModels:
    """Keeps models loaded within a budget.

    Args:
        open_model: loads one.
        budget: bytes of weights to keep; the model in use stays even if it is larger alone.
        device, dtype, engine: where they go, their number format, and what runs them.
    """

    def __init__(
        self,
        open_model: OpenModel,
        budget: int,
        device: str | None = None,
        dtype: str | None = None,
        engine: str = TORCH,
    ) -> None:
        self.open_model, self.budget, self.device, self.dtype, self.engine = open_model, budget, device, dtype, engine
        self._loaded: OrderedDict[str, tuple[Painter, int, ModelEntry]] = OrderedDict()

    def get(self, entry: ModelEntry, beside: ModelEntry | None = None) -> Painter:
        """The model, loaded if need be. Room is made before it is loaded, from its size on disk.

        Args:
            entry: which.
            beside: one that is in use too and makes no room for it.
        """
        key = _key(entry)
        kept = {key} if beside is None else {key, _key(beside)}
        if key in self._loaded:
            self._loaded.move_to_end(key)
            return self._loaded[key][0]
        self._make_room(entry.size, kept)
        start = time.perf_counter()
        painter = self.open_model(entry, self.device, self.dtype, self.engine)
        log.info("model loaded", extra={"model": entry.name, "seconds": round(time.perf_counter() - start, 4)})
        self._loaded[key] = (painter, max(entry.size, weight_bytes(painter)), entry)
        self._make_room(0, kept)
        return painter

    def names(self) -> list[str]:
        """The loaded models, least recently used first."""
        return [entry.name for _, _, entry in self._loaded.values()]

    def has(self, name: str) -> bool:
        """Whether a model that answers to a name is loaded; a hash is no name here."""
        return any(entry.is_called(name) for _, _, entry in self._loaded.values())

    def forget(self) -> None:
        """Let go of every model, for example after running out of memory."""
        self._loaded.clear()
        give_memory_back()

    def _make_room(self, wanted: int, kept: set[str]) -> None:
        idle = [key for key in self._loaded if key not in kept]
        freed = False
        while idle and sum(size for _, size, _ in self._loaded.values()) + wanted > self.budget:
            del self._loaded[idle.pop(0)]
            freed = True
        if freed:
            give_memory_back()


def _key(entry: ModelEntry) -> str:
    return f"{entry.name}\n{entry.path}\n{entry.modified}"


def lend_refiner(painter: Painter, name: str, refiner: Painter | None) -> None:
    """Give a pipeline the model that it hands over to under this name; None takes it back. A painter that isn't one
    has no use for it."""
    lend = getattr(painter, "lend_refiner", None)
    if lend is not None:
        lend(name, None if refiner is None else getattr(refiner, "bundle", None))


def weight_bytes(painter: Painter) -> int:
    """Bytes of a pipeline's weights; 0 for a painter that has none."""
    bundle = getattr(painter, "bundle", None)
    if bundle is None:
        return 0
    weights = (weight for network in bundle.networks().values() for weight in network.parameters())
    return sum(weight.numel() * weight.element_size() for weight in weights)


def weights_sha256(painter: Painter) -> str:
    """Hash of a pipeline's weights, empty if it is not known."""
    return str(getattr(getattr(painter, "bundle", None), "sha256", "") or "")


def give_memory_back() -> None:
    """Collect garbage and hand free pages back to the system, where the C library can (glibc)."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
