"""Telling files apart by names and shapes alone, at their full published sizes (headers without numbers)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

import pytest

from gouache.checkpoints.detect import Identity, identify
from gouache.checkpoints.formats.header import Header, TensorInfo
from gouache.checkpoints.keymaps import speller
from gouache.checkpoints.networks import build_on_meta
from gouache.checkpoints.shapes import THIRDS, ShapeChange
from gouache.config import Config
from gouache.errors import UnknownFamily
from gouache.models.configs import TextEncoderConfig, UNetConfig, VAEConfig

SD1 = UNetConfig()
SD2 = UNetConfig(heads=(5, 10, 20, 20), context_width=1024, linear_projection=True)
SDXL = UNetConfig(
    channels=(320, 640, 1280),
    transformer_layers=(0, 2, 10),
    middle_transformer_layers=10,
    heads=(5, 10, 20),
    context_width=2048,
    linear_projection=True,
    pooled_width=2816,
)
REFINER = UNetConfig(
    channels=(384, 768, 1536, 1536),
    transformer_layers=(0, 4, 4, 0),
    middle_transformer_layers=4,
    heads=(6, 12, 24, 24),
    context_width=1280,
    linear_projection=True,
    pooled_width=2560,
)
# Reduced networks that were distilled from SDXL.
SSD_1B = SDXL.model_copy(
    update={
        "transformer_layers": (0, 2, 4),
        "up_transformer_layers": ((4, 4, 10), (2, 1, 1), (0, 0, 0)),
        "middle_layers": 1,
        "middle_transformer_layers": 0,
    }
)
KOALA = SDXL.model_copy(
    update={"layers_per_level": 1, "transformer_layers": (0, 2, 5), "middle_layers": 0, "middle_transformer_layers": 0}
)
VAE = VAEConfig()
VIT_L = TextEncoderConfig()
VIT_H = TextEncoderConfig(
    width=1024, inner_width=4096, layers=24, heads=16, activation="gelu", projection_width=1024, pad_id=0
)
BIG_G = TextEncoderConfig(
    width=1280, inner_width=5120, layers=32, heads=20, activation="gelu", projection_width=1280, pad_id=0
)
# Numbers of parameters as their publishers count them.
PUBLISHED = {
    "sd1": (SD1, 859_520_964),
    "sd2": (SD2, 865_910_724),
    "sdxl": (SDXL, 2_567_463_684),
}
PLACES = {
    "unet": ("model.diffusion_model.", "ldm"),
    "vae": ("first_stage_model.", "ldm"),
    "sd1": ("cond_stage_model.transformer.", "clip_model"),
    "sd2": ("cond_stage_model.model.", "open_clip"),
    "sdxl-1": ("conditioner.embedders.0.transformer.", "clip_model"),
    "sdxl-2": ("conditioner.embedders.1.model.", "open_clip"),
    "refiner": ("conditioner.embedders.0.model.", "open_clip"),
}


@cache
def infos(config: Config, place: str) -> dict[str, TensorInfo]:
    """A network's tensors as a single file names and shapes them."""
    prefix, naming = PLACES[place]
    spell = speller(config, naming)  # type: ignore[arg-type]
    found = {}
    for name, tensor in build_on_meta(config).state_dict().items():
        spelling, shape = spell(name), tuple(tensor.shape)
        if spelling.change is ShapeChange.POINTWISE:
            shape = (*shape, 1, 1)
        elif spelling.change in THIRDS:
            shape = (3 * shape[0], *shape[1:])
        elif spelling.change is ShapeChange.TRANSPOSED:
            shape = shape[::-1]
        found[prefix + spelling.name] = TensorInfo("F16", shape)
    return found


def told(*parts: Mapping[str, TensorInfo], metadata: Mapping[str, str] | None = None) -> Identity:
    tensors: dict[str, TensorInfo] = {}
    for part in parts:
        tensors |= part
    return identify(Header(Path("no suffix at all"), tensors, metadata or {}))


