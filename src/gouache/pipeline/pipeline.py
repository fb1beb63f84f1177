"""One model, loaded, and the generator that paints with it.

Which model a request means (a path, a name, the shipped one) is decided here too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Self

import torch
from torch import nn

from gouache.checkpoints import hub
from gouache.checkpoints.hub import SHIPPED, shipped_model
from gouache.errors import ModelNotFound
from gouache.models.bundle import ModelBundle
from gouache.models.configs import DenoiserConfig, GenerationDefaults, TextEncoderConfig, UNetConfig, VAEConfig
from gouache.models.family import SD1
from gouache.models.text_encoder import TextEncoder
from gouache.models.text_stack import TextStack
from gouache.models.unet import UNet
from gouache.models.vae import AutoencoderKL
from gouache.nn.layers import channels_last
from gouache.pipeline.events import Event, Painted
from gouache.pipeline.generate.generation import Run
from gouache.pipeline.generate.interpolate import frames
from gouache.pipeline.generate.outpaint import outpaint
from gouache.pipeline.inputs.references import References
from gouache.pipeline.inputs.start import prepare
from gouache.pipeline.output.model_identity import check_device
from gouache.pipeline.output.safety import Release
from gouache.pipeline.prompts.adapters import Adapted, Adapters
from gouache.pipeline.request import Request
from gouache.pipeline.resolve import resolve_request, size_notes

__all__ = ["UNTRAINED_NOTE", "find_model", "find_or_pull", "open_pipeline", "shipped_model"]


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


NAME = "untrained"
TEXT = TextEncoderConfig(width=32, inner_width=64, layers=2, heads=2)
UNET = UNetConfig(
    channels=(16, 32), layers_per_level=1, transformer_layers=(1, 1), heads=(2, 2), context_width=32, norm_groups=8
)
VAE = VAEConfig(channels=(16, 16, 32), layers_per_level=1, norm_groups=8)
DEFAULTS = GenerationDefaults(
    width=128, height=128, num_inference_steps=8, guidance_scale=3.0, sampler="dpmpp_2m", schedule="karras"
)


def untrained_bundle(seed: int = 0) -> ModelBundle:
    """A working model that has learnt nothing: its pictures are abstract colours.

    Args:
        seed: of the weights; the same seed gives the same weights on every machine.
    """
    bundle = ModelBundle(
        family=SD1.name,
        unet=UNet(UNET),
        vae=AutoencoderKL(VAE),
        text=TextStack.of_clip([TextEncoder(TEXT)]),
        denoiser_config=DenoiserConfig(parameterization="v"),
        defaults=DEFAULTS,
        name=NAME,
    )
    for k, network in enumerate(bundle.networks().values()):
        fill(network, torch.Generator("cpu").manual_seed(seed + k))
    return bundle.eval()


@torch.no_grad()
def fill(network: nn.Module, generator: torch.Generator) -> None:
    """Draw every weight: matrices so that they keep the size of what passes through, scales near 1, offsets near 0."""
    for name, parameter in network.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1:
            parameter.copy_(noise * parameter[0].numel() ** -0.5)
        else:
            parameter.copy_(0.1 * noise + float(name.endswith("weight")))


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
    if model == NAME or (model is None and shipped_model() is None):
        pipeline = Pipeline(untrained_bundle())
        return (pipeline if device is None else pipeline.to(device)), UNTRAINED_NOTE
    return Pipeline.load(find_model(model), device=device, dtype=dtype), None


def find_model(model: str | None) -> Path:
    """The path of a model by path or name; the shipped one for None.

    Raises:
        ModelNotFound: there is none.
    """
    if model is None or model == SHIPPED:
        shipped = shipped_model()
        if shipped is not None:
            return shipped
    return hub.find(model or SHIPPED)


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
