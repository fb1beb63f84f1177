"""ControlNets and T2I-Adapters of a request: found, loaded, checked, and what each sees and when."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gouache.checkpoints.adapters.conditioning_files import key_of
from gouache.checkpoints.adapters.control_weights import load_steering
from gouache.checkpoints.adapters.controlnet_library import find_control
from gouache.checkpoints.adapters.preprocessor_library import DRAWN
from gouache.errors import IncompatibleCheckpoint, InvalidInput
from gouache.models.bundle import ModelBundle
from gouache.models.conditioning.controlnet import ControlNet
from gouache.models.conditioning.controlnet_union import ControlNetUnion
from gouache.models.conditioning.sd3_controlnet import JointControlNet
from gouache.models.conditioning.t2i_adapter import T2IAdapter
from gouache.models.configs import MMDiTConfig, UNetConfig
from gouache.models.denoiser import Steering, SteeringNetwork, joined
from gouache.models.unet import UNet
from gouache.nn.layers import channels_last
from gouache.pipeline.generate.tiling import circular
from gouache.pipeline.inputs.edges import canny
from gouache.pipeline.inputs.images import fit, on_background
from gouache.pipeline.inputs.preprocessors import drawn
from gouache.pipeline.inputs.start import encode_tensor
from gouache.pipeline.inputs.tensors import to_tensor
from gouache.pipeline.request import Control, Request

OPAQUE, HIDDEN, BLACK = 128, -1.0, 0.0
"""Alpha from which a pixel is seen, and what ControlNets for inpainting were trained to see in place of the others;
ControlNet-Union sees black there."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A network that steers, and the file or folder it came from."""

    network: SteeringNetwork
    path: Path


class Controls:
    """Loads the ControlNets of a model's requests; those of the last request that had any are kept.

    Args:
        bundle: the model; never changed.
    """

    def __init__(self, bundle: ModelBundle) -> None:
        self.bundle = bundle
        self._kept: dict[tuple[Path, int], SteeringNetwork] = {}

    def load(self, request: Request, folder: Path | None = None) -> Mapping[str, Loaded]:
        """Every ControlNet that a request names, by its name.

        Args:
            request: it.
            folder: the models folder; None takes the usual one.

        Raises:
            ModelNotFound: no such ControlNet.
            CheckpointError: its file can't be used, or not with this model.
        """
        if not request.control:
            return {}
        places = {one.model: find_control(one.model, folder).path for one in request.control}
        keys = {name: key_of(path) for name, path in places.items()}
        self._kept = {key: network for key, network in self._kept.items() if key in keys.values()}
        for name, key in keys.items():
            if key not in self._kept:
                self._kept[key] = self._loaded(name, key[0])
        return {name: Loaded(self._kept[key], key[0]) for name, key in keys.items()}

    def _loaded(self, name: str, path: Path) -> SteeringNetwork:
        where = f"control {name!r}"
        network = load_steering(path, self.bundle.unet, device=self.bundle.device, dtype=self.bundle.dtype)
        check_fits(network, self.bundle, where)
        return channels_last(network.eval().requires_grad_(False))


def unet_of(bundle: ModelBundle, where: str) -> UNet:
    """The model's U-Net.

    Raises:
        IncompatibleCheckpoint: what stands at `where` steers U-Nets, and this model has none.
    """
    if isinstance(bundle.unet, UNet):
        return bundle.unet
    raise IncompatibleCheckpoint(
        where,
        given="a network that steers a U-Net",
        expected=f"one for the transformer of {bundle.name or bundle.family}",
        cure="It was trained for a model of another family.",
    )


def check_fits(network: SteeringNetwork, bundle: ModelBundle, where: str) -> None:
    """See that a network that steers was made for a model's U-Net or transformer.

    Raises:
        IncompatibleCheckpoint: it steers another network.
    """
    pixels = bundle.vae.config.downscale
    if isinstance(network, JointControlNet):
        demands = _of_a_joint_controlnet(network, bundle, where)
    elif isinstance(network, T2IAdapter):
        demands = _of_an_adapter(network, unet_of(bundle, where).config, pixels)
    else:
        demands = _of_a_controlnet(network, unet_of(bundle, where).config, pixels)
    for what, given, expected in demands:
        if given != expected:
            raise IncompatibleCheckpoint(
                where,
                given=f"{what}: {given}",
                expected=f"{expected}, as {bundle.name or bundle.family} has",
                cure="It was trained for a model of another family.",
            )


