"""One model, loaded, and the generator that paints with it.

Which model a request means (a path, a name, the shipped one) is decided here too.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Self

import torch
from torch import nn

from gouache.checkpoints import hub
from gouache.checkpoints.hub import SHIPPED, shipped_model
from gouache.errors import DeviceUnavailable, ModelNotFound
from gouache.models.bundle import ModelBundle
from gouache.models.configs import DenoiserConfig, GenerationDefaults, TextEncoderConfig, UNetConfig, VAEConfig
from gouache.models.family import SD1
from gouache.models.text.clip import TextEncoder
from gouache.models.text.stack import TextStack
from gouache.models.unet import UNet
from gouache.models.vae import AutoencoderKL
from gouache.nn.layers import channels_last
from gouache.notebook import bar, told
from gouache.pipeline.engine.dtypes import dtype_named, dtype_on
from gouache.pipeline.engine.engine import Engine
from gouache.pipeline.engine.names import TORCH, check_engine
from gouache.pipeline.generate.generation import Event, Generation, Painted, Progress
from gouache.pipeline.inputs.images import References
from gouache.pipeline.inputs.start import prepare
from gouache.pipeline.output.recipe import model_sha256
from gouache.pipeline.prompts.adapters import Adapted, Adapters
from gouache.pipeline.request import Request
from gouache.pipeline.resolve import Resolved, resolve_with_pictures

if TYPE_CHECKING:
    from gouache.pipeline.output.safety import Release

__all__ = ["UNTRAINED_NOTE", "find_model", "find_or_pull", "open_pipeline", "shipped_model"]


class Pictures(list[Painted]):
    """Pictures in the order in which they were painted: a list that a notebook shows as pictures."""

    def _repr_html_(self) -> str:
        figures = []
        for one in self:
            data = base64.b64encode(one.encode("png")).decode("ascii")
            prompt = escape(one.recipe.request.prompt, quote=True)
            figures.append(
                f'<figure style="margin: 0"><img src="data:image/png;base64,{data}" alt="{prompt}" '
                f'style="max-width: 100%"><figcaption>seed {one.seed}</figcaption></figure>'
            )
        return f'<div style="display: flex; flex-wrap: wrap; gap: 12px">{"".join(figures)}</div>'


class Pipeline:
    """One loaded model that paints requests.

    Args:
        bundle: the model; it is put into inference mode, and its convolutions into the order that is faster.
        engine: as `load`.

    Raises:
        UnknownName, MissingDependency, InvalidInput: as `load`.
    """

    def __init__(self, bundle: ModelBundle, engine: str = TORCH) -> None:
        self.bundle = bundle.eval()
        self.engine = Engine(engine, bundle)
        channels_last(bundle.unet)
        channels_last(bundle.vae)
        self.adapters = Adapters(bundle)
        self._vae: tuple[str, AutoencoderKL, tuple[str, ...]] | None = None
        self._refiner: tuple[str, ModelBundle] | None = None

    @classmethod
    def load(
        cls,
        path: Path | str | None = None,
        *,
        device: str | None = None,
        dtype: torch.dtype | str | None = None,
        sequential: bool = False,
        engine: str = TORCH,
    ) -> Self:
        """Load a model from disk.

        Args:
            path: a file or folder in any format that `gouache inspect` knows; None takes the shipped model.
            device: "cpu", "cuda", "mps"; None takes a GPU if available.
            dtype: number format of the networks, or its name; None is "auto": bfloat16 for large models on a CPU that
                is faster in it, else float32, and float16 on a GPU.
                "auto" takes bfloat16 for a large model on a CPU that is faster in it, and else what None takes.
            sequential: keep one network at a time in memory, and read each from its file when it is used.
            engine: what runs the networks: "torch", "openvino", "openvino-int8", "compile" or "auto"; see
                `engine.names.ENGINES`.

        Raises:
            ModelNotFound, CheckpointError: nothing there, or nothing that can be loaded.
            DeviceUnavailable: no such device on this machine.
            UnknownName, MissingDependency: there is no such dtype or engine, or it isn't installed.
            InvalidInput: the engine can't run a model that is loaded so.
        """
        from gouache.checkpoints.load import load_bundle

        check_engine(engine)
        where = check_device(device)
        kind = dtype_on(where, dtype, engine)
        if path is None and (path := shipped_model()) is None:
            cure = "Give a path: this build has no weights."
            raise ModelNotFound("path", given="none", expected="the shipped model", cure=cure)
        with bar() as show:
            show(None, f"loading {Path(path).name}")
            bundle = load_bundle(
                Path(path), device=where, dtype=kind, without_vae=True, sequential=sequential, channels_last=True
            )
        return cls(bundle, engine)

    def to(self, device: str | torch.device, dtype: torch.dtype | None = None) -> Self:
        """Move the model; gives itself back.

        Raises:
            DeviceUnavailable: no such device on this machine.
            InvalidInput: the engine that was named can't run it there.
        """
        self.bundle.to(check_device(str(device)), dtype)
        self.engine = Engine(self.engine.asked, self.bundle)
        self.adapters = Adapters(self.bundle, self.adapters.folder)
        self._vae = self._refiner = None
        return self

    def resolve(self, request: Request, attachments: Mapping[str, bytes] | None = None) -> Request:
        """The request with every gap filled: from the model's defaults, and the size from the starting picture.

        Args:
            request: what to paint.
            attachments: as `run`.

        Raises:
            GouacheError: the request can't be painted by this model.
        """
        return self.plan(request, attachments).request

    def plan(self, request: Request, attachments: Mapping[str, bytes] | None = None) -> Resolved:
        """As `resolve`, with notes on what could not be kept; `run` takes it without resolving again."""
        return resolve_with_pictures(request, self._with_parts(request, self.bundle), References(attachments))

    def adapted(self, request: Request) -> Adapted:
        """What paints a request: the model with its adapters, and with the autoencoder and the refiner that it names.

        Raises:
            GouacheError: one of them is not there, or doesn't fit.
        """
        adapted = self.adapters.apply(request)
        return replace(adapted, bundle=self._with_parts(request, adapted.bundle))

    def lend_refiner(self, name: str, refiner: ModelBundle | None) -> None:
        """Use a model that is loaded already for requests that name it as their refiner; None gives it back."""
        self._refiner = None if refiner is None else (name, refiner)

    def _with_parts(self, request: Request, bundle: ModelBundle) -> ModelBundle:
        """The model with autoencoder and refiner as a request names them; the last of each is kept loaded.

        Raises:
            ModelNotFound, CheckpointError, ConfigError: there is no such one, or it doesn't fit.
            IncompatibleCheckpoint: no autoencoder is named, and the model has none.
        """
        bundle = self._with_vae(request, bundle)
        if request.refiner is None or request.refiner_switch_at >= 1:
            return bundle
        if self._refiner is None or self._refiner[0] != request.refiner:
            self._refiner = None  # give its memory back before the next one takes as much
            other = type(self).load(_refiner_at(request.refiner), device=str(bundle.device), dtype=bundle.dtype)
            other.bundle.vae.to("meta")  # decoding is the base model's
            self._refiner = (request.refiner, other.bundle)
        return replace(bundle, refiner=self._refiner[1])

    def _with_vae(self, request: Request, bundle: ModelBundle) -> ModelBundle:
        """The model with the autoencoder that a request names; the last one is kept loaded.

        Raises:
            ModelNotFound, CheckpointError, ConfigError: there is no such autoencoder, or it doesn't fit.
            IncompatibleCheckpoint: none is named, and the model has none.
        """
        from gouache.checkpoints.load import no_vae
        from gouache.checkpoints.vae_library import find_vae, load_vae

        if request.vae is None:
            if not bundle.has_vae:
                raise no_vae(str(bundle.path or bundle.name))
            return bundle
        if self._vae is None or self._vae[0] != request.vae:
            vae, notes = load_vae(find_vae(request.vae), bundle, device=bundle.device, dtype=bundle.dtype)
            channels_last(vae)
            self._vae = (request.vae, vae, notes)
        return replace(bundle, vae=self._vae[1])

    def paint(
        self,
        request: Request | str,
        attachments: Mapping[str, bytes] | None = None,
        *,
        progress: bool | None = None,
    ) -> Pictures:
        """Paint all pictures of a request, or one of a prompt.

        Args:
            request: what to paint; a text is a prompt, and everything else as the model is set.
            attachments: bytes of the pictures that the request names; one that is missing here is read from its path.
            progress: whether a notebook shows a bar meanwhile; None for yes, unless `GOUACHE_PROGRESS=off` is in the
                environment. Elsewhere nothing is shown.

        Returns:
            A list of the pictures; a notebook shows them side by side.

        Raises:
            GouacheError: the request can't be painted by this model.
        """
        request = Request(prompt=request) if isinstance(request, str) else request
        events = told(self.run(request, attachments), _step_of, progress=progress)
        return Pictures(event for event in events if isinstance(event, Painted))

    def __repr__(self) -> str:
        bundle = self.bundle
        return f"Pipeline({bundle.name!r}, family {bundle.family!r}, on {bundle.device}, {bundle.dtype})"

    def run(self, request: Request | Resolved, attachments: Mapping[str, bytes] | None = None) -> Iterator[Event]:
        """Paint, step by step. The request is checked before anything is returned; close the iterator to stop.

        Args:
            request: what to paint, or what `plan` made of it.
            attachments: bytes of the pictures that the request names; one that is missing here is read from its path.

        Returns:
            An iterator of `Progress` after each step and `Painted` for each picture.

        Raises:
            GouacheError: the request can't be painted by this model.
        """
        events = self._events(request, attachments)
        asked = request.request if isinstance(request, Resolved) else request
        if asked.safety == "off" and asked.watermark is None:
            return events
        return self._release.apply(asked, events)

    @cached_property
    def _release(self) -> Release:
        from gouache.pipeline.output.safety import Release

        return Release(self.bundle.path)

    def _events(self, request: Request | Resolved, attachments: Mapping[str, bytes] | None) -> Iterator[Event]:
        """As `run`, of pictures that were neither checked nor marked yet."""
        references = References(attachments)
        if isinstance(request, Request):
            request = resolve_with_pictures(request, self._with_parts(request, self.bundle), references)
        resolved = request.request
        adapted = self.adapted(resolved)
        fitted = self.engine.fitted(adapted.bundle, resolved)
        adapted = replace(adapted, bundle=fitted.bundle)
        notes = [*self.bundle.loading_notes, *request.notes, *adapted.notes]
        if resolved.vae is not None and self._vae is not None:
            from gouache.checkpoints.vae_library import find_vae

            notes += [f"VAE {resolved.vae}, sha256 {model_sha256(find_vae(resolved.vae))[:12]}", *self._vae[2]]
        if resolved.outpaint is not None:
            from gouache.pipeline.generate.outpaint import outpaint

            return outpaint(resolved, adapted.bundle, references, self._events, notes)
        if resolved.interpolation is not None:
            from gouache.pipeline.generate.interpolation import frames

            return _with_refs(fitted.recorded(frames(resolved, adapted.bundle, references, notes)), adapted)
        prepared = prepare(resolved, adapted.bundle, references)
        generation = Generation(
            adapted.bundle,
            resolved,
            prepared.start_state,
            [*notes, *references.notes, *prepared.notes],
            references.digests(),
        )
        return _with_refs(fitted.recorded(iter(generation)), adapted)


def _with_refs(events: Iterator[Event], adapted: Adapted) -> Iterator[Event]:
    """The same events; recipes name the adapters."""
    for event in events:
        if isinstance(event, Painted) and adapted.refs:
            yield replace(event, recipe=event.recipe.model_copy(update={"adapters": adapted.refs}))
        else:
            yield event


def _refiner_at(name: str) -> Path:
    try:
        return find_model(name)
    except ModelNotFound as error:
        raise ModelNotFound("refiner", given=repr(name), expected=error.expected, cure=error.cure) from error


def check_device(device: str | None) -> torch.device:
    """A device that is really there; None takes a GPU if available.

    Raises:
        DeviceUnavailable: it isn't.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        wanted = torch.device(device)
    except RuntimeError as error:
        raise DeviceUnavailable("device", given=repr(device), expected="cpu, cuda, cuda:0 or mps") from error
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(wanted.type, False) or (
        wanted.type == "cuda" and (wanted.index or 0) >= torch.cuda.device_count()
    ):
        raise DeviceUnavailable(
            "device",
            given=device,
            expected=f"one of {', '.join(name for name, found in there.items() if found)}",
            cure='Use device "cpu", or install a torch build and driver for your GPU; `gouache doctor` shows both.',
        )
    return wanted


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
    model: str | None,
    *,
    device: str | None = None,
    dtype: torch.dtype | str | None = None,
    sequential: bool = False,
    engine: str = TORCH,
) -> tuple[Pipeline, str | None]:
    """Load the model a request names.

    Args:
        model: a path, a name in the model folders, or None for the shipped model.
        device, dtype, sequential, engine: as `Pipeline.load`.

    Returns:
        The pipeline, and one line to tell the user if it isn't what one would expect.

    Raises:
        ModelNotFound: nothing at that path or under that name.
        UnknownName, MissingDependency, InvalidInput: no such dtype or engine, not installed, or not for this model.
    """
    if model == NAME or (model is None and shipped_model() is None):
        named = dtype_named(dtype)
        pipeline = Pipeline(untrained_bundle(), engine)  # in float32, which is "auto" for one so small
        if device is not None or isinstance(named, torch.dtype):
            pipeline.to(device or "cpu", named if isinstance(named, torch.dtype) else None)
        return pipeline, UNTRAINED_NOTE
    return Pipeline.load(find_model(model), device=device, dtype=dtype, sequential=sequential, engine=engine), None


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


def _step_of(event: Event) -> tuple[float, str] | None:
    """What a notebook's bar says of an event."""
    if not isinstance(event, Progress):
        return None
    text = f"step {event.step} of {event.steps}"
    if event.pictures > 1:
        text = f"picture {event.picture + 1} of {event.pictures}, {text}"
    return event.fraction, text
