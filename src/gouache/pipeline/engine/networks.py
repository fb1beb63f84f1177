"""Networks that an engine runs. Each is called as the one of torch that it stands for, holds that one's modules and
tensors, and is an instance of its class, so that nothing around it knows the difference.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from gouache.errors import EngineError
from gouache.models.caching.block_cache import BlockCall
from gouache.models.caching.deep_cache import DeepCall
from gouache.models.conditioning.controlnet import ControlNet
from gouache.models.mmdit import MMDiT
from gouache.models.unet import Changes, Place, Residuals, UNet
from gouache.models.vae import AutoencoderKL, Decoder
from gouache.nn.attention import RowChanges
from gouache.nn.free_u import FreeU
from gouache.nn.layers import channels_last
from gouache.pipeline.engine import store
from gouache.pipeline.engine.graph import Signature, cannot_run, check, compiled, run, translated, with_weights

if TYPE_CHECKING:
    import openvino

MakeGraph = Callable[[nn.Module, Signature, Mapping[str, Tensor], list[str]], "openvino.Model"]
"""The whole graph, weights inside, of a network, the way it is called and an example; it tells a list what users should
know."""
ROWS, TOKENS, HEIGHT, WIDTH = 2, 11, 3, 5
"""Sizes of the examples that graphs are made from, height and width at the lowest resolution: different, and none 1."""


class Runs(Protocol):
    """What runs one network in torch's place.

    Attributes:
        notes: what users are told.
        failed: torch runs it from then on.
    """

    notes: list[str]
    failed: bool

    def __call__(
        self, signature: Signature, inputs: Mapping[str, Tensor], example: Callable[[], Mapping[str, Tensor]]
    ) -> tuple[Tensor, ...] | None:
        """The outputs; None if torch has to run it. `example` makes small inputs of the same kinds."""
        ...


@dataclass
class Runner:
    """Runs one network by OpenVINO: makes its graph when it is first called in some way, and keeps the latest.

    Attributes:
        network: torch's.
        lenient: where a graph can't be made, say so in `notes` and let torch run it from then on.
        notes: what users are told.
        failed: torch runs it.
        make: gives the graph; None takes `graph_of`, which makes it in float32.
    """

    network: nn.Module
    lenient: bool
    notes: list[str]
    failed: bool = False
    make: MakeGraph | None = None
    _ready: tuple[str, openvino.InferRequest] | None = field(default=None, repr=False)

    def __call__(
        self, signature: Signature, inputs: Mapping[str, Tensor], example: Callable[[], Mapping[str, Tensor]]
    ) -> tuple[Tensor, ...] | None:
        """The outputs; None if torch has to run it.

        Args:
            signature: how the network is called.
            inputs: by the signature's names.
            example: makes the inputs that a new graph is made from.

        Raises:
            EngineError: OpenVINO can't run it, and it isn't `lenient`.
        """
        if self.failed:
            return None
        try:
            request = self._request(signature, example)
        except EngineError as error:
            if not self.lenient:
                raise
            self.failed = True
            channels_last(self.network)  # as torch runs it without an engine, to the bit
            self.notes.append(f"{type(self.network).__name__} was run by torch: {error}")
            return None
        return run(request, [inputs[name] for name in signature.inputs])

    def _request(self, signature: Signature, example: Callable[[], Mapping[str, Tensor]]) -> openvino.InferRequest:
        if self._ready is None or self._ready[0] != signature.text:
            self._ready = None  # give its memory back before the next one takes as much
            graph = (self.make or graph_of)(self.network, signature, example(), self.notes)
            try:
                request = compiled(graph).create_infer_request()
            except RuntimeError as error:
                raise cannot_run(self.network, str(error)) from error
            self._ready = (signature.text, request)
        return self._ready[1]


def graph_of(
    network: nn.Module, signature: Signature, example: Mapping[str, Tensor], notes: list[str]
) -> openvino.Model:
    """The whole graph of a network, its weights inside: from the disk, or made anew and kept there.

    Args:
        network: torch's.
        signature: how it is called.
        example: what it is made from.
        notes: get what users should know.

    Raises:
        EngineError: OpenVINO can't translate it.
    """
    key = store.key_of(network, signature)
    graph = store.find(key, notes)
    if graph is None:
        graph = translated(network, signature, example)
        check(with_weights(graph.clone(), network), network, signature, example)
        store.keep(key, graph, signature.text, notes)
    return with_weights(graph, network)


class EngineUNet(UNet):
    """A U-Net, run by an engine.

    Args:
        runner: with a `UNet`.

    Raises:
        EngineError: when it is called with what a graph can't be made of.
    """

    def __init__(self, network: UNet, runner: Runs) -> None:
        nn.Module.__init__(self)
        self.config, self._modules, self.runner = network.config, network._modules, runner
        self.network_forward = network.forward

    def forward(
        self,
        x: Tensor,
        timestep: Tensor,
        context: Tensor,
        *,
        context_mask: Tensor | None = None,
        pooled: Tensor | None = None,
        draft: Tensor | None = None,
        residuals: Residuals | None = None,
        changes: Changes | None = None,
        free_u: FreeU | None = None,
        guidance: Tensor | None = None,
        noise_level: Tensor | None = None,
        deep: DeepCall | None = None,
        block_cache: BlockCall | None = None,
    ) -> Tensor:
        """As `UNet.forward`."""
        self._check(x, context, pooled, draft)
        if changes or free_u is not None:
            raise cannot_run(self, "blocks that do otherwise for some rows")
        if deep is not None or block_cache is not None:
            raise cannot_run(self, "feature maps that are kept over steps")
        named = {
            "timestep": timestep.expand(x.shape[0]),
            "context": context,
            "context_mask": context_mask,
            "pooled": pooled,
            "draft": draft,
            "guidance": guidance,
            "noise_level": noise_level,
        }
        inputs = {"x": x, **{name: one for name, one in named.items() if one is not None}}
        inputs.update(_of_residuals(residuals, x.shape[0]))
        signature = Signature("UNet", tuple(inputs), call_unet)
        lowest = 2 ** (len(self.config.channels) - 1)
        example = lambda: smaller(inputs, (HEIGHT * lowest, WIDTH * lowest))  # noqa: E731
        found = self.runner(signature, inputs, example)
        if found is not None:
            return found[0]
        return self.network_forward(
            x,
            timestep,
            context,
            context_mask=context_mask,
            pooled=pooled,
            draft=draft,
            residuals=residuals,
            guidance=guidance,
            noise_level=noise_level,
        )


def _of_residuals(residuals: Residuals | None, rows: int) -> dict[str, Tensor]:
    """Residuals by name: `skip 0`, `middle`, `inside 0 True`."""
    if residuals is None:
        return {}
    found = {f"skip {k}": one for k, one in enumerate(residuals.skips)}
    if residuals.middle is not None:
        found["middle"] = residuals.middle
    found.update({f"inside {level} {behind}": one for (level, behind), one in residuals.inside.items()})
    return {name: one.expand(rows, -1, -1, -1) for name, one in found.items()}


def call_unet(network: Callable[..., object], inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """Call a `UNet` with inputs by name, those of residuals as `_of_residuals` names them."""
    given = dict(inputs)
    skips, inside, middle = [], {}, given.pop("middle", None)
    for name in list(given):
        kind, *place = name.split(" ")
        if kind == "skip":
            skips.append(given.pop(name))
        elif kind == "inside":
            at: Place = (int(place[0]), place[1] == "True")
            inside[at] = given.pop(name)
    there = bool(skips or inside) or middle is not None
    residuals = Residuals(tuple(skips), middle, inside) if there else None
    out = network(given.pop("x"), given.pop("timestep"), given.pop("context"), **given, residuals=residuals)
    assert isinstance(out, Tensor), "a U-Net gives one tensor"
    return (out,)


class EngineMMDiT(MMDiT):
    """The transformer of Stable Diffusion 3, run by an engine."""

    def __init__(self, network: MMDiT, runner: Runs) -> None:
        nn.Module.__init__(self)
        self.config, self._modules, self.runner = network.config, network._modules, runner
        self.gradient_checkpointing, self.network_forward = False, network.forward

    def forward(
        self,
        x: Tensor,
        timestep: Tensor,
        context: Tensor,
        *,
        context_mask: Tensor | None = None,
        pooled: Tensor | None = None,
        changes: Mapping[nn.Module, RowChanges] | None = None,
        residuals: Sequence[Tensor] = (),
        block_cache: BlockCall | None = None,
    ) -> Tensor:
        """As `MMDiT.forward`."""
        self._checked(x, context, pooled)
        if changes or block_cache is not None:
            raise cannot_run(self, "blocks that do otherwise for some rows, or are left out")
        named = {"context_mask": context_mask, "pooled": pooled}
        inputs = {"x": x, "timestep": timestep.expand(x.shape[0]), "context": context}
        inputs.update({name: one for name, one in named.items() if one is not None})
        inputs.update({f"residual {k}": one for k, one in enumerate(residuals)})
        found = self.runner(Signature("MMDiT", tuple(inputs), _call_transformer), inputs, lambda: inputs)
        if found is not None:
            return found[0]
        return self.network_forward(x, timestep, context, context_mask=context_mask, pooled=pooled, residuals=residuals)


def _call_transformer(network: Callable[..., object], inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    residuals = [one for name, one in inputs.items() if name.startswith("residual ")]
    given = {name: one for name, one in inputs.items() if not name.startswith("residual ")}
    out = network(given.pop("x"), given.pop("timestep"), given.pop("context"), **given, residuals=residuals)
    assert isinstance(out, Tensor), "a transformer gives one tensor"
    return (out,)


class EngineDecoder(Decoder):
    """An autoencoder's decoder, run by an engine."""

    def __init__(self, network: Decoder, runner: Runs) -> None:
        nn.Module.__init__(self)
        self._modules, self.runner, self.network_forward = network._modules, runner, network.forward

    def forward(self, x: Tensor, picture: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """As `Decoder.forward`."""
        named = {"x": x, "picture": picture, "mask": mask}
        inputs = {name: one for name, one in named.items() if one is not None}
        signature = Signature("Decoder", tuple(inputs), _call_decoder)
        found = self.runner(signature, inputs, lambda: smaller(inputs, (HEIGHT, WIDTH)))
        return self.network_forward(x, picture, mask) if found is None else found[0]


def _call_decoder(network: Callable[..., object], inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    out = network(*inputs.values())
    assert isinstance(out, Tensor), "a decoder gives one tensor"
    return (out,)


class EngineControlNet(ControlNet):
    """A ControlNet, run by an engine; what it sees of a picture, and the weights of `guess`, are computed by torch."""

    def __init__(self, network: ControlNet, runner: Runs) -> None:
        nn.Module.__init__(self)
        self.config, self._modules, self.runner = network.config, network._modules, runner
        self.network_forward = network.forward

    def forward(
        self,
        x: Tensor,
        timestep: Tensor,
        context: Tensor,
        features: Tensor,
        *,
        context_mask: Tensor | None = None,
        pooled: Tensor | None = None,
        guess: bool = False,
        changes: Changes | None = None,
    ) -> Residuals:
        """As `ControlNet.forward`."""
        self.check(x, features, pooled)
        if changes:
            raise cannot_run(self, "blocks that do otherwise for some rows")
        rows = x.shape[0]
        named = {"context_mask": context_mask, "pooled": pooled}
        inputs = {"x": x, "timestep": timestep.expand(rows), "context": context}
        inputs["features"] = features.expand(rows, -1, -1, -1)
        inputs.update({name: one for name, one in named.items() if one is not None})
        signature = Signature("ControlNet", tuple(inputs), _call_control)
        lowest = 2 ** (len(self.config.unet.channels) - 1)
        found = self.runner(signature, inputs, lambda: smaller(inputs, (HEIGHT * lowest, WIDTH * lowest)))
        if found is None:
            return self.network_forward(
                x, timestep, context, features, context_mask=context_mask, pooled=pooled, guess=guess
            )
        return self._weighed(found, guess=guess)


def _call_control(network: Callable[..., object], inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    given = dict(inputs)
    out = network(given.pop("x"), given.pop("timestep"), given.pop("context"), given.pop("features"), **given)
    assert isinstance(out, Residuals), "a ControlNet gives residuals"
    assert out.middle is not None, "one of them is the middle's"
    return (*out.skips, out.middle)


def smaller(inputs: Mapping[str, Tensor], size: tuple[int, int]) -> dict[str, Tensor]:
    """Inputs of the same kinds and channels, of a small size at which no two open sizes are equal.

    Args:
        inputs: with `x` among them. [B, C, h, w]; maps at halves or multiples of its size, [B, L, D] and [B, L] of
            texts, [B, D] and [B] of other things.
        size: height and width of the small `x`.
    """
    given, found = (inputs["x"].shape[2], inputs["x"].shape[3]), {}
    generator = torch.Generator().manual_seed(0)
    for name, one in inputs.items():
        shape = list(one.shape)
        shape[0] = ROWS
        if one.ndim == 4:
            shape[2:] = _at_the_same_scale(given, (one.shape[2], one.shape[3]), size)
        elif one.ndim == 3 or name == "context_mask":
            shape[1] = TOKENS
        found[name] = _drawn(shape, one.dtype, generator)
    return found


def _drawn(shape: Sequence[int], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Numbers that a network may be given: a mask's, levels of noise, or normal ones."""
    if dtype == torch.bool:
        return torch.ones(shape, dtype=dtype).tril(shape[-1] // 2)
    if not dtype.is_floating_point:
        return torch.ones(shape, dtype=dtype)
    return torch.randn(shape, generator=generator, dtype=dtype)


def _at_the_same_scale(main: tuple[int, int], other: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """What a map's size becomes where that of the main one becomes `size`; a size of one place stays."""
    while main != other and min(main) > 1 and other[0] < main[0]:
        main, size = ((main[0] + 1) // 2, (main[1] + 1) // 2), ((size[0] + 1) // 2, (size[1] + 1) // 2)
    return (size[0] * other[0] // main[0], size[1] * other[1] // main[1]) if other != (1, 1) else other


def with_decoder(vae: AutoencoderKL, decoder: Decoder) -> AutoencoderKL:
    """The same autoencoder with another decoder."""
    made = copy.copy(vae)
    made._modules = {**vae._modules, "decoder": decoder}
    return made
