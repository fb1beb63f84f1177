"""U-Nets that are told a guidance scale, and those whose transformers look at the text alone: diffusers is the judge.

The kind: an option of `UNet2DConditionModel` that changes tensors or what they are given.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diffusers
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from gouache.checkpoints.convert import convert
from gouache.checkpoints.diffusers.component_config import unet_from_json
from gouache.checkpoints.load import load_bundle
from gouache.checkpoints.shapes import unet_config
from gouache.errors import IncompatibleCheckpoint, ShapeMismatch
from gouache.models.unet import UNet
from gouache.pipeline.pipeline import Pipeline
from gouache.pipeline.request import Request

if TYPE_CHECKING:
    from tests.pipeline.twins import Twins

DOWN, UP = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"
OPTIONS: dict[str, dict[str, Any]] = {
    "text alone": {"only_cross_attention": True},
    "text alone, by level": {"only_cross_attention": [True, False]},
    "text alone, coarse": {"only_cross_attention": [False, True]},
    "text alone, linear": {"only_cross_attention": True, "use_linear_projection": True},
    "text alone, as wide as a level": {"only_cross_attention": True, "cross_attention_dim": 16},
    "text alone, deeper": {"only_cross_attention": True, "transformer_layers_per_block": 2},
    "text alone, one level without": {
        "only_cross_attention": [True, True],
        "down_block_types": (DOWN, "DownBlock2D"),
        "up_block_types": ("UpBlock2D", UP),
    },
    "neither": {"only_cross_attention": [False, False]},
    "told": {"time_cond_proj_dim": 32},
    "told, odd": {"time_cond_proj_dim": 33},
    "told, text alone": {"time_cond_proj_dim": 256, "only_cross_attention": True},
}


def theirs(**options: Any) -> Any:
    plain = {
        "sample_size": 8,
        "block_out_channels": (16, 32),
        "down_block_types": (DOWN, DOWN),
        "up_block_types": (UP, UP),
        "layers_per_block": 1,
        "cross_attention_dim": 24,
        "attention_head_dim": 2,
        "norm_num_groups": 8,
    }
    generator = torch.Generator().manual_seed(3)
    network = diffusers.UNet2DConditionModel(**{**plain, **options}).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            spread = 0.3 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread)
    return network


@pytest.mark.parametrize("name", OPTIONS)
def test_the_network_is_diffusers(name: str) -> None:
    judge = theirs(**OPTIONS[name])
    state = judge.state_dict()
    counted = unet_config({key: tuple(tensor.shape) for key, tensor in state.items()}, "ours", "here")
    config = unet_from_json(json.loads(json.dumps(dict(judge.config))), counted, "here")
    ours = UNet(config).eval()
    ours.load_state_dict(state)
    generator = torch.Generator().manual_seed(1)
    x, context = (
        torch.randn(2, 4, 8, 8, generator=generator),
        torch.randn(2, 5, config.context_width, generator=generator),
    )
    scale = torch.tensor([8.5, 3.0]) if config.guidance_width else None
    told = None
    if scale is not None:
        pipeline = diffusers.LatentConsistencyModelPipeline
        told = pipeline.get_guidance_scale_embedding(None, scale - 1, embedding_dim=config.guidance_width)
    with torch.no_grad():
        expected = judge(x, 431.0, encoder_hidden_states=context, timestep_cond=told).sample
        found = ours(x, torch.tensor(431.0), context, guidance=scale)
    assert float((found - expected).abs().max()) < 1e-4 * float(expected.abs().max())


def test_a_scale_for_a_network_that_takes_none_is_refused() -> None:
    network = UNet(unet_config({k: tuple(v.shape) for k, v in theirs().state_dict().items()}, "ours", "here"))
    with pytest.raises(ShapeMismatch, match="guidance"):
        network(torch.zeros(1, 4, 8, 8), torch.tensor(1.0), torch.zeros(1, 5, 24), guidance=torch.tensor([8.5]))


@pytest.fixture(scope="module")
def consistency(twins: Twins, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A pipeline of diffusers and its folder."""
    plain = twins.of("sd1").theirs
    unet = theirs(time_cond_proj_dim=64, cross_attention_dim=32)
    scheduler = diffusers.LCMScheduler()
    pipeline = diffusers.LatentConsistencyModelPipeline(
        plain.vae, plain.text_encoder, plain.tokenizer, unet, scheduler, None, None, requires_safety_checker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    folder = tmp_path_factory.mktemp("lcm") / "lcm"
    pipeline.save_pretrained(folder)
    return pipeline, folder


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")
@pytest.mark.parametrize(
    ("steps", "scale"),
    [(4, None), pytest.param(2, 3.0, marks=pytest.mark.slow), pytest.param(1, 1.0, marks=pytest.mark.slow)],
)
def test_a_consistency_model_paints_as_its_own_pipeline(
    consistency: tuple[Any, Path], steps: int, scale: float | None
) -> None:
    judge, folder = consistency
    ours = Pipeline.load(folder, device="cpu")
    asked = {"num_inference_steps": steps, **({} if scale is None else {"guidance_scale": scale})}
    request = Request.from_dict(
        {"prompt": "a cup", "seed": 3, "determinism": "cpu", "width": 32, "height": 32, **asked}, where="request"
    )
    (painted,) = ours.paint(request)
    expected = judge(
        "a cup", height=32, width=32, generator=torch.Generator().manual_seed(3), output_type="np", **asked
    ).images[0]
    error = float(np.mean((np.asarray(painted.image, np.float64) / 255 - np.round(expected * 255.0) / 255) ** 2))
    assert error <= 1e-6  # 60 dB
    assert painted.recipe.request.guidance_scale == (8.5 if scale is None else scale)
    assert ours.resolve(Request()).num_inference_steps == 4


def test_what_is_left_unused_is_noted_and_the_folder_written_again(
    consistency: tuple[Any, Path], tmp_path: Path
) -> None:
    _, folder = consistency
    notes = (
        Pipeline.load(folder, device="cpu").plan(Request(prompt="a", negative_prompt="b", guidance_rescale=0.5)).notes
    )
    assert sum("told the guidance scale" in note for note in notes) == 2
    convert(folder, tmp_path / "own", "gouache")
    convert(tmp_path / "own", tmp_path / "again", "diffusers")
    assert load_bundle(tmp_path / "again").unet.config == load_bundle(folder).unet.config
    diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "again" / "unet")
    convert(folder, tmp_path / "one.safetensors", "single-file")
    alone = load_bundle(tmp_path / "one.safetensors")
    assert alone.unet.config.guidance_width == 64
    assert (alone.defaults.sampler, alone.defaults.num_inference_steps, alone.defaults.guidance_scale) == (
        "lcm",
        4,
        8.5,
    )


