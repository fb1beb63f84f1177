"""Tables between the names of our networks (those of diffusers folders) and the names of single files.

Each table is declared once, from our names to theirs; it serves both directions, since reading asks for every name
of ours, and writing goes through the same list. Names of tensors are translated by module: the longest prefix that
the table knows is replaced, what stands behind it stays.
"""

from __future__ import annotations

from collections.abc import Mapping

from gouache.checkpoints.shapes import POINTWISE, THIRDS, Naming, ShapeChange, Speller, Spelling
from gouache.config import Config
from gouache.models.configs import (
    ControlNetConfig,
    ImageEncoderConfig,
    JointControlNetConfig,
    MMDiTConfig,
    T2IAdapterConfig,
    UNetConfig,
    VAEConfig,
)

Table = Mapping[str, str]
"""Our module's name -> theirs."""

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET_ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "time_embedding.cond_proj": "time_embed.cond_proj",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "class_embedding.linear_1": "label_emb.0.0",
    "class_embedding.linear_2": "label_emb.0.2",
    "class_embedding": "label_emb",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.attentions.0": "middle_block.1",
}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
OLD_VAE_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
OPEN_CLIP_TENSORS = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}


def unet_table(config: UNetConfig) -> Table:
    """Our U-Net's modules and CompVis's, for any number of levels and blocks.

    Their blocks are numbered through: on the way down each residual block and each change of resolution has a number,
    on the way up a change of resolution stands behind the last residual block of its level.
    """
    table = dict(UNET_ENDS)
    for i, theirs in enumerate(("middle_block.0", "middle_block.2")[: config.middle_layers]):
        table |= _under(f"mid_block.resnets.{i}", theirs, RESNET)
    number = 1
    for level in range(len(config.channels)):
        for i in range(config.layers_per_level):
            table |= _under(f"down_blocks.{level}.resnets.{i}", f"input_blocks.{number}.0", RESNET)
            table[f"down_blocks.{level}.attentions.{i}"] = f"input_blocks.{number}.1"
            number += 1
        table[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{number}.0.op"
        number += 1
    number = 0
    for level, depths in enumerate(config.up_depths()):
        for i in range(len(depths)):
            table |= _under(f"up_blocks.{level}.resnets.{i}", f"output_blocks.{number}.0", RESNET)
            table[f"up_blocks.{level}.attentions.{i}"] = f"output_blocks.{number}.1"
            number += 1
        place = 2 if any(depths) else 1
        table[f"up_blocks.{level}.upsamplers.0.conv"] = f"output_blocks.{number - 1}.{place}.conv"
    return table


MMDIT_ENDS = {
    "pos_embed.proj": "x_embedder.proj",
    "pos_embed.pos_embed": "pos_embed",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "proj_out": "final_layer.linear",
}
JOINT_BLOCK = {
    "norm1.linear": "x_block.adaLN_modulation.1",
    "norm1_context.linear": "context_block.adaLN_modulation.1",
    "attn.norm_q": "x_block.attn.ln_q",
    "attn.norm_k": "x_block.attn.ln_k",
    "attn.norm_added_q": "context_block.attn.ln_q",
    "attn.norm_added_k": "context_block.attn.ln_k",
    "attn.to_out.0": "x_block.attn.proj",
    "attn.to_add_out": "context_block.attn.proj",
    "attn2.norm_q": "x_block.attn2.ln_q",
    "attn2.norm_k": "x_block.attn2.ln_k",
    "attn2.to_out.0": "x_block.attn2.proj",
    "ff.net.0.proj": "x_block.mlp.fc1",
    "ff.net.2": "x_block.mlp.fc2",
    "ff_context.net.0.proj": "context_block.mlp.fc1",
    "ff_context.net.2": "context_block.mlp.fc2",
}
JOINT_THIRDS = {
    "attn.to_q": ("x_block.attn.qkv", ShapeChange.FIRST_THIRD),
    "attn.to_k": ("x_block.attn.qkv", ShapeChange.SECOND_THIRD),
    "attn.to_v": ("x_block.attn.qkv", ShapeChange.LAST_THIRD),
    "attn.add_q_proj": ("context_block.attn.qkv", ShapeChange.FIRST_THIRD),
    "attn.add_k_proj": ("context_block.attn.qkv", ShapeChange.SECOND_THIRD),
    "attn.add_v_proj": ("context_block.attn.qkv", ShapeChange.LAST_THIRD),
    "attn2.to_q": ("x_block.attn2.qkv", ShapeChange.FIRST_THIRD),
    "attn2.to_k": ("x_block.attn2.qkv", ShapeChange.SECOND_THIRD),
    "attn2.to_v": ("x_block.attn2.qkv", ShapeChange.LAST_THIRD),
}


def spell_joint(name: str, layers: int) -> Spelling:
    """What a single file calls a tensor of an MMDiT of so many blocks.

    Queries, keys and values are one matrix there. The scale and shift behind the last blocks stand the other way round.
    """
    module, _, kind = name.rpartition(".")
    if not name.startswith("transformer_blocks."):
        ends = ShapeChange.HALVES_SWAPPED if module == "norm_out.linear" else ShapeChange.NONE
        return Spelling(_translate(name, MMDIT_ENDS), ends)
    _, layer, inner = module.split(".", 2)
    swapped = inner == "norm1_context.linear" and int(layer) == layers - 1
    plain = (JOINT_BLOCK.get(inner, inner), ShapeChange.HALVES_SWAPPED if swapped else ShapeChange.NONE)
    theirs, change = JOINT_THIRDS.get(inner, plain)
    return Spelling(f"joint_blocks.{layer}.{theirs}.{kind}", change)


def spell_joint_controlnet(name: str) -> Spelling:
    """What Stability AI's files call a tensor of a ControlNet for 3.5 large: its blocks alone have other names."""
    module, _, kind = name.rpartition(".")
    if not name.startswith("transformer_blocks."):
        return Spelling(name)
    _, layer, inner = module.split(".", 2)
    theirs, change = JOINT_THIRDS.get(inner, (JOINT_BLOCK.get(inner, inner), ShapeChange.NONE))
    return Spelling(f"transformer_blocks.{layer}.{theirs.removeprefix('x_block.')}.{kind}", change)


def controlnet_table(config: ControlNetConfig) -> Table:
    """Our ControlNet's modules and its authors': a U-Net's way down, the hint's convolutions, and one for each map."""
    table = dict(unet_table(config.unet))
    hint, blocks = "controlnet_cond_embedding", 2 * (len(config.hint_widths) - 1)
    table[f"{hint}.conv_in"] = "input_hint_block.0"
    table |= {f"{hint}.blocks.{i}": f"input_hint_block.{2 * i + 2}" for i in range(blocks)}
    table[f"{hint}.conv_out"] = f"input_hint_block.{2 * blocks + 2}"
    maps = len(config.unet.channels) * (config.unet.layers_per_level + 1)
    table |= {f"controlnet_down_blocks.{i}": f"zero_convs.{i}.0" for i in range(maps)}
    return {**table, "controlnet_mid_block": "middle_block_out.0"}


def t2i_table(config: T2IAdapterConfig) -> Table:
    """Our T2I-Adapter's modules and its authors', who number all blocks of a full one in one list."""
    table = {}
    for level in range(len(config.channels)):
        if config.kind == "light":
            table[f"body.{level}.resnets"] = f"body.{level}.body"
            continue
        table[f"body.{level}.in_conv"] = f"body.{level * config.blocks}.in_conv"
        table |= {f"body.{level}.resnets.{i}": f"body.{level * config.blocks + i}" for i in range(config.blocks)}
    return table


def vae_table(config: VAEConfig) -> Table:
    """Our autoencoder's modules and CompVis's, which numbers the decoder's levels from the finest, not the coarsest."""
    table = {}
    last = len(config.channels) - 1
    for half, ours, theirs, change in (
        ("encoder", "down_blocks", "down", "downsample"),
        ("decoder", "up_blocks", "up", "upsample"),
    ):
        table[f"{half}.conv_norm_out"] = f"{half}.norm_out"
        for i in (0, 1):
            table |= _under(f"{half}.mid_block.resnets.{i}", f"{half}.mid.block_{i + 1}", VAE_RESNET)
        table |= _under(f"{half}.mid_block.attentions.0", f"{half}.mid.attn_1", VAE_ATTENTION)
        for level in range(last + 1):
            their_level = f"{half}.{theirs}.{level if half == 'encoder' else last - level}"
            for i in range(config.layers_per_level + (half == "decoder")):
                table |= _under(f"{half}.{ours}.{level}.resnets.{i}", f"{their_level}.block.{i}", VAE_RESNET)
            table[f"{half}.{ours}.{level}.{change}rs.0.conv"] = f"{their_level}.{change}.conv"
    return table


VAE_RESNET = {"norm1": "norm1", "conv1": "conv1", "norm2": "norm2", "conv2": "conv2", "conv_shortcut": "nin_shortcut"}


def speller(config: Config, naming: Naming) -> Speller:
    """How a file of the given naming calls the tensors of the network with this config."""
    if naming == "open_clip":
        return spell_open_clip_tower if isinstance(config, ImageEncoderConfig) else spell_open_clip
    if naming == "clip_model":
        return lambda name: Spelling(name if name == "text_projection.weight" else f"text_model.{name}")
    if isinstance(config, UNetConfig) and naming == "ldm":
        table = unet_table(config)
        return lambda name: Spelling(_translate(name, table))
    if isinstance(config, MMDiTConfig) and naming == "ldm":
        return lambda name: spell_joint(name, config.layers)
    if isinstance(config, ControlNetConfig) and naming == "ldm":
        table = controlnet_table(config)
        return lambda name: Spelling(_translate(name, table))
    if isinstance(config, JointControlNetConfig) and naming == "ldm":
        return spell_joint_controlnet
    if isinstance(config, T2IAdapterConfig) and naming == "ldm":
        table = t2i_table(config)
        return lambda name: Spelling(_translate(name, table))
    if isinstance(config, VAEConfig):
        table = {"ldm": vae_table(config), "old_diffusers": _old_vae_table()}.get(naming, {})
        return lambda name: Spelling(
            _translate(name, table), ShapeChange.POINTWISE if POINTWISE.match(name) else ShapeChange.NONE
        )
    return Spelling


def _old_vae_table() -> Table:
    table: dict[str, str] = {}
    for half in ("encoder", "decoder"):
        attention = f"{half}.mid_block.attentions.0"
        table |= _under(attention, attention, OLD_VAE_ATTENTION)
    return table


def spell_open_clip(name: str) -> Spelling:
    """What an OpenCLIP file calls a tensor of a CLIP text encoder."""
    if name in OPEN_CLIP_TENSORS:
        return Spelling(OPEN_CLIP_TENSORS[name])
    if name == "text_projection.weight":
        return Spelling("text_projection", ShapeChange.TRANSPOSED)
    _, _, layer, rest = name.split(".", 3)  # encoder.layers.N.rest
    block = f"transformer.resblocks.{layer}"
    for third, part in zip(THIRDS, ("q_proj", "k_proj", "v_proj"), strict=True):
        if rest.startswith(f"self_attn.{part}."):
            return Spelling(f"{block}.attn.in_proj_{rest.rsplit('.', 1)[1]}", third)
    return Spelling(f"{block}.{_translate(rest, OPEN_CLIP_LAYER)}")


OPEN_CLIP_TOWER = {
    "embeddings.class_embedding": Spelling("class_embedding"),
    "embeddings.patch_embedding.weight": Spelling("conv1.weight"),
    "embeddings.position_embedding.weight": Spelling("positional_embedding"),
    "visual_projection.weight": Spelling("proj", ShapeChange.TRANSPOSED),
}
OPEN_CLIP_NORMS = {"pre_layrnorm": "ln_pre", "post_layernorm": "ln_post"}


def spell_open_clip_tower(name: str) -> Spelling:
    """What a file of OpenCLIP, or of OpenAI, calls a tensor of a CLIP vision tower."""
    if name in OPEN_CLIP_TOWER:
        return OPEN_CLIP_TOWER[name]
    if name.partition(".")[0] in OPEN_CLIP_NORMS:
        return Spelling(_translate(name, OPEN_CLIP_NORMS))
    return spell_open_clip(name)


def _under(ours: str, theirs: str, inner: Table) -> dict[str, str]:
    """A table of inner modules, put under a module of ours and of theirs."""
    return {f"{ours}.{name}": f"{theirs}.{their_name}" for name, their_name in inner.items()}


def _translate(name: str, table: Table) -> str:
    """Replace the longest prefix of whole modules that the table knows."""
    prefix, rest = name, ""
    while prefix:
        if prefix in table:
            return table[prefix] + rest
        prefix, _, last = prefix.rpartition(".")
        rest = f".{last}{rest}"
    return name
