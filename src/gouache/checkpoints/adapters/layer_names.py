"""What LoRA files call the layers of a model: every spelling in use, and the layer of ours that it means.

Programs differ in the prefix (``lora_unet_``, ``unet.``, ``diffusion_model.``, ``base_model.model.``, ...), in whose
paths they use (diffusers', CompVis's, OpenCLIP's), and in dots or underscores between the parts of a path. Underscores
can't be undone ("a_b.c" and "a.b_c" look alike), so spellings are compared with all dots turned into underscores, and
the table is made from the modules that the model has.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from gouache.checkpoints.keymaps import spell_open_clip, speller
from gouache.checkpoints.shapes import THIRDS, ShapeChange
from gouache.models.mmdit import MMDiT
from gouache.models.prior import Prior
from gouache.models.text.clip import TextEncoder
from gouache.models.text.sentence import SentenceEncoder
from gouache.models.text.stack import TextStack
from gouache.models.unet import UNet

UNET, TEXT, PRIOR = "unet", "text", "prior"
WEIGHT, BIAS = "weight", "bias"
WRAPPERS = re.compile(r"^(?:base_model_model_|_orig_mod_|module_)+")
"""What PEFT, compiled and distributed models put before every name."""
UNET_PREFIXES = (
    "",
    "unet_",
    "lora_unet_",  # kohya
    "oft_unet_",
    "lora_",  # A1111's relatives
    "lycoris_",
    "lycoris_unet_",
    "diffusion_model_",  # ComfyUI
    "lora_diffusion_model_",
    "model_diffusion_model_",  # a checkpoint's own
    "lora_unet_model_diffusion_model_",
    "transformer_",  # diffusers' name of Stable Diffusion 3's network
    "lora_transformer_",  # OneTrainer
    "lycoris_transformer_",
)
FIRST_TEXT_PREFIXES = (
    "lora_te_",  # kohya
    "lora_te1_",
    "te_",
    "te1_",
    "text_encoder_",  # diffusers
    "text_encoder_1_",
    "lora_text_encoder_",
    "lycoris_te_",
    "lycoris_te1_",
    "lycoris_text_encoder_",
    "clip_l_",  # OneTrainer
    "clip_h_",
    "text_encoders_clip_l_transformer_",  # ComfyUI
    "text_encoders_clip_h_transformer_",
    "clip_l_transformer_",
    "clip_h_transformer_",
    "cond_stage_model_transformer_",  # a checkpoint's own
    "cond_stage_model_model_",
    "conditioner_embedders_0_transformer_",
    "0_transformer_",  # A1111's names of SDXL's first
)
SECOND_TEXT_PREFIXES = (
    "lora_te2_",
    "te2_",
    "text_encoder_2_",
    "lora_text_encoder_2_",
    "lycoris_te2_",
    "lycoris_text_encoder_2_",
    "clip_g_",
    "text_encoders_clip_g_transformer_",
    "clip_g_transformer_",
    "conditioner_embedders_1_model_",
    "1_model_",
)
PRIOR_PREFIXES = ("lora_prior_", "prior_")
"""Of the network that draws drafts, which only models of this project have."""
ANY_TEXT_PREFIXES = ("", "lycoris_", "transformer_", "model_")
"""Where nothing says which encoder is meant, the shapes do."""
_OLD_TEXT = re.compile(r"(?<=self_attn_)to_(?:(q|k|v)|(out))(?:_0)?$")
_ATTENTION_PARTS = ("to_q", "to_k", "to_v", "to_out.0")


@dataclass(frozen=True, slots=True)
class LoraLayer:
    """One parameter of a model that an adapter can change.

    Attributes:
        part: ``"unet"``, ``"text"`` or ``"prior"``.
        index: which text encoder, from 0; 0 for the other parts.
        name: the layer inside its network, by our name.
        parameter: ``"weight"`` or ``"bias"``.
    """

    part: str
    index: int
    name: str
    parameter: str = WEIGHT


class LayerNames:
    """The layers of a model by every spelling.

    Args:
        unet: the network that denoises.
        text: its text encoders, or the networks of them.
        prior: the network that draws its drafts, if it has one.

    Attributes:
        shapes: of every parameter that can be changed. A layer without a bias can be given one.
        latent_channels: how many of the first convolution's inputs a plain model has too.
    """

    def __init__(self, unet: UNet | MMDiT, text: TextStack | Sequence[nn.Module], prior: Prior | None = None) -> None:
        self.shapes: dict[LoraLayer, tuple[int, ...]] = {}
        self.latent_channels = unet.config.in_channels
        self._pieces: dict[str, list[tuple[LoraLayer, ShapeChange]]] = {}
        self._unet = dict(self._unet_paths(unet))
        own = () if prior is None else self._layers(prior, PRIOR, 0)
        self._prior = {_joined(name): LoraLayer(PRIOR, 0, name) for name in own}
        self._encoders: list[tuple[tuple[str, ...], Mapping[str, LoraLayer]]] = []
        encoders = list(text.encoders if isinstance(text, TextStack) else text)
        for index, encoder in enumerate(encoders):
            prefixes: tuple[str, ...] = FIRST_TEXT_PREFIXES if index == 0 else SECOND_TEXT_PREFIXES
            if isinstance(encoder, SentenceEncoder):
                paths = {_joined(name): LoraLayer(TEXT, 0, name) for name in self._layers(encoder, TEXT, 0)}
                self._encoders.append((prefixes, paths))
            elif isinstance(encoder, TextEncoder):
                if len(encoders) == 1 and encoder.config.projection_width:
                    # SDXL's refiner: its only encoder is the base model's second one. Programs call it either way.
                    prefixes = (*FIRST_TEXT_PREFIXES, *SECOND_TEXT_PREFIXES)
                self._encoders.append((prefixes, dict(self._text_paths(encoder, index))))

    def find(self, spelling: str) -> tuple[LoraLayer, ...]:
        """The layers that a spelling can mean; more than one only if it leaves open which text encoder."""
        path = WRAPPERS.sub("", _joined(spelling)).replace("_processor_", "_")
        path = f"{path}_0" if path.endswith(("attn1_to_out", "attn2_to_out", "_attn_to_out")) else path
        path = _OLD_TEXT.sub(lambda match: f"{match[1] or match[2]}_proj", path)
        for prefix in UNET_PREFIXES:
            if path.startswith(prefix) and path[len(prefix) :] in self._unet:
                return (self._unet[path[len(prefix) :]],)
        for prefixes, table in ((PRIOR_PREFIXES, self._prior), *self._encoders):
            for prefix in prefixes:
                if path.startswith(prefix) and path[len(prefix) :] in table:
                    return (table[path[len(prefix) :]],)
        tails = [path[len(prefix) :] for prefix in ANY_TEXT_PREFIXES if path.startswith(prefix)]
        return tuple(table[tail] for _, table in self._encoders for tail in tails if tail in table)

    def pieces(self, spelling: str) -> tuple[tuple[LoraLayer, ShapeChange], ...]:
        """The layers that are pieces of what a spelling means in Stable Diffusion 3's single files, or have their rows
        in another order there, with what they are of it; empty for any other spelling."""
        path = WRAPPERS.sub("", _joined(spelling))
        found = (self._pieces.get(path.removeprefix(prefix)) for prefix in UNET_PREFIXES if path.startswith(prefix))
        return tuple(next((pieces for pieces in found if pieces), ()))

    def sequences(self, network: str) -> Iterator[Sequence[LoraLayer]]:
        """Orders in which cloneofsimo's trainer numbers a network's layers (``"unet"``, ``"text_encoder"``).

        It walks through the modules in the order in which they were made: the way down, up, then the middle, and in
        every block attention, attention, feed-forward, or in older versions feed-forward before the second attention.
        """
        if network == UNET:
            blocks = list(dict.fromkeys(name.partition(".attn1.")[0] for name in self._names(0) if ".attn1." in name))
            blocks.sort(key=lambda name: ("down_blocks", "up_blocks", "mid_block").index(name.partition(".")[0]))
            attention = [[f"{one}.{part}" for part in _ATTENTION_PARTS] for one in ("attn1", "attn2")]
            for order in (
                [*attention[0], *attention[1], "ff.net.0.proj"],
                [*attention[0], "ff.net.0.proj", *attention[1]],
                [*attention[0], *attention[1]],
            ):
                yield [LoraLayer(UNET, 0, f"{block}.{part}") for block in blocks for part in order]
        else:
            for parts in (("k_proj", "v_proj", "q_proj", "out_proj"), ("q_proj", "k_proj", "v_proj", "out_proj")):
                layers = [name.removesuffix(".k_proj") for name in self._names(1) if name.endswith("self_attn.k_proj")]
                yield [LoraLayer(TEXT, 0, f"{layer}.{part}") for layer in layers for part in parts]

    def _names(self, part: int) -> list[str]:
        """Names of the U-Net's layers (0) or of the first text encoder's (1)."""
        wanted = (UNET, TEXT)[part]
        return [one.name for one in self.shapes if (one.part, one.index, one.parameter) == (wanted, 0, WEIGHT)]

    def _unet_paths(self, unet: UNet | MMDiT) -> Iterator[tuple[str, LoraLayer]]:
        spell = speller(unet.config, "ldm")
        for name in self._layers(unet, UNET, 0):
            layer = LoraLayer(UNET, 0, name)
            theirs = spell(f"{name}.weight")
            their_name = theirs.name.removesuffix(".weight")
            if theirs.change in (*THIRDS, ShapeChange.HALVES_SWAPPED):
                self._pieces.setdefault(_joined(their_name), []).append((layer, theirs.change))
            for path in (name, their_name) if theirs.change is ShapeChange.NONE else (name,):
                yield _joined(path), layer

    def _text_paths(self, encoder: TextEncoder, index: int) -> Iterator[tuple[str, LoraLayer]]:
        for name in self._layers(encoder, TEXT, index):
            layer = LoraLayer(TEXT, index, name)
            theirs = spell_open_clip(f"{name}.weight")  # theirs joins queries, keys and values, which is another layer
            alike = [theirs.name.removesuffix(".weight")] if theirs.change is ShapeChange.NONE else []
            for path in (name, f"text_model.{name}", *alike):
                yield _joined(path), layer

    def _layers(self, network: nn.Module, part: str, index: int) -> list[str]:
        """Every module with a weight; its shape is noted."""
        names = []
        for name, module in network.named_modules():
            weight = module._parameters.get(WEIGHT)
            if weight is not None:
                names.append(name)
                self.shapes[LoraLayer(part, index, name)] = tuple(weight.shape)
                if not isinstance(module, nn.Embedding):
                    self.shapes[LoraLayer(part, index, name, BIAS)] = (weight.shape[0],)
        return names


def _joined(path: str) -> str:
    return path.replace(".", "_")