Demands = tuple[tuple[str, object, object], ...]
"""What, as the network has it, as the model needs it."""


def _of_an_adapter(network: T2IAdapter, ours: UNetConfig, pixels: int) -> Demands:
    """A map for each level, SDXL's at half the size and with one for the middle."""
    theirs, xl = network.config, network.config.kind == "full_xl"
    return (
        ("widths", theirs.channels, (*ours.channels, *([ours.channels[-1]] if xl else []))),
        ("pixels of one latent", theirs.fold // (2 if xl else 1), pixels),
    )


def _of_a_joint_controlnet(network: JointControlNet, bundle: ModelBundle, where: str) -> Demands:
    """Sizes of latents, patches and texts; its blocks are its own, as many and as they are."""
    theirs, ours = network.config.transformer, bundle.unet.config
    if not isinstance(ours, MMDiTConfig):
        raise IncompatibleCheckpoint(
            where,
            given="a ControlNet of Stable Diffusion 3",
            expected=f"one for the U-Net of {bundle.name or bundle.family}",
            cure="It was trained for a model of another family.",
        )
    text = theirs.context_width if network.config.reads_text else ours.context_width
    return (
        ("channels of the latents", theirs.in_channels, ours.in_channels),
        ("edge of a patch", theirs.patch_size, ours.patch_size),
        ("width of the tokens", theirs.width, ours.width),
        ("width of the text", text, ours.context_width),
        ("width of the pooled text", theirs.pooled_width, ours.pooled_width),
    )


def _of_a_controlnet(network: ControlNet | ControlNetUnion, ours: UNetConfig, pixels: int) -> Demands:
    theirs = network.config.unet
    attends = any(theirs.transformer_layers) or theirs.middle_transformer_layers > 0
    return (
        ("channels of the latents", theirs.in_channels, ours.in_channels),
        ("widths", theirs.channels, ours.channels),
        ("residual blocks a level", theirs.layers_per_level, ours.layers_per_level),
        ("width of the text", theirs.context_width if attends else ours.context_width, ours.context_width),
        ("width of the pooled text", theirs.pooled_width, ours.pooled_width),
        ("pixels of one latent", network.config.downscale, pixels),
    )


@dataclass(frozen=True, slots=True)
class TimedControl:
    """A ControlNet with what it sees, and the steps at which it steers.

    Attributes:
        steering: the network and what it sees.
        start, end: shares of the steps.
        steps: of the walk.
    """

    steering: Steering
    start: float
    end: float
    steps: int

    def is_on(self, step: int) -> bool:
        """Whether it steers at a step, counted from 1, which has to lie within its share as a whole."""
        return (step - 1) / self.steps >= self.start and step / self.steps <= self.end


def steering_at(controls: Sequence[TimedControl], step: int, *, negative: bool) -> tuple[Steering, ...]:
    """What steers at a step, counted from 1, on the prompt's side or on the negative prompt's, which a guessing
    network leaves alone."""
    there = joined([one.steering for one in controls if one.is_on(step)])
    return tuple(replace(one, weight=torch.zeros_like(one.weight)) if negative and one.guess else one for one in there)


@torch.no_grad()
def timed_controls(
    bundle: ModelBundle, request: Request, hints: tuple[Image.Image, ...], steps: int
) -> tuple[TimedControl, ...]:
    """What steers one walk.

    Args:
        bundle: the model with its `controls`.
        request: with the walk's size.
        hints: the control pictures, in the request's order.
        steps: of the walk.
    """
    found = []
    for control, picture in zip(request.control, hints, strict=True):
        network = bundle.controls[control.model]
        weight = next(network.parameters())
        kinds: tuple[int, ...] = ()
        hidden = HIDDEN
        if isinstance(network, ControlNetUnion):
            kinds, hidden = (kind_of(control, network),), BLACK
        hint = hint_tensor(control, picture, request, hidden=hidden).to(weight.device, weight.dtype)
        if isinstance(network, T2IAdapter) and network.config.hint_channels == 1:
            hint = hint.mean(1, keepdim=True)
        if isinstance(network, JointControlNet):
            features: tuple[Tensor, ...] = (control_latents(network, bundle, hint, tiled=request.vae_tiling),)
        else:
            with circular(network, request.seamless):
                seen = network.embed(hint)
            features = seen if isinstance(seen, tuple) else (seen,)
        steering = Steering(network, features, torch.full((1,), control.weight), guess=control.guess, kinds=kinds)
        found.append(TimedControl(steering, control.start, control.end, steps))
    return tuple(found)


def control_latents(network: JointControlNet, bundle: ModelBundle, hint: Tensor, *, tiled: bool) -> Tensor:
    """A control picture as latents, scaled as the network was trained.

    Args:
        network: it.
        bundle: the model with its autoencoder.
        hint: [B, 3, H, W] in [0, 1].
        tiled: encode it in tiles.

    Returns:
        [B, C, h, w].

    Raises:
        InvalidInput: the encoder gives NaN or infinity even in float32.
    """
    latents = encode_tensor(bundle, hint.float() * 2 - 1, tiled=tiled)
    if network.config.zero_pooled:  # such networks see latents with the scale and without the shift
        latents = latents - bundle.vae.normalise(torch.zeros_like(latents))
    return latents.to(hint.device, hint.dtype)


KINDS: dict[str, int] = {
    "openpose": 0,
    "depth": 1,
    "softedge": 2,
    "canny": 3,
    "normal": 4,
    "segmentation": 5,
    "tile": 6,
    "inpaint": 7,
}
"""Kinds of picture in the order of xinsir's ControlNet-Union; the last two are those of the form "promax"."""


def kind_of(control: Control, network: ControlNetUnion) -> int:
    """The number of what a control picture shows: of its `control_type`, else of what its preprocessor makes.

    Raises:
        InvalidInput: that is open, or this network doesn't know the kind.
    """
    kind = control.control_type or (control.preprocessor if control.preprocessor in KINDS else None)
    known = [name for name, number in KINDS.items() if number < network.config.union_types]
    if kind in known:
        return KINDS[kind]
    raise InvalidInput(
        "control.control_type",
        given="none" if kind is None else kind,
        expected=f"what the picture shows, one of {', '.join(known)}",
        cure=f"{control.model} knows several kinds of picture: name one, as in {control.model}:FILE,control_type=canny",
    )


def hint_tensor(control: Control, picture: Image.Image, request: Request, *, hidden: float = HIDDEN) -> Tensor:
    """A control picture as a ControlNet takes it, at the request's size.

    Args:
        control: how it is prepared.
        picture: it.
        request: with the walk's size.
        hidden: what is seen in place of what `inpaint` hides.

    Returns:
        [1,3,H,W] in [0, 1], and `hidden`.
    """
    mode = control.resize_mode or request.resize_mode
    fitted = fit(picture, request.width or 0, request.height or 0, mode)
    if control.preprocessor == "inpaint":
        away = np.asarray(fitted.convert("RGBA").getchannel("A")) < OPAQUE
        colours = to_tensor(fitted.convert("RGB"), 3)[None] / 2 + 0.5
        return colours.masked_fill(torch.from_numpy(away)[None, None], hidden)
    if control.preprocessor == "canny":
        fitted = canny(on_background(fitted, "white"), control.canny_low, control.canny_high)
    elif control.preprocessor in DRAWN:
        fitted = drawn(control.preprocessor, on_background(fitted, "white"))
    # Black says nothing in a picture of edges, depth or a pose, so transparency lies on black.
    return to_tensor(on_background(fitted, "black").convert("RGB"), 3)[None] / 2 + 0.5
