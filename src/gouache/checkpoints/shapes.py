"""Networks' configs, rebuilt by counting the blocks that a file's tensor names and shapes show.

Counting, instead of matching a table of known models, lets reduced networks load too (fewer levels, fewer blocks,
other widths). Two things leave no trace in names and shapes: how many heads an attention has, and how many groups a
group norm has. Where no config beside the weights tells them, the published families' rules are taken.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Literal

from gouache.errors import UnknownFamily
from gouache.models.configs import (
    ControlNetConfig,
    MMDiTConfig,
    NetworkConfig,
    T5Config,
    TextEncoderConfig,
    UNetConfig,
    VAEConfig,
)

Shapes = Mapping[str, tuple[int, ...]]
"""Tensor name -> shape, for one network, without the prefix that the network has in its file."""

Naming = Literal["ours", "ldm", "old_diffusers", "clip_model", "open_clip"]
"""Whose names a network's tensors have in a file.

`ours`: diffusers' for the U-Net and the autoencoder, transformers' (5.x) for the text encoder. `ldm`: CompVis's single
files, and Stability's of Stable Diffusion 3. `old_diffusers`: an autoencoder's attention before diffusers 0.14.
`clip_model`: a text encoder under ``text_model.``, as published folders and single files have it. `open_clip`:
OpenCLIP's, with one matrix for queries, keys and values.
"""


class ShapeChange(Enum):
    """What happens to a tensor's numbers on the way from their file to our network."""

    NONE = auto()
    """Nothing."""
    POINTWISE = auto()
    """Theirs may be a 1x1 convolution [C, C, 1, 1] where ours is linear [C, C]."""
    TRANSPOSED = auto()
    """Theirs is ours transposed."""
    HALVES_SWAPPED = auto()
    """Their first half of the rows is our second: shift and scale of Stable Diffusion 3's last layers."""
    IDENTITY = auto()
    """Ours is the identity, in the type of theirs."""
    FIRST_THIRD = auto()
    SECOND_THIRD = auto()
    LAST_THIRD = auto()
    """Ours is one third of their rows (queries, keys, values in one matrix)."""


THIRDS = (ShapeChange.FIRST_THIRD, ShapeChange.SECOND_THIRD, ShapeChange.LAST_THIRD)


@dataclass(frozen=True, slots=True)
class Spelling:
    """What a file calls one of our tensors, and how it holds it."""

    name: str
    change: ShapeChange = ShapeChange.NONE


Speller = Callable[[str], Spelling]
"""Our tensor's name -> the file's name and layout of it, both without the network's prefix."""

POINTWISE = re.compile(r"(?!.*norm).*\.attentions\..*\.weight$")
"""Matrices of an autoencoder's attention, which old files hold as 1x1 convolutions."""

HEAD_WIDTH = 64
"""Width of a head in SD 2.x, SDXL and every CLIP text encoder."""
SD1_HEADS = 8
SD2_CONTEXT = 1024
NORM_GROUPS = 32
TINY_VAE = "decoder.layers.0.weight"


@dataclass(frozen=True, slots=True)
class _Counted:
    """What the names of a U-Net show: (width, transformer depth) of every residual block, level by level."""

    down: list[list[tuple[int, int]]]
    up: list[list[int]]
    middle_resnets: int
    middle_depth: int


def unet_config(shapes: Shapes, naming: Naming, where: str) -> UNetConfig:
    """Rebuild a U-Net's config.

    Args:
        shapes: the U-Net's tensors.
        naming: ``"ldm"`` or ``"ours"``.
        where: the file, for errors.

    Raises:
        UnknownFamily: the blocks don't make a U-Net of the kind that gouache knows.
    """
    counted = _count_ldm(shapes) if naming == "ldm" else _count_diffusers(shapes)
    _check_counts(counted, where)
    down = _way_down(counted, shapes, naming, where)
    head = "out.2.weight" if naming == "ldm" else "conv_out.weight"
    stem_width, out_channels = down.in_channels, width_at(shapes, head, 0, where)
    # A network that predicts variances too has twice as many outputs as latents, never fewer inputs than latents.
    latents = out_channels if stem_width >= out_channels else stem_width
    plain_up = [[depth] * len(row) for depth, row in zip(reversed(down.transformer_layers), counted.up, strict=True)]
    up = None if counted.up == plain_up else tuple(tuple(row) for row in counted.up)
    return UNetConfig.from_dict(
        {
            **down.model_dump(),
            "in_channels": latents,
            "draft_channels": stem_width - latents,
            "out_channels": out_channels,
            "up_transformer_layers": up,
        },
        where=where,
    )