TEXTS = {
    "sd1": infos(VIT_L, "sd1"),
    "sd2": infos(VIT_H, "sd2"),
    "sdxl": infos(VIT_L, "sdxl-1") | infos(BIG_G, "sdxl-2"),
    "sdxl-refiner": infos(BIG_G, "refiner"),
}
VAES = infos(VAE, "vae")
UNETS = {"sd1": SD1, "sd2": SD2, "sdxl": SDXL, "sdxl-refiner": REFINER}


@pytest.mark.parametrize("family", UNETS)
def test_full_size_single_files_are_told_apart(family: str) -> None:
    found = told(infos(UNETS[family], "unet"), VAES, TEXTS[family])
    assert (found.kind, found.family, found.variant, found.layout) == ("model", family, "base", "single-file")
    assert found.parts["unet"].config == UNETS[family]
    assert found.unexplained == ()
    scale = 0.13025 if family.startswith("sdxl") else 0.18215
    assert found.parts["vae"].config == VAE.model_copy(update={"scale": scale})
    assert found.prediction == (None if family == "sd2" else "eps")
    if family in PUBLISHED:
        assert found.parts["unet"].parameters == PUBLISHED[family][1]
    assert found.parts["vae"].parameters == 83_653_863


def test_which_state_of_each_text_encoder_is_the_context() -> None:
    one = told(infos(SD1, "unet"), VAES, TEXTS["sd1"]).parts
    assert one["text_encoder"].config == VIT_L
    assert one["text_encoder"].parameters == 123_060_480
    two = told(infos(SD2, "unet"), VAES, TEXTS["sd2"])
    assert two.parts["text_encoder"].config == VIT_H.model_copy(update={"layers": 23, "projection_width": 0})
    assert two.left_out == {"the last text layer and projection, which SD 2.x doesn't use": 13}
    skipping = {"skip_layers": 1, "final_norm": False}
    xl = told(infos(SDXL, "unet"), VAES, TEXTS["sdxl"]).parts
    assert xl["text_encoder"].config == VIT_L.model_copy(update=skipping)
    assert xl["text_encoder_2"].config == BIG_G.model_copy(update=skipping)
    refiner = told(infos(REFINER, "unet"), VAES, TEXTS["sdxl-refiner"]).parts
    assert refiner["text_encoder"].config == BIG_G.model_copy(update=skipping)


@pytest.mark.parametrize("config", [SSD_1B, KOALA], ids=["SSD-1B", "KOALA-700M"])
def test_reduced_networks_are_rebuilt_by_counting(config: UNetConfig) -> None:
    found = told(infos(config, "unet"), VAES, TEXTS["sdxl"])
    assert found.family == "sdxl"
    assert found.parts["unet"].config == config


@pytest.mark.parametrize(("channels", "variant"), [(5, "inpainting"), (4, "instruct"), (1, "depth")])
@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_variants_by_their_input_channels(family: str, channels: int, variant: str) -> None:
    config = UNETS[family].model_copy(update={"draft_channels": channels})
    found = told(infos(config, "unet"), VAES, TEXTS[family])
    assert (found.family, found.variant, found.prediction) == (family, variant, "eps")
    assert found.parts["unet"].config == config


def test_old_files_without_text_model() -> None:
    old = {name.replace("text_model.", ""): info for name, info in TEXTS["sd1"].items()}
    found = told(infos(SD1, "unet"), VAES, old)
    assert (found.family, found.unexplained) == ("sd1", ())
    assert found.parts["text_encoder"].naming == "ours"


def test_turbo_in_stabilitys_newer_layout_is_still_sd2() -> None:
    newer = {name.replace("cond_stage_model", "conditioner.embedders.0"): info for name, info in TEXTS["sd2"].items()}
    assert told(infos(SD2, "unet"), VAES, newer).family == "sd2"


