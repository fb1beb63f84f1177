"""LoRA files of models that gouache doesn't run are named as what they are.

The kind: a transformer's LoRA was listed as SDXL's, since only SDXL was thought to have several transformer blocks in a
row. Names are those that kohya's, musubi's, diffusers', ComfyUI's and the model makers' own programs write.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from gouache.checkpoints.adapters.kinds import find_adapter
from gouache.checkpoints.formats.header import TensorInfo
from gouache.cli.main import app
from gouache.models.family import FAMILIES

KOHYA, PEFT = ("lora_down.weight", "lora_up.weight"), ("lora_A.weight", "lora_B.weight")


def file_of(layers: str, width: int, roles: tuple[str, str] = PEFT) -> dict[str, TensorInfo]:
    found = {}
    for layer in layers.split():
        found[f"{layer}.{roles[0]}"] = TensorInfo("BF16", (8, width))
        found[f"{layer}.{roles[1]}"] = TensorInfo("BF16", (width, 8))
    return found


TENSORS = {
    "kohya's Flux": ("lora_unet_double_blocks_1_img_attn_qkv lora_unet_single_blocks_1_linear1", 3072, KOHYA, "flux"),
    "kohya's Flux with its text encoder": (
        "lora_te1_text_model_encoder_layers_1_mlp_fc1 lora_unet_double_blocks_18_txt_mlp_0",
        3072,
        KOHYA,
        "flux",
    ),
    "diffusers' Flux": (
        "transformer.transformer_blocks.1.attn.to_q transformer.single_transformer_blocks.37.attn.to_q",
        3072,
        PEFT,
        "flux",
    ),
    "ComfyUI's Flux": ("diffusion_model.double_blocks.1.img_attn.proj", 3072, PEFT, "flux"),
    "Flux in base_model names": ("base_model.model.single_transformer_blocks.1.proj_mlp", 3072, PEFT, "flux"),
    "diffusers' Flux 2": ("transformer.single_transformer_blocks.47.attn.to_qkv_mlp_proj", 6144, PEFT, "flux2"),
    "Chroma": ("diffusion_model.distilled_guidance_layer.layers.1.in_layer", 3072, PEFT, "chroma"),
    "diffusers' Qwen-Image": (
        "transformer.transformer_blocks.1.attn.to_q transformer.transformer_blocks.59.attn.add_q_proj",
        3072,
        PEFT,
        "qwen-image",
    ),
    "Qwen-Image, few layers": (
        "transformer_blocks.1.attn.to_q transformer_blocks.1.attn.add_k_proj",
        3072,
        PEFT,
        "qwen-image",
    ),
    "musubi's Qwen-Image": ("lora_unet_transformer_blocks_1_img_mlp_net_0_proj", 3072, KOHYA, "qwen-image"),
    "kohya's SD3": ("lora_unet_joint_blocks_1_context_block_attn_qkv", 1536, KOHYA, "sd3"),
    "diffusers' SD3": (
        "transformer.transformer_blocks.1.attn.to_q transformer.transformer_blocks.1.attn.add_q_proj",
        1536,
        PEFT,
        "sd3",
    ),
    "diffusers' SD3.5 large": (
        "transformer.transformer_blocks.1.attn.to_q transformer.transformer_blocks.37.attn.add_q_proj",
        2432,
        PEFT,
        "sd3",
    ),
    "ComfyUI's SD3": ("diffusion_model.joint_blocks.1.x_block.attn.qkv", 1536, PEFT, "sd3"),
    "Wan's own": ("diffusion_model.blocks.1.self_attn.q diffusion_model.blocks.1.ffn.0", 5120, PEFT, "wan"),
    "musubi's Wan": ("lora_unet_blocks_1_cross_attn_k", 5120, KOHYA, "wan"),
    "diffusers' Wan": ("transformer.blocks.1.ffn.net.0.proj", 5120, PEFT, "wan"),
    "Wan with pictures": ("blocks.1.cross_attn.k_img blocks.1.cross_attn.k", 5120, PEFT, "wan"),
    "musubi's Hunyuan Video": ("lora_unet_double_blocks_1_img_mlp_fc1", 3072, KOHYA, "hunyuan-video"),
    "Hunyuan Video, attention only": (
        "lora_unet_double_blocks_19_img_attn_qkv lora_unet_single_blocks_39_linear1",
        3072,
        KOHYA,
        "hunyuan-video",
    ),
    "diffusers' Hunyuan Video": (
        "transformer.transformer_blocks.19.attn.to_q transformer.single_transformer_blocks.39.attn.to_q",
        3072,
        PEFT,
        "hunyuan-video",
    ),
    "Hunyuan Video's refiner": (
        "transformer.context_embedder.token_refiner.refiner_blocks.1.attn.to_q",
        3072,
        PEFT,
        "hunyuan-video",
    ),
    "HiDream": ("diffusion_model.double_stream_blocks.1.block.attn1.to_q", 2560, PEFT, "hidream"),
    "AuraFlow": ("transformer.joint_transformer_blocks.1.attn.to_q", 3072, PEFT, "auraflow"),
    "PixArt": ("transformer.transformer_blocks.1.attn1.to_q", 1152, PEFT, "pixart"),
    "Sana": ("transformer.transformer_blocks.1.attn1.to_q", 2240, PEFT, "sana"),
    "LTX Video": ("transformer.transformer_blocks.1.attn1.to_q", 2048, PEFT, "ltx-video"),
    "Lumina 2": ("lora_unet_layers_1_attention_qkv", 2304, KOHYA, "lumina"),
    "Z-Image": ("diffusion_model.layers.1.attention.to_q", 3840, PEFT, "z-image"),
    "Stable Cascade": ("lora_prior_unet_down_blocks_1_2_attention_attn_in_proj", 2048, KOHYA, "stable-cascade"),
    "Cosmos": ("diffusion_model.blocks.1.self_attn.q_proj", 2048, PEFT, "cosmos or anima"),
    "AnimateDiff": (
        "down_blocks.1.motion_modules.0.temporal_transformer.transformer_blocks.1.attention_blocks.0.processor.to_q",
        640,
        ("lora.down.weight", "lora.up.weight"),
        "animatediff",
    ),
    "an unknown transformer": ("transformer.transformer_blocks.1.attn1.to_q", 1234, PEFT, "another transformer"),
}


@pytest.mark.parametrize("case", TENSORS)
def test_the_tensors_name_the_model(case: str) -> None:
    """The family is a word in lists, and the label says where gouache doesn't run it."""
    layers, width, roles, family = TENSORS[case]
    found = find_adapter(file_of(layers, width, roles), {})
    assert found is not None
    assert (found.kind, found.family) == ("lora", family)
    assert (f"for {family}, which gouache doesn't run" in found.label) == (family not in FAMILIES)