MMDIT: dict[Naming, str] = {"ldm": "joint_blocks.0.x_block.attn.qkv.weight", "ours": "pos_embed.pos_embed"}
"""A tensor that only a network of Stable Diffusion 3 has."""


def network_config(shapes: Shapes, naming: Naming, where: str) -> NetworkConfig:
    """Rebuild the config of a network that denoises, U-Net or MMDiT. Arguments and errors as in `unet_config`."""
    return mmdit_config(shapes, naming, where) if MMDIT.get(naming) in shapes else unet_config(shapes, naming, where)


def mmdit_config(shapes: Shapes, naming: Naming, where: str) -> MMDiTConfig:
    """Rebuild an MMDiT's config. Arguments and errors as in `unet_config`."""
    block, norm, second, places, patch, pooled, last = (
        (
            "joint_blocks.{}.x_block.attn.qkv.weight",
            "joint_blocks.0.x_block.attn.ln_q.weight",
            "joint_blocks.{}.x_block.attn2.qkv.weight",
            "pos_embed",
            "x_embedder.proj.weight",
            "y_embedder.mlp.0.weight",
            "final_layer.linear.weight",
        )
        if naming == "ldm"
        else (
            "transformer_blocks.{}.attn.to_q.weight",
            "transformer_blocks.0.attn.norm_q.weight",
            "transformer_blocks.{}.attn2.to_q.weight",
            "pos_embed.pos_embed",
            "pos_embed.proj.weight",
            "time_text_embed.text_embedder.linear_1.weight",
            "proj_out.weight",
        )
    )
    width, patch_size = width_at(shapes, patch, 0, where), width_at(shapes, patch, 2, where)
    layers = count_of(shapes, block)
    head_width = shapes[norm][0] if norm in shapes else math.gcd(HEAD_WIDTH, width)
    found = {
        "in_channels": width_at(shapes, patch, 1, where),
        "out_channels": width_at(shapes, last, 0, where) // patch_size**2,
        "patch_size": patch_size,
        "layers": layers,
        "heads": width // head_width,
        "head_width": head_width,
        "context_width": width_at(shapes, "context_embedder.weight", 1, where),
        "pooled_width": width_at(shapes, pooled, 1, where),
        "grid": math.isqrt(width_at(shapes, places, 1, where)),
        "qk_norm": norm in shapes,
        "dual_layers": tuple(layer for layer in range(layers) if second.format(layer) in shapes),
    }
    return MMDiTConfig.from_dict(found, where=where)


def controlnet_config(shapes: Shapes, naming: Naming, where: str) -> ControlNetConfig:
    """Rebuild a ControlNet's config, and with it that of the way down of its U-Net. Arguments as in `unet_config`."""
    counted = _count_ldm(shapes) if naming == "ldm" else _count_diffusers(shapes)
    _check_way_down(counted, where)
    if not counted.middle_resnets:
        raise no_network(where, "a ControlNet without a middle", "one with residual blocks there")
    hint_channels, widths = hint_widths(shapes, naming, where)
    return ControlNetConfig(
        unet=_way_down(counted, shapes, naming, where),
        hint_channels=hint_channels,
        hint_widths=widths,
        union_types=shapes.get("task_embedding", (0,))[0],
        union_layers=max(1, count_of(shapes, "transformer_layes.{}.ln_1.weight")),
    )