@pytest.mark.parametrize(
    ("metadata", "marks", "prediction"),
    [
        ({"modelspec.prediction_type": "v"}, (), "v"),
        ({"modelspec.prediction_type": "epsilon"}, ("v_pred",), "eps"),
        ({"modelspec.predict_key": "v"}, (), "v"),
        ({"modelspec.prediction_type": "sample"}, (), "x0"),
        ({}, ("v_pred", "ztsnr"), "v"),
        ({}, (), "eps"),
    ],
)
def test_the_prediction_type_of_sdxl(metadata: dict[str, str], marks: tuple[str, ...], prediction: str) -> None:
    more = {mark: TensorInfo("F32", (0,)) for mark in marks}
    found = told(infos(SDXL, "unet"), VAES, TEXTS["sdxl"], more, metadata=metadata)
    assert found.prediction == prediction
    assert found.unexplained == ()


@pytest.mark.parametrize(("steps", "prediction"), [("875000", "eps"), ("110000", "v"), ("3", None)])
def test_the_prediction_type_of_sd2_by_its_steps(steps: str, prediction: str | None) -> None:
    found = told(infos(SD2, "unet"), VAES, TEXTS["sd2"], metadata={"global_step": steps})
    assert found.prediction == prediction


def test_what_is_left_out_is_counted_by_reason() -> None:
    ema = {f"model_ema.{name.replace('.', '')}": info for name, info in infos(SD1, "unet").items()}
    more = {"betas": TensorInfo("F32", (1000,)), "model_ema.decay": TensorInfo("F32", ())}
    more["cond_stage_model.transformer.text_model.embeddings.position_ids"] = TensorInfo("I64", (1, 77))
    found = told(infos(SD1, "unet"), VAES, TEXTS["sd1"], ema, more)
    assert found.left_out == {
        "the EMA copy of the weights": 687,
        "tables of the noise schedule": 1,
        "constant buffers": 1,
    }
    assert told(infos(SD1, "unet"), VAES, TEXTS["sd1"], {"stranger": TensorInfo("F32", (1,))}).unexplained == (
        "stranger",
    )


@pytest.mark.parametrize("family", UNETS)
def test_a_unet_alone(family: str) -> None:
    bare = {name.removeprefix("model.diffusion_model."): info for name, info in infos(UNETS[family], "unet").items()}
    assert (told(bare).kind, told(bare).family) == ("unet", family)
    ours = {name: TensorInfo("F32", tuple(t.shape)) for name, t in build_on_meta(UNETS[family]).state_dict().items()}
    assert (told(ours).kind, told(ours).family) == ("unet", family)
    assert told(ours).parts["unet"].config == UNETS[family]


def test_a_vae_or_a_text_encoder_alone() -> None:
    bare = {name.removeprefix("first_stage_model."): info for name, info in VAES.items()}
    for tensors in (VAES, bare, {f"vae.{name}": info for name, info in bare.items()}):
        assert told(tensors).kind == "vae"
    old = {name: TensorInfo("F32", tuple(tensor.shape)) for name, tensor in build_on_meta(VAE).state_dict().items()}
    old["decoder.mid_block.attentions.0.query.weight"] = old.pop("decoder.mid_block.attentions.0.to_q.weight")
    assert told(old).parts["vae"].naming == "old_diffusers"
    for family, name in (("sd1", "sd1"), ("sd2", "sd2"), ("sdxl-refiner", "sdxl")):
        assert (told(TEXTS[family]).kind, told(TEXTS[family]).family) == ("text-encoder", name)


