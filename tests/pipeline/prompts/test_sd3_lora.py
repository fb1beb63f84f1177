"""LoRA files of Stable Diffusion 3: diffusers' and peft's names judged by diffusers, those of single files by the same
change made in a single file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gouache.checkpoints.adapters.layer_names import LayerNames
from gouache.checkpoints.adapters.library import AdapterFolder
from gouache.checkpoints.adapters.lora import read_lora
from gouache.checkpoints.convert import convert
from gouache.checkpoints.formats.header import read_header
from gouache.checkpoints.identify import identify
from gouache.errors import IncompatibleCheckpoint
from gouache.pipeline.pipeline import Pipeline
from gouache.pipeline.request import Request

if TYPE_CHECKING:
    from tests.pipeline.sd3_twins import Sd3Twins

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
]

KIND = "3.5 medium"
RANK, ALPHA, WEIGHT = 3, 2.0, 0.7
REQUEST = Request(
    prompt=f"a red apple <lora:made:{WEIGHT}>",
    negative_prompt="grey",
    seed=5,
    num_inference_steps=2,
    guidance_scale=3.0,
    max_sequence_length=8,
    width=32,
    height=32,
)


@pytest.fixture(scope="module")
def own(sd3: Sd3Twins, tmp_path_factory: pytest.TempPathFactory) -> Sd3Twins:
    """Twins for this file alone: a LoRA that was fused leaves rounding behind."""
    made = type(sd3)(tmp_path_factory.mktemp("own_sd3"), sd3.twins)
    made.ours(KIND)
    return made


def psnr(image: Any, expected: np.ndarray) -> float:
    error = np.asarray(image, dtype=np.float64) / 255 - np.round(expected.astype(np.float64) * 255) / 255
    return float(-10 * np.log10(np.mean(error**2) + 1e-12))


def painted(pipeline: Pipeline, tmp_path: Path, tensors: dict[str, Tensor], request: Request = REQUEST) -> Any:
    """The picture with these tensors as the adapter `made`."""
    (tmp_path / "adapters").mkdir(exist_ok=True)
    save_file(tensors, tmp_path / "adapters" / "made.safetensors")
    ours = Pipeline(pipeline.bundle)
    ours.adapters.folder = AdapterFolder(tmp_path)
    return ours.paint(request)[0]


def lora_of(network: Any, targets: tuple[str, ...], seed: int) -> dict[str, Tensor]:
    """Random halves for the layers whose names end so, in peft's names."""
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, Tensor] = {}
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear) and name.endswith(targets):
            down = torch.randn(RANK, module.in_features, generator=generator) * 0.3
            up = torch.randn(module.out_features, RANK, generator=generator) * 0.3
            found |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
    return found


@pytest.fixture(scope="module")
def tensors(own: Sd3Twins) -> dict[str, Tensor]:
    """A LoRA of the network and both CLIPs in diffusers' names."""
    theirs = own.theirs(KIND)
    attention = ("attn.to_q", "attn.to_out.0", "attn.add_k_proj", "attn.to_add_out", "attn2.to_v", "ff.net.0.proj")
    changed = {
        "transformer": (*attention, "norm_out.linear", "proj_out"),
        "text_encoder": ("q_proj", "out_proj", "fc1"),
        "text_encoder_2": ("q_proj", "out_proj", "fc1"),
    }
    found: dict[str, Tensor] = {}
    for seed, (part, targets) in enumerate(changed.items()):
        found |= {f"{part}.{name}": tensor for name, tensor in lora_of(getattr(theirs, part), targets, seed).items()}
    return found


