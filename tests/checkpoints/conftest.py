"""Checkpoints written by diffusers and transformers themselves, with random weights, tiny, one of each family."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

if TYPE_CHECKING:
    from torch import nn

FAMILIES = (
    "sd1",
    "sd1-inpainting",
    "sd1-instruct",
    "sd2",
    "sd2-v",
    "sd2-inpainting",
    "sdxl",
    "sdxl-inpainting",
    "sdxl-refiner",
)
MERGES = Path(__file__).parents[2] / "src/gouache/models/vocab/bpe_simple_vocab_16e6.txt.gz"
CONCATENATED = {"inpainting": 9, "instruct": 8}


def _randomise(network: nn.Module, seed: int) -> nn.Module:
    """Fill every tensor: zeros and ones of an initialisation would hide tensors that were mixed up."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in network.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.06 + (0.5 if tensor.ndim == 1 else 0.0))
    return network.eval()


def _tokenizer(folder: Path, pad: str) -> Any:
    """transformers' CLIPTokenizer from the published merges; its numbering is rebuilt here as CLIP's own code does."""
    from transformers import CLIPTokenizer

    merges = gzip.decompress(MERGES.read_bytes()).decode().split("\n")[1 : 49152 - 256 - 2 + 1]
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    characters = [chr(byte) for byte in printable] + [chr(256 + n) for n in range(256 - len(printable))]
    words = characters + [c + "</w>" for c in characters] + ["".join(merge.split()) for merge in merges]
    words += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges))
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), pad_token=pad)


def _text(seed: int, width: int, layers: int, act: str, *, projected: bool) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=1,
        hidden_act=act,
        projection_dim=width,
        bos_token_id=49406,
        eos_token_id=49407,
    )
    return _randomise((CLIPTextModelWithProjection if projected else CLIPTextModel)(config), seed)


def _unet(family: str, variant: str, context: int, pooled: int) -> Any:
    from diffusers import UNet2DConditionModel

    shapes: dict[str, dict[str, Any]] = {
        "sd1": {"attention_head_dim": 8, "transformer_layers_per_block": 1},
        "sd2": {"attention_head_dim": [1, 1, 2], "use_linear_projection": True},
        "sdxl": {
            "attention_head_dim": [1, 1, 2],
            "use_linear_projection": True,
            "transformer_layers_per_block": [1, 1, 2],
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        },
    }
    shape = {
        "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
        **shapes[family.removesuffix("-refiner")],
    }
    if pooled:
        shape |= {"addition_embed_type": "text_time", "addition_time_embed_dim": 256}
        shape["projection_class_embeddings_input_dim"] = pooled
    return UNet2DConditionModel(
        block_out_channels=(32, 64, 128),
        layers_per_block=2 if family == "sd1" else 1,
        cross_attention_dim=context,
        in_channels=CONCATENATED.get(variant, 4),
        sample_size=8,
        **shape,
    )


def _vae(scale: float) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(32, 32, 64),
        down_block_types=["DownEncoderBlock2D"] * 3,
        latent_channels=4,
        up_block_types=["UpDecoderBlock2D"] * 3,
        layers_per_block=1,
        scaling_factor=scale,
        sample_size=32,
    )


def _pipeline(name: str, tokenizer: Callable[[str], Any]) -> Any:
    """A pipeline of diffusers, with the parts that its family has in the published folders."""
    import diffusers

    family, _, rest = name.partition("-")
    variant = rest if rest in CONCATENATED else "base"
    refiner = rest == "refiner"
    xl = family == "sdxl"
    scheduler = diffusers.DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction" if rest == "v" else "epsilon",
    )
    text = {"sd1": (32, 3, "quick_gelu"), "sd2": (64, 3, "gelu"), "sdxl": (32, 3, "quick_gelu")}[family]
    pooled = 64 + (5 if refiner else 6) * 256 if xl else 0
    context = 64 if refiner else text[0] + (64 if xl else 0)
    parts: dict[str, Any] = {
        "vae": _randomise(_vae(0.13025 if xl else 0.18215), 1),
        "unet": _randomise(_unet(f"{family}-refiner" if refiner else family, variant, context, pooled), 2),
        "scheduler": scheduler,
        "text_encoder": None if refiner else _text(3, *text, projected=False),
        "tokenizer": None if refiner else tokenizer("!" if family == "sd2" else "<|endoftext|>"),
    }
    if xl:
        parts |= {
            "text_encoder_2": _text(4, 64, 3, "gelu", projected=True),
            "tokenizer_2": tokenizer("!"),
        }
        kind = {"inpainting": diffusers.StableDiffusionXLInpaintPipeline}.get(
            variant, diffusers.StableDiffusionXLPipeline
        )
        if refiner:
            kind = diffusers.StableDiffusionXLImg2ImgPipeline
            parts["requires_aesthetics_score"] = True
    else:
        kind = {
            "inpainting": diffusers.StableDiffusionInpaintPipeline,
            "instruct": diffusers.StableDiffusionInstructPix2PixPipeline,
        }.get(variant, diffusers.StableDiffusionPipeline)
        parts |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return kind(**parts)


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`published(name)` is a folder that diffusers wrote, of a family in `FAMILIES`; each is made once a session."""
    made: dict[str, Path] = {}

    @cache
    def tokenizer(pad: str) -> Any:
        return _tokenizer(tmp_path_factory.mktemp("tokenizer") / "files", pad)

    def folder(name: str) -> Path:
        if name not in made:
            path = tmp_path_factory.mktemp(name)
            _pipeline(name, tokenizer).save_pretrained(path / name)
            made[name] = path / name
        return made[name]

    return folder


# The others differ from these in the channels of a convolution or by an encoder; `-m slow` runs them too.
EVERY_TIME = ("sd1", "sd2-v", "sdxl")


@pytest.fixture(
    scope="session",
    params=[pytest.param(name, marks=[] if name in EVERY_TIME else pytest.mark.slow) for name in FAMILIES],
)
def family(request: pytest.FixtureRequest) -> str:
    """Each family in turn."""
    return str(request.param)