LORA = {"lora_down.weight": (4, 768), "lora_up.weight": (320, 4), "alpha": ()}
KOHYA = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
SGM = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"
PEFT = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
ADAPTERS: dict[str, tuple[dict[str, tuple[int, ...]], str, str]] = {
    "kohya LoRA": ({f"{KOHYA}.{k}": s for k, s in LORA.items()}, "lora", "sd1"),
    "kohya LoRA, SD 2": ({f"{KOHYA}.lora_down.weight": (4, 1024)}, "lora", "sd2"),
    "kohya LoRA, sgm names": ({f"{SGM}.lora_down.weight": (4, 2048)}, "lora", "sdxl"),
    "PEFT LoRA": ({f"{PEFT}.lora_A.weight": (4, 768), f"{PEFT}.lora_B.weight": (320, 4)}, "lora", "sd1"),
    "old diffusers LoRA": ({"unet.mid_block.x.processor.to_q_lora.down.weight": (4, 1280)}, "lora", "unknown"),
    "LoHa": ({f"{KOHYA}.hada_w1_a": (320, 4), f"{KOHYA}.hada_w1_b": (4, 768)}, "lora", "sd1"),
    "LoKr": ({"lora_te2_x.lokr_w1": (4, 4), "lora_te2_x.lokr_w2_b": (4, 320)}, "lora", "sdxl"),
    "DoRA": ({f"{KOHYA}.dora_scale": (320, 1), f"{KOHYA}.lora_down.weight": (4, 768)}, "lora", "sd1"),
    "OFT": ({"oft_unet_x.oft_diag": (4, 8, 8)}, "lora", "unknown"),
    "textual inversion": ({"string_to_param.*": (3, 768)}, "textual-inversion", "sd1"),
    "textual inversion, diffusers": ({"<cat>": (1024,)}, "textual-inversion", "sd2"),
    "textual inversion, kohya": ({"emb_params": (2, 768)}, "textual-inversion", "sd1"),
    "textual inversion, SDXL": ({"clip_l": (2, 768), "clip_g": (2, 1280)}, "textual-inversion", "sdxl"),
    "ControlNet": (
        {"control_model.input_hint_block.0.weight": (16, 3, 3, 3), "control_model.x.attn2.to_k.weight": (320, 768)},
        "controlnet",
        "sd1",
    ),
    "ControlNet, diffusers": (
        {"controlnet_cond_embedding.conv_in.weight": (16, 3, 3, 3), "down_blocks.1.attn2.to_k.weight": (640, 2048)},
        "controlnet",
        "sdxl",
    ),
    "control-LoRA": ({"lora_controlnet": (), "input_hint_block.0.weight": (16, 3, 3, 3)}, "controlnet", "unknown"),
    "T2I adapter": ({"conv_in.weight": (320, 64, 3, 3), "body.0.block1.weight": (1, 1)}, "t2i-adapter", "sd1"),
    "T2I adapter, SDXL": (
        {"adapter.conv_in.weight": (320, 768, 3, 3), "adapter.body.0.resnets.0.block1.weight": (1, 1)},
        "t2i-adapter",
        "sdxl",
    ),
    "T2I adapter, light": ({"body.0.in_conv.weight": (80, 192, 1, 1)}, "t2i-adapter", "sd1"),
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters_are_recognised_and_named(name: str) -> None:
    shapes, kind, family = ADAPTERS[name]
    found = told({key: TensorInfo("F32", shape) for key, shape in shapes.items()})
    assert (found.kind, found.family) == (kind, family)
    assert found.label


def test_a_trainers_metadata_tells_a_loras_family() -> None:
    tensors = {"lora_unet_x.lora_down.weight": TensorInfo("F32", (4, 320))}
    assert told(tensors, metadata={"ss_base_model_version": "sdxl_base_v1-0"}).family == "sdxl"
    assert told(tensors, metadata={"ss_v2": "True"}).family == "sd2"


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("FLUX.1", "model.diffusion_model.double_blocks.0.img_attn.qkv.weight"),
        ("Wan", "head.modulation"),
        ("TAESD", "taesd_decoder.1.weight"),
    ],
)
def test_models_of_other_kinds_are_named(name: str, tensor: str) -> None:
    with pytest.raises(UnknownFamily, match=name):
        told({tensor: TensorInfo("F32", (1,))})


def test_nothing_known_is_said_so() -> None:
    with pytest.raises(UnknownFamily, match=r"no suffix at all.*tensors such as a, b"):
        told({"a": TensorInfo("F32", (1,)), "b": TensorInfo("F32", (1,))})


def test_a_network_with_uneven_levels_is_refused_by_name() -> None:
    uneven = infos(SD1, "unet")
    del uneven["model.diffusion_model.input_blocks.5.0.out_layers.3.weight"]
    with pytest.raises(UnknownFamily, match="residual blocks"):
        told(uneven, VAES, TEXTS["sd1"])