def hint_widths(shapes: Shapes, naming: Naming, where: str) -> tuple[int, tuple[int, ...]]:
    """Channels of the control picture, and widths of the convolutions that it goes through."""
    if naming == "ldm":
        hint = [f"input_hint_block.{2 * i}.weight" for i in range(count_of(shapes, "input_hint_block.{}.weight", 2))]
    else:
        inner = range(count_of(shapes, "controlnet_cond_embedding.blocks.{}.weight"))
        hint = [
            f"controlnet_cond_embedding.{part}.weight"
            for part in ("conv_in", *(f"blocks.{i}" for i in inner), "conv_out")
        ]
    # One convolution into the first width, then pairs of which the second widens, then one into the U-Net's width.
    return width_at(shapes, hint[0], 1, where), tuple(width_at(shapes, name, 0, where) for name in hint[:-1:2])


def _way_down(counted: _Counted, shapes: Shapes, naming: Naming, where: str) -> UNetConfig:
    """The config as far as stem, way down and middle show it; `in_channels` are all that enter."""
    stem, pooled = (
        ("input_blocks.0.0.weight", "label_emb.0.0.weight")
        if naming == "ldm"
        else ("conv_in.weight", "add_embedding.linear_1.weight")
    )
    own = "class_embedding.linear_1.weight"
    pooled = own if naming == "ours" and own in shapes else pooled
    channels = tuple(level[0][0] for level in counted.down)
    rows = tuple(tuple(depth for _, depth in level) for level in counted.down)
    told = "time_embed.cond_proj.weight" if naming == "ldm" else "time_embedding.cond_proj.weight"
    linear = len(_first(shapes, ".proj_in.weight")) == 2
    levels = shapes.get("label_emb.weight" if naming == "ldm" else "class_embedding.weight", (0,))[0]
    context_width = (_first(shapes, ".attn2.to_k.weight") or (0, UNetConfig().context_width))[1]
    return UNetConfig(
        in_channels=width_at(shapes, stem, 1, where),
        channels=channels,
        layers_per_level=len(counted.down[0]),
        transformer_layers=tuple(row[0] for row in rows),
        down_transformer_layers=rows if any(len(set(row)) > 1 for row in rows) else None,
        middle_layers=counted.middle_resnets,
        middle_transformer_layers=counted.middle_depth,
        heads=unet_heads(channels, linear=linear and not levels),
        context_width=context_width,
        only_cross_attention=_crossing(shapes, naming, counted, context_width) if levels else (),
        linear_projection=linear,
        guidance_width=shapes[told][1] if told in shapes else 0,
        pooled_width=shapes[pooled][1] if pooled in shapes else 0,
        picture_width=shapes[pooled][1] // 2
        if pooled in shapes and (pooled == own or context_width == SD2_CONTEXT)
        else 0,
        noise_levels=levels,
        norm_groups=norm_groups(channels),
    )


def _crossing(shapes: Shapes, naming: Naming, counted: _Counted, context_width: int) -> tuple[bool, ...]:
    """Levels of the x4 upscaler whose first attention looks at the text, by the width of its keys' input; where that is
    the level's own width too, it looks at the level, as the published network's does."""
    found, number = [], 1
    for level, blocks in enumerate(counted.down):
        place = f"input_blocks.{number}.1" if naming == "ldm" else f"down_blocks.{level}.attentions.0"
        keys = shapes.get(f"{place}.transformer_blocks.0.attn1.to_k.weight", (0, 0))
        found.append(keys[1] == context_width != keys[0])
        number += len(blocks) + 1
    return tuple(found) if any(found) else ()


def unet_heads(channels: tuple[int, ...], *, linear: bool) -> tuple[int, ...]:
    """Heads by level: 8 in SD 1.x; as many as give heads of width 64 in SD 2.x and SDXL (linear projections)."""
    return tuple(_heads_of_width(width) if linear else math.gcd(SD1_HEADS, width) for width in channels)


