"""LoRA files as other programs take them: the names of layers and tensors, and what trainers write beside them.

Models with a U-Net get kohya's layout, which A1111, ComfyUI, diffusers and kohya's own tools read: its layers have
diffusers' paths in Stable Diffusion 1 and 2, CompVis's in SDXL. For Stable Diffusion 3 kohya joins queries, keys and
values, so that their changes would have to share one rank; there the layout is diffusers' own, which ComfyUI reads too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from gouache import __version__
from gouache.checkpoints.adapters.layer_names import PRIOR, TEXT, UNET, LoraLayer
from gouache.checkpoints.formats.header import TensorInfo
from gouache.checkpoints.formats.safetensors import dtype_name, laid_out
from gouache.checkpoints.keymaps import speller
from gouache.checkpoints.networks import build_on_meta
from gouache.checkpoints.save import ModelToWrite
from gouache.models.configs import UNetConfig
from gouache.models.family import FAMILIES, POCKET, SD1, SD2, SD3, SDXL, SDXL_REFINER
from gouache.models.text.clip import TextEncoder
from gouache.models.text.sentence import SentenceEncoder

TEXT_PARTS = ("text_encoder", "text_encoder_2")
BASE_VERSIONS = {SD1.name: "sd_v1", SD2.name: "sd_v2", SDXL.name: "sdxl_base_v1-0", SD3.name: "sd3_m"}
"""What kohya's trainer calls the families; the others go by their own names."""
KOHYA_MODULE, LYCORIS_MODULE = "networks.lora", "lycoris.kohya"
LIBRARY_ALIGNMENT = 8
"""Of what follows the header in files of the safetensors library, as which the hashes see them."""
LEGACY_START, LEGACY_LENGTH = 0x100000, 0x10000
"""Where in a file the old hash of A1111's extension looks."""


def spelled_layers(model: ModelToWrite) -> Iterator[tuple[LoraLayer, str]]:
    """The layers that a LoRA changes, with their names in the file.

    Those that kohya's trainer changes: linear layers and 1x1 convolutions of transformers, the U-Net's other
    convolutions, and the text encoders' attention and feed-forward layers; of the pocket model the prior's linear
    layers too; of Stable Diffusion 3 attention and feed-forward of both streams.
    """
    networks = model.networks
    if isinstance(networks["unet"].config, UNetConfig):
        yield from _unet_layers(model)
    else:
        for name, module in build_on_meta(networks["unet"].config).named_modules():
            inside = name.startswith("transformer_blocks.") and ".norm" not in name
            if inside and isinstance(module, nn.Linear):
                yield LoraLayer(UNET, 0, name), f"transformer.{name}"
    if PRIOR in networks:
        for name, module in build_on_meta(networks[PRIOR].config).named_modules():
            if isinstance(module, nn.Linear) and name.startswith("layers."):
                yield LoraLayer(PRIOR, 0, name), f"lora_prior_{name.replace('.', '_')}"
    yield from _text_layers(model)


def _unet_layers(model: ModelToWrite) -> Iterator[tuple[LoraLayer, str]]:
    config = model.networks["unet"].config
    spell = speller(config, "ldm")
    for name, module in build_on_meta(config).named_modules():
        if not isinstance(module, nn.Linear | nn.Conv2d) or not name.startswith(("down_", "mid_", "up_")):
            continue
        if "attentions" not in name and isinstance(module, nn.Linear):
            continue  # time embeddings of the residual blocks
        path = spell(f"{name}.weight").name.removesuffix(".weight") if model.family == SDXL.name else name
        yield LoraLayer(UNET, 0, name), f"lora_unet_{path.replace('.', '_')}"


def _text_layers(model: ModelToWrite) -> Iterator[tuple[LoraLayer, str]]:
    parts = [part for part in TEXT_PARTS if part in model.networks]
    for index, part in enumerate(parts):
        encoder = build_on_meta(model.networks[part].config)
        if not isinstance(encoder, TextEncoder | SentenceEncoder):
            continue
        for name, module in encoder.named_modules():
            if not isinstance(module, nn.Linear):
                continue
            if isinstance(encoder, SentenceEncoder):  # which has no other linear layers
                yield LoraLayer(TEXT, index, name), f"lora_te_{name.replace('.', '_')}"
            elif ".self_attn." in name or ".mlp." in name:
                yield LoraLayer(TEXT, index, name), _text_name(model.family, index, name)


def _text_name(family: str, index: int, name: str) -> str:
    if family == SD3.name:
        return f"{TEXT_PARTS[index]}.text_model.{name}"
    # SDXL's refiner has the second encoder alone. diffusers calls it so there too, and fails over `lora_te`.
    numbers = {SDXL.name: f"{index + 1}", SDXL_REFINER.name: "2"}
    prefix = f"lora_te{numbers.get(family, '')}"
    return f"{prefix}_text_model_{name.replace('.', '_')}"


