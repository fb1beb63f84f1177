"""From a request to pictures: one model, loaded, and the generator that paints with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Self

import torch

from gouache.models.bundle import ModelBundle
from gouache.nn.memory import channels_last
from gouache.pipeline.adapters import Adapted, Adapters
from gouache.pipeline.events import Event, Painted
from gouache.pipeline.interpolate import frames
from gouache.pipeline.machine import check_device
from gouache.pipeline.outpaint import outpaint
from gouache.pipeline.plan import resolve_request, size_notes
from gouache.pipeline.prepare import prepare
from gouache.pipeline.references import References
from gouache.pipeline.release import Release
from gouache.pipeline.request import Request
from gouache.pipeline.run import Run


class Pipeline:
    """One loaded model that paints requests.

    Args:
        bundle: the model; it is put into inference mode, and its convolutions into the order that is faster.
    """

    def __init__(self, bundle: ModelBundle) -> None:
        self.bundle = bundle.eval()
        channels_last(bundle.unet)
        channels_last(bundle.vae)
        self._release = Release(bundle.path)
        self.adapters = Adapters(bundle)

    @classmethod
    def load(cls, path: Path | str, *, device: str | None = None, dtype: torch.dtype | None = None) -> Self:
        """Load a model from disk.

        Args:
            path: a file or folder in any format that `gouache inspect` knows.
            device: "cpu", "cuda", "mps"; None takes a card if there is one.
            dtype: number format of the networks; None takes float32 on the CPU and float16 elsewhere.

        Raises:
            ModelNotFound, CheckpointError: nothing there, or nothing that can be loaded.
            DeviceUnavailable: no such device on this machine.
        """
        from gouache.checkpoints.load import load_bundle

        where = check_device(device)
        kind = dtype or (torch.float32 if where.type == "cpu" else torch.float16)
        return cls(load_bundle(Path(path), device=where, dtype=kind))

    def to(self, device: str | torch.device, dtype: torch.dtype | None = None) -> Self:
        """Move the model; gives itself back.

        Raises:
            DeviceUnavailable: no such device on this machine.
        """
        self.bundle.to(check_device(str(device)), dtype)
        self.adapters = Adapters(self.bundle, self.adapters.folder)
        return self

    def resolve(self, request: Request) -> Request:
        """The request with every gap filled from the model's defaults; see `plan.resolve_request`."""
        return resolve_request(request, self.bundle)

    def paint(self, request: Request, attachments: Mapping[str, bytes] | None = None) -> list[Painted]:
        """Paint all pictures of a request; arguments and errors as `run`."""
        return [event for event in self.run(request, attachments) if isinstance(event, Painted)]

    def run(self, request: Request, attachments: Mapping[str, bytes] | None = None) -> Iterator[Event]:
        """Paint, step by step. The request is checked before anything is returned; close the iterator to stop.

        Args:
            request: what to paint.
            attachments: bytes of the pictures that the request names; one that is missing here is read from its path.

        Returns:
            An iterator of `Progress` after each step and `Painted` for each picture.

        Raises:
            GouacheError: the request can't be painted by this model.
        """
        return self._release.apply(request, self._events(request, attachments))

    def _events(self, request: Request, attachments: Mapping[str, bytes] | None) -> Iterator[Event]:
        """As `run`, of pictures that were neither checked nor marked yet."""
        references = References(attachments)
        start = None if request.init_image is None else references.picture(request.init_image).size
        resolved = resolve_request(request, self.bundle, start)
        adapted = self.adapters.apply(resolved)
        notes = [*size_notes(request, resolved, start), *adapted.notes]
        if resolved.outpaint is not None:
            return outpaint(resolved, adapted.bundle, references, self._events)
        if resolved.interpolation is not None:
            return _with_refs(frames(resolved, adapted.bundle, references, notes), adapted)
        prepared = prepare(resolved, adapted.bundle, references)
        run = Run(adapted.bundle, resolved, prepared.canvas, [*notes, *prepared.notes], references.digests())
        return _with_refs(iter(run), adapted)


def _with_refs(events: Iterator[Event], adapted: Adapted) -> Iterator[Event]:
    """The same events; recipes name the adapters."""
    for event in events:
        if isinstance(event, Painted) and adapted.refs:
            yield replace(event, recipe=event.recipe.model_copy(update={"adapters": adapted.refs}))
        else:
            yield event