def norm_groups(channels: tuple[int, ...]) -> int:
    """32 groups, or as many as divide every width of a very small network."""
    return math.gcd(NORM_GROUPS, *channels)


def vae_config(shapes: Shapes, naming: Naming, where: str) -> VAEConfig:
    """Rebuild an autoencoder's config, but for the scale of its latents. Arguments and errors as in `unet_config`."""
    if TINY_VAE in shapes:
        return _tiny_vae_config(shapes, where)
    level, block, attention = (
        ("encoder.down.{}", "block", "encoder.mid.attn_1.norm.weight")
        if naming == "ldm"
        else ("encoder.down_blocks.{}", "resnets", "encoder.mid_block.attentions.0.group_norm.weight")
    )
    channels: list[int] = []
    layers: set[int] = set()
    while f"{level.format(len(channels))}.{block}.0.conv1.weight" in shapes:
        prefix = level.format(len(channels))
        layers.add(count_of(shapes, prefix + f".{block}.{{}}.conv1.weight"))
        channels.append(shapes[f"{prefix}.{block}.0.conv1.weight"][0])
    if len(layers) != 1:
        raise no_network(where, f"an autoencoder with {sorted(layers)} residual blocks a level", "the same on each")
    down_layers = layers.pop()
    up_channels, up_layers = _decoder_levels(shapes, naming)
    if len(up_channels) != len(channels):  # tensors are missing, and will be listed
        up_channels, up_layers = tuple(channels), down_layers + 1
    return VAEConfig(
        image_channels=width_at(shapes, "encoder.conv_in.weight", 1, where),
        latent_channels=width_at(shapes, "encoder.conv_out.weight", 0, where) // 2,
        channels=tuple(channels),
        layers_per_level=down_layers,
        decoder_channels=() if up_channels == tuple(channels) else up_channels,
        decoder_layers=0 if up_layers == down_layers + 1 else up_layers,
        norm_groups=norm_groups((*channels, *up_channels)),
        middle_attention=attention in shapes,
        mask_condition="decoder.condition_encoder.layers.0.weight" in shapes,
        quant_conv="quant_conv.weight" in shapes,
    )


def _decoder_levels(shapes: Shapes, naming: Naming) -> tuple[tuple[int, ...], int]:
    """Widths of a decoder's levels, finest first, and residual blocks of each; () and 0 where there are none."""
    name, order = ("decoder.up.{}.block.{}", 1) if naming == "ldm" else ("decoder.up_blocks.{}.resnets.{}", -1)
    name += ".conv1.weight"
    levels = 0
    while name.format(levels, 0) in shapes:
        levels += 1
    widths = tuple(shapes[name.format(level, 0)][0] for level in range(levels))
    return widths[::order], max((count_of(shapes, name.format(level, "{}")) for level in range(levels)), default=0)


def tiny_blocks(shapes: Shapes, prefix: str, first: int) -> list[int]:
    """Blocks of each level of half a tiny autoencoder: what stands between its convolutions from layer `first` on."""
    levels = [0]
    last = max((int(name[len(prefix) :].split(".")[0]) for name in shapes if name.startswith(prefix)), default=0)
    for place in range(first, last):
        if f"{prefix}{place}.conv.0.weight" in shapes:
            levels[-1] += 1
        elif f"{prefix}{place}.weight" in shapes:
            levels.append(0)
    return levels


def _tiny_vae_config(shapes: Shapes, where: str) -> VAEConfig:
    blocks = {half: tiny_blocks(shapes, f"{half}.layers.", first) for half, first in (("encoder", 1), ("decoder", 2))}
    if len(blocks["encoder"]) != len(blocks["decoder"]):
        raise no_network(where, f"a tiny autoencoder with levels {blocks}", "as many in the encoder as in the decoder")
    return VAEConfig(
        image_channels=width_at(shapes, "encoder.layers.0.weight", 1, where),
        latent_channels=width_at(shapes, TINY_VAE, 1, where),
        channels=(width_at(shapes, TINY_VAE, 0, where),) * len(blocks["encoder"]),
        norm_groups=1,
        middle_attention=False,
        quant_conv=False,
        scale=1.0,
        tiny_blocks=(tuple(blocks["encoder"]), tuple(blocks["decoder"])),
    )


