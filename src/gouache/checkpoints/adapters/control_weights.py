"""Loads ControlNets, T2I-Adapters and control-LoRA: diffusers folders, single files in either naming, and whole
checkpoints that hold a ControlNet."""

from __future__ import annotations

import math
import re
from pathlib import Path

import torch
from torch import Tensor

from gouache.checkpoints.adapters.kinds import JOINT_CONTROL_QKV, Adapter, find_adapter
from gouache.checkpoints.detect import LEFT_OUT, Part, part_tensors
from gouache.checkpoints.diffusers import component_config as diffusers_config
from gouache.checkpoints.diffusers.folder import joined_header, read_json, weight_files
from gouache.checkpoints.formats.header import Header, open_header
from gouache.checkpoints.formats.safetensors import WeightSource
from gouache.checkpoints.keymaps import speller
from gouache.checkpoints.networks import LoadReport, build_on_meta, load_network, open_part
from gouache.checkpoints.shapes import (
    HEAD_WIDTH,
    Naming,
    Shapes,
    controlnet_config,
    count_of,
    hint_widths,
    no_network,
    width_at,
)
from gouache.errors import IncompatibleCheckpoint
from gouache.models.conditioning.controlnet import ControlNet
from gouache.models.conditioning.controlnet_union import ControlNetUnion
from gouache.models.conditioning.sd3_controlnet import JointControlNet
from gouache.models.conditioning.t2i_adapter import T2IAdapter
from gouache.models.configs import ControlNetConfig, JointControlNetConfig, MMDiTConfig, T2IAdapterConfig
from gouache.models.denoiser import SteeringNetwork
from gouache.models.mmdit import MMDiT
from gouache.models.unet import UNet

KIND = "controlnet"
T2I = "t2i-adapter"
JOINT_HINT = "pos_embed_input.proj.weight"
"""A tensor of every ControlNet of Stable Diffusion 3."""
# (prefix in the file, naming, a tensor that is there if the network is)
MARKS: tuple[tuple[str, Naming, str], ...] = (
    ("control_model.", "ldm", "input_hint_block.0.weight"),
    ("", "ldm", "input_hint_block.0.weight"),
    ("", "ours", "controlnet_cond_embedding.conv_in.weight"),
    ("", "ldm", JOINT_CONTROL_QKV),
    ("", "ours", JOINT_HINT),
)
BASE_MODEL = re.compile(r"^(model|first_stage_model|cond_stage_model|conditioner)\.")
"""The first ControlNets lie in whole checkpoints, beside the model that they were trained with."""
CONTROL_LORA = "lora_controlnet"
REFUSED = {"difference": "a difference to its base model"}


def control_header(path: Path) -> Header:
    """Names and shapes of a ControlNet's file, or of the weights in its folder; errors as in `open_header`."""
    return joined_header(weight_files(path)) if path.is_dir() else open_header(path)