@pytest.mark.parametrize(
    ("metadata", "family"),
    [
        ({"ss_base_model_version": "flux1"}, "flux"),
        ({"modelspec.architecture": "flux-1-dev/lora"}, "flux"),
        ({"ss_base_model_version": "sd3m"}, "sd3"),
        ({"modelspec.architecture": "stable-diffusion-3-medium/lora"}, "sd3"),
        ({"ss_base_model_version": "qwen_image"}, "qwen-image"),
        ({"ss_base_model_version": "wan2.1"}, "wan"),
        ({"ss_base_model_version": "hunyuan_video"}, "hunyuan-video"),
        ({"modelspec.architecture": "framepack/lora"}, "hunyuan-video"),
        ({"ss_base_model_version": "lumina2"}, "lumina"),
        ({"ss_network_module": "networks.lora_flux"}, "flux"),
        ({"ss_network_module": "networks.lora_wan"}, "wan"),
        ({"modelspec.architecture": "chroma/lora"}, "chroma"),
        ({"ss_base_model_version": "z_image"}, "z-image"),
    ],
)
def test_what_the_trainer_wrote_down_names_the_model(metadata: dict[str, str], family: str) -> None:
    found = find_adapter(file_of("lora_te1_text_model_encoder_layers_1_mlp_fc1", 768, KOHYA), metadata)
    assert found is not None
    assert found.family == family


@pytest.mark.parametrize(
    ("layers", "width", "roles", "family"),
    [
        ("lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k", 768, KOHYA, "sd1"),
        ("lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k", 1024, KOHYA, "sd2"),
        ("lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k", 2048, KOHYA, "sdxl"),
        ("lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q", 640, KOHYA, "sdxl"),
        ("unet.down_blocks.2.attentions.1.transformer_blocks.9.ff.net.2", 1280, PEFT, "sdxl"),
        ("unet.mid_block.attentions.0.transformer_blocks.1.attn1.to_q", 1280, PEFT, "sdxl"),
        ("diffusion_model.output_blocks.3.1.transformer_blocks.1.attn1.to_q", 640, PEFT, "sdxl"),
        ("clip_g.text_model.encoder.layers.1.mlp.fc1", 1280, KOHYA, "sdxl"),
        ("lora_te_text_model_encoder_layers_1_mlp_fc1", 768, KOHYA, "unknown"),
        ("unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q", 640, PEFT, "unknown"),
        ("lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_v", 1280, KOHYA, "sdxl-refiner"),
    ],
)
def test_gouaches_own_families_stay_what_they_are(layers: str, width: int, roles: tuple[str, str], family: str) -> None:
    found = find_adapter(file_of(layers, width, roles), {"ss_network_module": "networks.lora"})
    assert found is not None
    assert found.family == family
    assert "doesn't run" not in found.label


def test_a_users_view(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`models` and `inspect` name it; the server's page does, where the file lies among the models."""
    from gouache.serve.models.facts import _facts

    monkeypatch.setenv("GOUACHE_MODELS", str(tmp_path))
    (tmp_path / "loras").mkdir()
    tensors = {
        "transformer.single_transformer_blocks.1.attn.to_q.lora_A.weight": torch.ones(4, 8),
        "transformer.single_transformer_blocks.1.attn.to_q.lora_B.weight": torch.ones(8, 4),
    }
    path = tmp_path / "loras" / "film.safetensors"
    save_file(tensors, path)
    listed = json.loads(CliRunner().invoke(app, ["models", "--json"]).stdout)
    assert [(one["kind"], one["family"]) for one in listed["adapters"]] == [("lora", "flux")]
    told = CliRunner().invoke(app, ["inspect", "film"])
    assert "lora of flux, which gouache doesn't run" in told.stdout
    assert _facts(path, 0).family == "flux, which gouache doesn't run"