def text_config(shapes: Shapes, naming: Naming, where: str) -> TextEncoderConfig:
    """Rebuild a CLIP text encoder's config (all its layers, last state, final norm). Arguments as in `unet_config`.

    OpenCLIP's encoders (ViT-H, bigG) have gelu and pad with token 0, OpenAI's have quick_gelu and pad with the end.
    """
    tokens, places, inner, projection = _TEXT_NAMES[naming]
    width = width_at(shapes, tokens, 1, where)
    open_clip = naming == "open_clip" or width >= 1024
    projected = shapes.get(projection)
    return TextEncoderConfig(
        vocabulary_size=width_at(shapes, tokens, 0, where),
        width=width,
        inner_width=width_at(shapes, inner.format(0), 0, where),
        layers=count_of(shapes, inner),
        heads=_heads_of_width(width),
        positions=width_at(shapes, places, 0, where),
        activation="gelu" if open_clip else "quick_gelu",
        projection_width=0 if projected is None else projected[1 if naming == "open_clip" else 0],
        pad_id=0 if open_clip else TextEncoderConfig().pad_id,
    )


_CLIP_NAMES = (
    "embeddings.token_embedding.weight",
    "embeddings.position_embedding.weight",
    "encoder.layers.{}.mlp.fc1.weight",
)
_TEXT_NAMES: dict[Naming, tuple[str, ...]] = {
    "ours": (*_CLIP_NAMES, "text_projection.weight"),
    "clip_model": (*(f"text_model.{name}" for name in _CLIP_NAMES), "text_projection.weight"),
    "open_clip": (
        "token_embedding.weight",
        "positional_embedding",
        "transformer.resblocks.{}.mlp.c_fc.weight",
        "text_projection",
    ),
}


T5_BIAS = "encoder.block.{}.layer.0.SelfAttention.relative_attention_bias.weight"
"""T5's table of biases, which only its first layer has."""


def t5_config(shapes: Shapes, where: str) -> T5Config:
    """Rebuild the config of T5's encoder. Arguments and errors as in `unet_config`."""
    attention, inner = "encoder.block.{}.layer.0.SelfAttention", "encoder.block.0.layer.1.DenseReluDense.{}.weight"
    if inner.format("wi") in shapes or T5_BIAS.format(1) in shapes:
        other = "T5 1.0" if inner.format("wi") in shapes else "UMT5"
        raise no_network(where, other, "T5 1.1, whose feed-forward networks are gated")
    buckets, heads = (width_at(shapes, T5_BIAS.format(0), axis, where) for axis in (0, 1))
    return T5Config(
        vocabulary_size=width_at(shapes, "shared.weight", 0, where),
        width=width_at(shapes, "shared.weight", 1, where),
        inner_width=width_at(shapes, inner.format("wi_0"), 0, where),
        layers=count_of(shapes, attention + ".q.weight"),
        heads=heads,
        head_width=width_at(shapes, attention.format(0) + ".q.weight", 0, where) // heads,
        buckets=buckets,
    )


TOKEN_EMBEDDING: dict[Naming, str] = {naming: names[0] for naming, names in _TEXT_NAMES.items()}
"""What a text encoder's table of tokens is called."""