@pytest.mark.slow
def test_a_single_file_is_painted_as_its_folder(consistency: tuple[Any, Path], tmp_path: Path) -> None:
    """By the settings that it carries, and without them by its U-Net alone."""
    _, folder = consistency
    convert(folder, tmp_path / "one.safetensors", "single-file")
    with safe_open(tmp_path / "one.safetensors", "pt") as file:
        configs = {key: text for key, text in file.metadata().items() if key.startswith("gouache.config.")}
    save_file(load_file(tmp_path / "one.safetensors"), tmp_path / "other.safetensors", configs)
    plain = Request(prompt="a cup", seed=3, determinism="cpu", width=32, height=32)
    (wanted,) = Pipeline.load(folder, device="cpu").paint(plain)
    sources = {"one": "the model's LCMScheduler", "other": "its U-Net, which is told the guidance scale"}
    for name, source in sources.items():
        (painted,) = Pipeline.load(tmp_path / f"{name}.safetensors", device="cpu").paint(plain)
        assert np.abs(np.asarray(painted.image, int) - np.asarray(wanted.image, int)).max() <= 1
        assert f"from {source}: sampler lcm" in painted.recipe.notes[0]


def test_a_width_that_is_not_the_weights_is_refused(consistency: tuple[Any, Path], tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "copy"
    shutil.copytree(consistency[1], folder)
    config = json.loads((folder / "unet/config.json").read_text())
    (folder / "unet/config.json").write_text(json.dumps({**config, "time_cond_proj_dim": None}))
    with pytest.raises(IncompatibleCheckpoint, match="time_cond_proj_dim"):
        load_bundle(folder)