def test_diffusers_and_pefts_names_paint_as_diffusers(
    own: Sd3Twins, tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    theirs, ours = own.theirs(KIND), own.ours(KIND)
    theirs.load_lora_weights(tensors, adapter_name="made")
    theirs.set_adapters(["made"], [WEIGHT])
    plain = REQUEST.replace({"prompt": "a red apple "})
    expected = own.their_picture(theirs, plain)
    theirs.delete_adapters("made")
    found = painted(ours, tmp_path, tensors)
    assert psnr(found.image, expected) >= 60
    assert not np.array_equal(np.asarray(found.image), np.asarray(ours.paint(plain)[0].image))
    assert not any("left out" in note for note in found.recipe.notes)
    network = {
        f"base_model.model.{name.removeprefix('transformer.')}": tensor
        for name, tensor in tensors.items()
        if name.startswith("transformer.")
    }
    alone = {name: tensor for name, tensor in tensors.items() if name.startswith("transformer.")}
    pictures = [painted(ours, tmp_path, one).image for one in (network, alone)]
    assert np.array_equal(*pictures)


def halves(tensors: dict[str, Tensor], seed: int = 7) -> dict[str, tuple[Tensor, Tensor]]:
    """Random halves for every matrix of a single file's network, by its name without the prefix."""
    generator = torch.Generator().manual_seed(seed)
    prefix, found = "model.diffusion_model.", {}
    for name, tensor in tensors.items():
        if name.startswith(prefix) and name.endswith(".weight") and tensor.ndim == 2:
            up = torch.randn(tensor.shape[0], RANK, generator=generator) * 0.1
            down = torch.randn(RANK, tensor.shape[1], generator=generator) * 0.1
            found[name.removeprefix(prefix).removesuffix(".weight")] = (up, down)
    return found


def test_names_of_single_files_change_what_they_change_there(own: Sd3Twins, tmp_path: Path) -> None:
    """One matrix for queries, keys and values, and scale and shift the other way round, in kohya's and ComfyUI's."""
    base = tmp_path / "base.safetensors"
    convert(own.path(KIND), base, "single-file")
    whole = load_file(base)
    changes = halves(whole)
    assert sum("qkv" in name for name in changes) == 8
    for name, (up, down) in changes.items():
        whole[f"model.diffusion_model.{name}.weight"] += WEIGHT * ALPHA / RANK * up @ down
    kept = {key: value for key, value in read_header(base).metadata.items() if ".config." in key}
    save_file(whole, tmp_path / "changed.safetensors", kept)
    plain = REQUEST.replace({"prompt": "a red apple "})
    expected = Pipeline.load(tmp_path / "changed.safetensors").paint(plain)[0].image
    files: list[dict[str, Tensor]] = [{}, {}]
    for name, (up, down) in changes.items():
        spelling = f"lora_unet_{name.replace('.', '_')}"
        files[0] |= {f"{spelling}.lora_up.weight": up, f"{spelling}.lora_down.weight": down}
        files[0][f"{spelling}.alpha"] = torch.tensor(ALPHA)
        spelling = f"diffusion_model.{name}"
        files[1] |= {f"{spelling}.lora_B.weight": up * ALPHA / RANK, f"{spelling}.lora_A.weight": down}
    for tensors in files:
        found = painted(own.ours(KIND), tmp_path, tensors)
        assert psnr(found.image, np.asarray(expected) / 255) >= 60
        assert not any("left out" in note for note in found.recipe.notes)
        label = identify(tmp_path / "adapters" / "made.safetensors")
        assert (label.kind, label.family) == ("lora", "sd3")
        assert "doesn't run" not in label.label


def test_what_mixes_rows_of_three_matrices_is_left_out(own: Sd3Twins, tmp_path: Path) -> None:
    """A magnitude for each input goes over queries, keys and values at once; one for each output doesn't."""
    bundle = own.ours(KIND).bundle
    names, width = LayerNames(bundle.unet, bundle.text), bundle.unet.config.in_channels * 2
    spelling = "lora_unet_joint_blocks_0_x_block_attn_qkv"
    halves = {
        f"{spelling}.lora_up.weight": torch.ones(3 * width, 1),
        f"{spelling}.lora_down.weight": torch.ones(1, width),
    }
    whole = halves | {f"{spelling}.dora_scale": torch.ones(3 * width, 1)}
    save_file(whole, tmp_path / "outputs.safetensors")
    assert len(read_lora(tmp_path / "outputs.safetensors", names, "sd3").changes) == 3
    save_file(halves | {f"{spelling}.dora_scale": torch.ones(1, width)}, tmp_path / "inputs.safetensors")
    with pytest.raises(IncompatibleCheckpoint, match="queries, keys and values together"):
        read_lora(tmp_path / "inputs.safetensors", names, "sd3")
    wrong = {name: tensor[:-1] if "up" in name else tensor for name, tensor in halves.items()}
    save_file(wrong, tmp_path / "wrong.safetensors")
    with pytest.raises(IncompatibleCheckpoint, match="another shape"):
        read_lora(tmp_path / "wrong.safetensors", names, "sd3")


def test_a_lora_of_another_family_is_refused(own: Sd3Twins, tmp_path: Path) -> None:
    spelling = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
    tensors = {f"{spelling}.lora_up.weight": torch.ones(640, 2), f"{spelling}.lora_down.weight": torch.ones(2, 768)}
    with pytest.raises(IncompatibleCheckpoint, match="a LoRA of sd1"):
        painted(own.ours(KIND), tmp_path, tensors)