def _heads_of_width(width: int) -> int:
    """Heads of width 64; a network narrower than that has one head, or as many as divide its width."""
    return math.gcd(max(1, width // HEAD_WIDTH), width)


def _count_ldm(shapes: Shapes) -> _Counted:
    down: list[list[tuple[int, int]]] = [[]]
    for n in range(1, len(shapes) + 1):
        block = shapes.get(f"input_blocks.{n}.0.out_layers.3.weight")
        if block:
            down[-1].append((block[0], _depth(shapes, f"input_blocks.{n}.1")))
        elif f"input_blocks.{n}.0.op.weight" in shapes:
            down.append([])
        else:
            break
    up: list[list[int]] = [[]]
    for n in range(count_of(shapes, "output_blocks.{}.0.out_layers.3.weight")):
        up[-1].append(_depth(shapes, f"output_blocks.{n}.1"))
        if f"output_blocks.{n}.1.conv.weight" in shapes or f"output_blocks.{n}.2.conv.weight" in shapes:
            up.append([])
    middle = sum(f"middle_block.{i}.out_layers.3.weight" in shapes for i in (0, 2))
    return _Counted(down, up, middle, _depth(shapes, "middle_block.1"))


def _count_diffusers(shapes: Shapes) -> _Counted:
    def level(prefix: str) -> list[tuple[int, int]]:
        resnets = count_of(shapes, prefix + ".resnets.{}.conv1.weight")
        return [
            (shapes[f"{prefix}.resnets.{i}.conv1.weight"][0], _depth(shapes, f"{prefix}.attentions.{i}"))
            for i in range(resnets)
        ]

    return _Counted(
        down=[level(f"down_blocks.{b}") for b in range(count_of(shapes, "down_blocks.{}.resnets.0.conv1.weight"))],
        up=[
            [depth for _, depth in level(f"up_blocks.{b}")]
            for b in range(count_of(shapes, "up_blocks.{}.resnets.0.conv1.weight"))
        ],
        middle_resnets=count_of(shapes, "mid_block.resnets.{}.conv1.weight"),
        middle_depth=_depth(shapes, "mid_block.attentions.0"),
    )


def _check_counts(counted: _Counted, where: str) -> None:
    _check_way_down(counted, where)
    if [len(row) for row in counted.up] != [len(counted.down[0]) + 1] * len(counted.down):
        raise no_network(
            where, f"{[len(row) for row in counted.up]} residual blocks on the way up", "one more a level than down"
        )


def _check_way_down(counted: _Counted, where: str) -> None:
    blocks = {len(level) for level in counted.down}
    if not counted.down[0:1] or len(blocks) != 1 or 0 in blocks:
        raise no_network(
            where, f"{[len(level) for level in counted.down]} residual blocks on the way down", "as many on each level"
        )
    for level in counted.down:
        depths = {depth for _, depth in level}
        if len({width for width, _ in level}) != 1 or (0 in depths and len(depths) > 1):
            expected = "one width within a level, and transformers behind all of its blocks or none"
            raise no_network(where, f"a level with blocks (width, depth) {level}", expected)


def no_network(where: str, given: str, expected: str) -> UnknownFamily:
    """The error for blocks that make no network of a known kind."""
    return UnknownFamily(where, given=given, expected=expected, cure="This reduced network is of no kind gouache runs.")


def _depth(shapes: Shapes, prefix: str) -> int:
    """Transformer blocks under a prefix."""
    return count_of(shapes, prefix + ".transformer_blocks.{}.norm1.weight")


def count_of(shapes: Shapes, pattern: str, stride: int = 1) -> int:
    """How many of the names that `pattern` makes with 0, 1, 2 ... (times `stride`) are there without a gap."""
    n = 0
    while pattern.format(n * stride) in shapes:
        n += 1
    return n


def _first(shapes: Shapes, suffix: str) -> tuple[int, ...]:
    """The shape of the first tensor whose name ends so, or ()."""
    return next((shape for name, shape in shapes.items() if name.endswith(suffix)), ())


def width_at(shapes: Shapes, name: str, axis: int, where: str) -> int:
    """How long an axis of a tensor is; `UnknownFamily` where the tensor isn't there or has no such axis."""
    shape = shapes.get(name, ())
    if len(shape) <= axis or not shape[axis]:
        raise no_network(
            where, f"{name} of shape {list(shape)}" if name in shapes else f"no {name}", "one with channels"
        )
    return shape[axis]