def lora_tensors(
    spelled: str, down: Tensor, up: Tensor, alpha: float, dtype: torch.dtype, magnitude: Tensor | None = None
) -> dict[str, Tensor]:
    """One layer's tensors, in the layout that its name is of.

    Args:
        spelled: as `spelled_layers` gives it.
        down: [r, in] or [r, in, k, k].
        up: [out, r] or [out, r, 1, 1].
        alpha: the change is scaled by alpha / r.
        dtype: of the file.
        magnitude: of DoRA, the length of every output's weights, which stays in fp32: rounded, it would scale the
            model's own weights wrongly too. [out]
    """
    if "." not in spelled:
        tensors = {
            f"{spelled}.lora_down.weight": down.to(dtype).contiguous(),
            f"{spelled}.lora_up.weight": up.to(dtype).contiguous(),
            f"{spelled}.alpha": torch.tensor(float(alpha), dtype=dtype),
        }
    else:
        # diffusers takes alpha from elsewhere, so it is multiplied in.
        scaled = up.float() * (alpha / down.shape[0])
        tensors = {
            f"{spelled}.lora_A.weight": down.to(dtype).contiguous(),
            f"{spelled}.lora_B.weight": scaled.to(dtype).contiguous(),
        }
    if magnitude is not None:
        lengths = magnitude.detach().float()
        tensors[f"{spelled}.dora_scale"] = lengths.view(-1, *[1] * (down.ndim - 1)).clone()
        if "." in spelled:
            # diffusers reads no other name, ComfyUI only the one above. In kohya's layout diffusers refuses what it
            # doesn't know and leaves the lengths out with a warning.
            tensors[f"{spelled}.lora_magnitude_vector"] = lengths.clone()
    return tensors


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraFacts:
    """What a file says of how it was made. Nothing in it depends on when or where.

    Attributes:
        family: of the model.
        name: of the LoRA, for people.
        rank: of linear layers.
        alpha: beside that rank.
        conv_rank: of larger convolutions; 0 for none.
        dora: whether lengths were trained too.
        prediction: what the model's network predicts: eps, v, x0 or flow.
        comment: on how it was made.
        size: side of the pictures in pixels; 0 if no pictures were trained on.
        training: further facts of the training, by kohya's names.
    """

    family: str
    name: str
    rank: int
    alpha: float
    conv_rank: int = 0
    dora: bool = False
    prediction: str = "eps"
    comment: str = ""
    size: int = 0
    training: Mapping[str, object] = field(default_factory=dict)


def lora_metadata(facts: LoraFacts, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """The metadata that kohya's tools, A1111 and ComfyUI show: `ss_*`, `modelspec.*` (Stability AI's ModelSpec 1.0.1)
    and `sshs_*`, the hashes of A1111's extension, made as kohya's trainer makes them."""
    args = {"algo": "lora", "dora_wd": "True", "wd_on_output": "True"} if facts.dora else {}
    if facts.conv_rank:
        conv_alpha = facts.alpha * facts.conv_rank / facts.rank
        args |= {"conv_dim": str(facts.conv_rank), "conv_alpha": f"{conv_alpha:g}"}
    told: dict[str, object] = {
        "ss_network_module": LYCORIS_MODULE if facts.dora else KOHYA_MODULE,
        "ss_network_dim": facts.rank,
        "ss_network_alpha": float(facts.alpha),
        "ss_network_args": json.dumps(args) if args else None,
        "ss_base_model_version": BASE_VERSIONS.get(facts.family, facts.family),
        "ss_v2": facts.family == SD2.name,
        "ss_output_name": facts.name or None,
        "ss_training_comment": facts.comment or None,
        **facts.training,
    }
    metadata = {key: str(value) for key, value in told.items() if value is not None}
    metadata |= _hashes(tensors, metadata)
    return metadata | _model_spec(facts)


def _model_spec(facts: LoraFacts) -> dict[str, str]:
    """https://github.com/Stability-AI/ModelSpec, without a date."""
    family = FAMILIES[facts.family]
    told = {
        "sai_model_spec": "1.0.1",
        "architecture": f"{family.architecture or POCKET.name}/lora",
        "implementation": family.implementation or "https://pypi.org/project/gouache",
        "title": facts.name or "LoRA",
        "resolution": f"{facts.size}x{facts.size}" if facts.size else "",
        "prediction_type": {"eps": "epsilon"}.get(facts.prediction, facts.prediction),
        "implementation_version": f"gouache/{__version__}",
    }
    return {f"modelspec.{key}": value for key, value in told.items() if value}


def _hashes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, str]:
    """Of the file with these `ss_*` keys alone: the sha256 behind the header, and that of one piece of the whole."""
    infos = {name: TensorInfo(dtype_name(tensor.dtype), tuple(tensor.shape)) for name, tensor in tensors.items()}
    header, order = laid_out(infos, metadata, alignment=LIBRARY_ALIGNMENT)
    whole, legacy, place = hashlib.sha256(), hashlib.sha256(), len(header)
    legacy.update(_piece(header, 0))
    for name in order:
        data = tensors[name].detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        whole.update(data)
        legacy.update(_piece(data, place))
        place += len(data)
    return {"sshs_model_hash": whole.hexdigest(), "sshs_legacy_hash": legacy.hexdigest()[:8]}


def _piece(data: bytes, start: int) -> bytes:
    """What lies in the piece that the old hash reads, of data that begin at `start` in a file."""
    return data[max(0, LEGACY_START - start) : max(0, LEGACY_START + LEGACY_LENGTH - start)]