def load_steering(
    path: Path, unet: UNet | MMDiT, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> SteeringNetwork:
    """Load whatever steers a network: a ControlNet, a ControlNet-Union, a control-LoRA or a T2I-Adapter.

    Args:
        path: a file, or a folder with config.json and weights.
        unet: the network that denoises; a control-LoRA is a difference to a U-Net.
        device: where it goes.
        dtype: the type of its numbers; None keeps the file's.

    Raises:
        IncompatibleCheckpoint: something else, a kind that can't be used, or tensors that don't fit.
        ModelNotFound, CorruptCheckpoint, UnsafeCheckpoint, UnknownFamily: as for a model.
    """
    header = control_header(path)
    if CONTROL_LORA in header.tensors:
        if not isinstance(unet, UNet):
            raise IncompatibleCheckpoint(
                str(path),
                given="a control-LoRA, a difference to a U-Net",
                expected="a ControlNet of Stable Diffusion 3",
                cure="It was trained for a model of another family.",
            )
        return load_control_lora(header, unet, device=device, dtype=dtype)
    adapter = find_adapter(header.tensors, header.metadata)
    if adapter is not None and adapter.kind == T2I:
        return load_t2i_adapter(path, device=device, dtype=dtype)
    return load_controlnet(path, device=device, dtype=dtype)


def load_controlnet(
    path: Path, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> ControlNet | ControlNetUnion | JointControlNet:
    """Load a ControlNet or ControlNet-Union for SD 1.x, 2.x, SDXL or 3; arguments and errors as in `load_steering`."""
    header = control_header(path)
    adapter = find_adapter(header.tensors, header.metadata)
    part = _part(path, header, adapter)
    _refuse_strangers(part)
    network, _ = load_network(
        part, open_part(header), adapter.family if adapter else "unknown", device=device, dtype=dtype
    )
    if not isinstance(network, ControlNet | ControlNetUnion | JointControlNet):
        raise IncompatibleCheckpoint(str(path), given=f"a {type(network).__name__}", expected="a ControlNet")
    return network


def load_t2i_adapter(path: Path, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> T2IAdapter:
    """Load a T2I-Adapter for SD 1.x or SDXL; arguments and errors as in `load_steering`."""
    header, where = control_header(path), str(path)
    adapter = find_adapter(header.tensors, header.metadata)
    if adapter is None or adapter.kind != T2I:
        raise IncompatibleCheckpoint(where, given="another kind of file", expected="a T2I-Adapter")
    prefix = "adapter." if any(name.startswith("adapter.") for name in header.tensors) else ""
    shapes = {name: info.shape for name, info in part_tensors(header.tensors, prefix).items()}
    naming: Naming = "ours" if "body.0.resnets.0.block1.weight" in shapes else "ldm"
    config = t2i_config(shapes, naming, where)
    beside = path / "config.json"
    if path.is_dir() and beside.is_file():
        config = diffusers_config.t2i_from_json(read_json(beside), config, str(beside))
    part = Part(T2I, header, prefix, naming, config)
    network, _ = load_network(part, open_part(header), adapter.family, device=device, dtype=dtype)
    if not isinstance(network, T2IAdapter):
        raise IncompatibleCheckpoint(where, given=f"a {type(network).__name__}", expected="a T2I-Adapter")
    return network


SDXL_FOLD = 16


def t2i_config(shapes: Shapes, naming: Naming, where: str) -> T2IAdapterConfig:
    """Rebuild a T2I-Adapter's config. Arguments and errors as in `unet_config`.

    The first convolution's channels are those of the picture, 3 or 1, times the square of `fold`. SDXL's adapters fold
    by 16, and have the names and shapes of the others.
    """
    light = "conv_in.weight" not in shapes
    stem = width_at(shapes, "body.0.in_conv.weight" if light else "conv_in.weight", 1, where)
    hint_channels = 1 if stem % 3 else 3
    fold = math.isqrt(stem // hint_channels)
    if hint_channels * fold**2 != stem:
        raise no_network(where, f"a T2I-Adapter with {stem} channels in", "1 or 3 times a square number")
    if naming == "ours":
        levels = max(count_of(shapes, "body.{}.resnets.0.block1.weight"), 1)
        blocks = count_of(shapes, "body.0.resnets.{}.block1.weight")
    elif light:
        levels = max(count_of(shapes, "body.{}.in_conv.weight"), 1)
        blocks = count_of(shapes, "body.0.body.{}.block1.weight")
    else:
        # One list of blocks; each level after the first begins with the one that widens, or is as long as the first.
        widens = [n for n in range(1, len(shapes)) if f"body.{n}.in_conv.weight" in shapes]
        total = count_of(shapes, "body.{}.block1.weight")
        blocks = widens[0] if widens else total
        levels = -(-total // max(blocks, 1))
    last = "body.{}.out_conv.weight" if light else "body.{}.resnets.0.block1.weight"
    last = "body.{}.block1.weight" if naming == "ldm" and not light else last
    step = blocks if naming == "ldm" and not light else 1
    return T2IAdapterConfig(
        kind="light" if light else "full_xl" if fold == SDXL_FOLD else "full",
        hint_channels=hint_channels,
        fold=fold,
        channels=tuple(width_at(shapes, last.format(step * level), 0, where) for level in range(levels)),
        blocks=blocks,
    )


@torch.no_grad()
def load_control_lora(
    header: Header, unet: UNet, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> ControlNet:
    """Put a ControlNet together of a U-Net's way down and a control-LoRA (Stability AI 2023): each matrix is the
    U-Net's plus up @ down, and what is there in full (hint, zero convolutions, norms, biases) is taken as it is.

    Args:
        header: of the file.
        unet: the U-Net; never changed.
        device, dtype: as in `load_steering`.

    Raises:
        IncompatibleCheckpoint: tensors are missing, unexpected, or don't fit the U-Net; all are listed.
    """
    where = str(header.path)
    hint_channels, widths = hint_widths({name: info.shape for name, info in header.tensors.items()}, "ldm", where)
    config = ControlNetConfig(unet=unet.config, hint_channels=hint_channels, hint_widths=widths)
    network = build_on_meta(config)
    source, spell, base = open_part(header), speller(config, "ldm"), unet.state_dict()
    report, used, state = LoadReport(), {CONTROL_LORA}, {}
    for name, empty in network.state_dict().items():
        theirs = spell(name).name
        stem = theirs.removesuffix(".weight")
        pair = (f"{stem}.up", f"{stem}.down")
        used |= {theirs, *(pair if theirs != stem else ())}
        tensor = source.read(theirs) if theirs in header.tensors else base.get(name)
        if tensor is not None and theirs not in header.tensors and theirs != stem and pair[0] in header.tensors:
            tensor = _with_product(tensor, source, *pair)
        if tensor is None:
            report.missing.append(theirs)
        elif tensor.shape != empty.shape:
            report.misshaped[theirs] = (tuple(tensor.shape), tuple(empty.shape))
        else:
            state[name] = tensor.detach().to(device=device, dtype=dtype or unet.conv_in.weight.dtype)
    report.unexpected = [name for name in header.tensors if name not in used]
    report.check(where, "ControlNet that it makes of this model's U-Net")
    network.load_state_dict(state, assign=True)
    if not isinstance(network, ControlNet):
        raise IncompatibleCheckpoint(where, given=f"a {type(network).__name__}", expected="a ControlNet")
    return network.eval()


def _with_product(tensor: Tensor, source: WeightSource, up: str, down: str) -> Tensor:
    """A weight plus up @ down, in fp32; the weight as it is where their shapes don't make its own."""
    left, right = source.read(up).float().flatten(1), source.read(down).float().flatten(1)
    if left.shape[1] != right.shape[0] or (len(left), right.shape[1]) != (len(tensor), tensor[0].numel()):
        return left.new_empty(len(left), right.shape[1])  # is listed as of another shape
    return tensor.float() + (left @ right).reshape(tensor.shape).to(tensor.device)


def _part(path: Path, header: Header, adapter: Adapter | None) -> Part:
    where = str(path)
    if adapter is None or adapter.kind != KIND:
        given = "another kind of file" if adapter is None else f"a {adapter.kind}, {adapter.label}"
        raise IncompatibleCheckpoint(where, given=given, expected="a ControlNet")
    for mark, what in REFUSED.items():
        if mark in header.tensors:
            raise IncompatibleCheckpoint(
                where, given=what, expected="a ControlNet of its own", cure="Get the full network."
            )
    for prefix, naming, mark in MARKS:
        if prefix + mark in header.tensors:
            shapes = {name: info.shape for name, info in part_tensors(header.tensors, prefix).items()}
            beside = path / "config.json"
            told = read_json(beside) if path.is_dir() and beside.is_file() else None
            config: ControlNetConfig | JointControlNetConfig
            if JOINT_HINT in shapes:
                config = joint = joint_controlnet_config(shapes, where)
                if told is not None:
                    config = diffusers_config.joint_controlnet_from_json(told, joint, str(beside))
            else:
                config = counted = controlnet_config(shapes, naming, where)
                if told is not None:
                    config = diffusers_config.controlnet_from_json(told, counted, str(beside))
            return Part(KIND, header, prefix, naming, config)
    raise IncompatibleCheckpoint(where, given=adapter.label, expected="a ControlNet with its own hint convolutions")


def joint_controlnet_config(shapes: Shapes, where: str) -> JointControlNetConfig:
    """Rebuild the config of a ControlNet of Stable Diffusion 3. Arguments and errors as in `unet_config`.

    How it was trained leaves no trace in shapes: those that look at the text were published as trained with zeros for
    the pooled text (InstantX), those that don't (Stability AI's for 3.5 large) with the prompt's.
    """
    own, reads = "pos_embed.proj.weight" in shapes, "context_embedder.weight" in shapes
    width, norm = width_at(shapes, JOINT_HINT, 0, where), "transformer_blocks.0.attn.norm_q.weight"
    latents = width_at(shapes, "pos_embed.proj.weight" if own else JOINT_HINT, 1, where)
    hint = width_at(shapes, JOINT_HINT, 1, where)
    if hint != latents:
        raise no_network(
            where,
            f"a ControlNet with {hint - latents} channels beside the picture's latents",
            "one without, for control",
        )
    layers = count_of(shapes, "controlnet_blocks.{}.weight")
    head_width = shapes[norm][0] if norm in shapes else math.gcd(HEAD_WIDTH, width)
    places = {"grid": math.isqrt(width_at(shapes, "pos_embed.pos_embed", 1, where))} if own else {}
    text = {"context_width": width_at(shapes, "context_embedder.weight", 1, where)} if reads else {}
    second = "transformer_blocks.{}.attn2.to_q.weight"
    transformer = MMDiTConfig.from_dict(
        {
            "in_channels": latents,
            "out_channels": latents,
            "patch_size": width_at(shapes, JOINT_HINT, 2, where),
            "layers": layers,
            "heads": width // head_width,
            "head_width": head_width,
            "pooled_width": width_at(shapes, "time_text_embed.text_embedder.linear_1.weight", 1, where),
            "qk_norm": norm in shapes,
            "dual_layers": tuple(layer for layer in range(layers) if second.format(layer) in shapes),
            **places,
            **text,
        },
        where=where,
    )
    return JointControlNetConfig(transformer=transformer, reads_text=reads, own_places=own, zero_pooled=reads)


def _refuse_strangers(part: Part) -> None:
    """Beside the network only the model that it was trained with may stand in its file."""
    if part.prefix:
        strange = [name for name in part.header.tensors if not name.startswith(part.prefix) and not _is_base(name)]
        LoadReport(unexpected=strange).check(str(part.header.path), "ControlNet")


def _is_base(name: str) -> bool:
    return bool(BASE_MODEL.match(name)) or any(pattern.search(name) for pattern, _ in LEFT_OUT)
