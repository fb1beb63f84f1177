"""One model and the engine that runs its networks: what a request is painted with, and what its recipe says of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from torch import nn

from gouache.errors import EngineError, InvalidInput
from gouache.models.bundle import ModelBundle
from gouache.models.conditioning.controlnet import ControlNet
from gouache.models.mmdit import MMDiT
from gouache.models.turns import turns_of
from gouache.models.unet import UNet
from gouache.models.vae import AutoencoderKL, Decoder
from gouache.nn.layers import channels_last
from gouache.pipeline.engine.names import (
    AUTO,
    COMPILE,
    OPENVINO,
    OPENVINO_INT8,
    PACKAGES,
    TORCH,
    check_engine,
    is_installed,
    version_of,
)
from gouache.pipeline.generate.generation import Event, Painted
from gouache.pipeline.inputs.start import DEPTH, ENLARGE, INPAINT, INSTRUCT, input_kind
from gouache.pipeline.request import Request

LEAST_WEIGHTS = 100_000_000
"""Numbers of a U-Net from which on compiling is repaid by one picture; below it, torch has painted one before."""
Part = TypeVar("Part")


@dataclass(frozen=True)
class Fitted:
    """A model as it paints one request.

    Attributes:
        bundle: with the networks that the engine runs.
        engine: its name.
        notes: for the recipe; more come while it paints.
        runs_unet: whether the engine really ran the U-Net, asked afterwards.
    """

    bundle: ModelBundle
    engine: str
    notes: list[str] = field(default_factory=list)
    runs_unet: Callable[[], bool] = lambda: True

    def recorded(self, events: Iterator[Event]) -> Iterator[Event]:
        """The same events; recipes say which engine painted."""
        for event in events:
            if not isinstance(event, Painted) or (self.engine == TORCH and not self.notes):
                yield event
                continue
            recipe = event.recipe
            changes: dict[str, object] = {"notes": (*recipe.notes, *dict.fromkeys(self.notes))}
            if self.engine != TORCH:
                used = self.engine if self.runs_unet() else TORCH
                changes["machine"] = recipe.machine.model_copy(update={"engine": used})
                changes["versions"] = {**recipe.versions, **_versions(self.engine)}
            yield replace(event, recipe=recipe.model_copy(update=changes))


class Engine:
    """Runs the networks of a model's requests.

    Args:
        name: one of `names.ENGINES`.
        bundle: the model.

    Raises:
        UnknownName, MissingDependency: there is no such engine, or it isn't installed.
        InvalidInput: it is named and can't run a model that is loaded so.
        EngineError: it is named and can't run a network of this class.
    """

    def __init__(self, name: str, bundle: ModelBundle) -> None:
        check_engine(name)
        self.asked, self.lenient = name, name == AUTO
        reason = "" if name == TORCH else _why_not(bundle, name)
        if name == AUTO:
            size = sum(weight.numel() for weight in bundle.unet.parameters())
            name = OPENVINO if is_installed(OPENVINO) and not reason and size >= LEAST_WEIGHTS else TORCH
        elif reason:
            where = "a model on the CPU or CUDA" if name == COMPILE else "a U-Net in float32 on the CPU"
            cure = "Leave out --engine, or what it doesn't go with."
            raise InvalidInput(f"engine {name}", given=reason, expected=where, cure=cure)
        self.name = name
        self._kept: dict[str, tuple[object, object]] = {}

    def fitted(self, bundle: ModelBundle, request: Request) -> Fitted:
        """The model as it paints a resolved request.

        Raises:
            EngineError: the request asks for what the named engine can't do.
        """
        if self.name == TORCH:
            return Fitted(bundle, TORCH)
        refused = _beyond(request, bundle, eight_bit=self.name == OPENVINO_INT8)
        if refused and not self.lenient:
            raise EngineError(
                f"engine {self.name}",
                given=refused,
                expected="a request without it",
                cure="Use --engine torch or auto.",
            )
        if refused:
            for network in (bundle.unet, bundle.vae):
                channels_last(network)  # as without an engine, to the bit
            return Fitted(bundle, TORCH, [f"painted by torch: engine {self.name} can't do {refused}"])
        from gouache.pipeline.engine.networks import EngineMMDiT, EngineUNet

        notes: list[str] = []
        made = self._compiled(bundle, notes, "")
        if bundle.refiner is not None:
            made = replace(made, refiner=self._compiled(bundle.refiner, notes, "refiner "))
        unet = made.unet
        return Fitted(
            made, self.name, notes, lambda: isinstance(unet, EngineUNet | EngineMMDiT) and not unet.runner.failed
        )

    def _compiled(self, bundle: ModelBundle, notes: list[str], place: str) -> ModelBundle:
        """The model with networks that are compiled when they are first called."""
        from gouache.pipeline.engine import networks

        def runner(network: nn.Module) -> networks.Runs:
            if self.name == COMPILE:
                from gouache.pipeline.engine.compiling import Compiled

                return Compiled(network, notes)
            return networks.Runner(network, self.lenient, notes)

        def unet(network: UNet) -> UNet:
            made = runner(network)
            if self.name == OPENVINO_INT8:
                from gouache.pipeline.engine.int8 import int8_graph

                assert isinstance(made, networks.Runner), "of OpenVINO"
                made.make = int8_graph(bundle)
            return networks.EngineUNet(network, made)

        def transformer(network: MMDiT) -> MMDiT:
            return networks.EngineMMDiT(network, runner(network))

        def vae(network: AutoencoderKL) -> AutoencoderKL:
            # Compiled by torch, decoders were slower on a CPU (docs/benchmarks.md).
            if self.name == COMPILE or not isinstance(network.decoder, Decoder):
                return network
            return networks.with_decoder(network, networks.EngineDecoder(network.decoder, runner(network.decoder)))

        def control(network: ControlNet) -> ControlNet:
            return networks.EngineControlNet(network, runner(network))

        places = {name: f"{place}control {name}" for name in bundle.controls}
        for gone in [kept for kept in self._kept if kept.startswith(f"{place}control ")]:
            if gone not in places.values():
                del self._kept[gone]

        network = bundle.unet
        return replace(
            bundle,
            unet=(
                self._once(f"{place}unet", network, unet, notes)
                if isinstance(network, UNet)
                else self._once(f"{place}unet", network, transformer, notes)
            ),
            vae=self._once(f"{place}vae", bundle.vae, vae, notes) if bundle.has_vae else bundle.vae,
            controls={
                name: self._once(places[name], one, control, notes) if isinstance(one, ControlNet) else one
                for name, one in bundle.controls.items()
            },
        )

    def _once(self, place: str, network: Part, make: Callable[[Part], Part], notes: list[str]) -> Part:
        """What was made of the same network before; only the latest of each place is kept, for memory."""
        kept = self._kept.get(place)
        if kept is None or kept[0] is not network:
            self._kept.pop(place, None)
            kept = (network, make(network))
            self._kept[place] = kept
        made: Part = kept[1]  # type: ignore[assignment]
        _tell(made, notes)
        return made


def _tell(made: object, notes: list[str]) -> None:
    """From now on its notes go there; what it has to say of all its pictures is said again."""
    decoder = getattr(made, "decoder", None)
    runner = getattr(made if decoder is None else decoder, "runner", None)
    if runner is not None and runner.notes is not notes:
        notes += [note for note in runner.notes if runner.failed]
        runner.notes = notes


def _versions(engine: str) -> dict[str, str]:
    """What a picture by an engine depends on beside torch: package or program -> version."""
    if engine in PACKAGES:
        return {package: version_of(package) for package in PACKAGES[engine]}
    from gouache.pipeline.engine.compiling import compiler_version

    found = {"c++": compiler_version(), "triton": version_of("triton")}
    return {name: version for name, version in found.items() if version}


def _why_not(bundle: ModelBundle, engine: str) -> str:
    """Why an engine (for `auto` OpenVINO) can't run a model that is loaded so; empty if it can."""
    if not isinstance(bundle.unet, UNet | MMDiT if engine == COMPILE else UNet):
        return f"a {type(bundle.unet).__name__}"
    if turns_of(bundle.unet) is not None:
        return "networks that take turns in memory (--sequential)"
    if bundle.device.type not in (("cpu", "cuda") if engine == COMPILE else ("cpu",)):
        return f"a model on {bundle.device}"
    if engine == COMPILE:
        return ""
    return "" if bundle.dtype == torch.float32 else f"a model in {str(bundle.dtype).removeprefix('torch.')}"


def _beyond(request: Request, bundle: ModelBundle, *, eight_bit: bool) -> str:
    """What of a request changes blocks inside the networks, which a graph has no way to, or in 8 bits what the network
    isn't calibrated on: it is by prompts alone. Empty if nothing does."""
    asked = {
        "seamless": request.seamless != "none",
        "regions": bool(request.regions),
        "image prompts with an adapter": any(one.adapter is not None for one in request.image_prompts),
        "pag": request.pag is not None,
        "sag": request.sag is not None,
        "slg": request.slg is not None,
        "freeu": request.freeu is not None,
        "deep_cache": request.deep_cache is not None,
        "block_cache": request.block_cache is not None,
        "token_merging": request.token_merging > 0,
        "control": eight_bit and bool(request.control),
        "a refiner": eight_bit and bundle.refiner is not None,
        "a model that needs a picture": eight_bit and input_kind(bundle) in (INPAINT, INSTRUCT, DEPTH, ENLARGE),
    }
    return ", ".join(name for name, there in asked.items() if there)
