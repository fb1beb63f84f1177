"""What a trained LoRA's file says, how it is read by other libraries, and that a run goes on bit for bit."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import tests.training.lora_twins as training
import torch
from tests.pipeline.twins import Twins
from torch import nn

from gouache.checkpoints.formats.header import read_header
from gouache.checkpoints.formats.safetensors import load_tensors
from gouache.checkpoints.merging.lora_files import LoraFacts, lora_metadata, lora_tensors
from gouache.training.low_rank import LowRank
from gouache.training.state import checkpoints


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Stable Diffusion 1 in diffusers' folder."""
    folder = tmp_path_factory.mktemp("model") / "tiny-sd1"
    Twins(folder.parent).of("sd1").save(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five captioned pictures, packed."""
    return training.packed(tmp_path_factory.mktemp("data"))


def kohyas_hashes(tensors: dict[str, torch.Tensor], metadata: Mapping[str, str]) -> tuple[str, str]:
    """As sd-scripts makes them: of the safetensors library's file with the `ss_` keys alone."""
    told = {key: value for key, value in metadata.items() if key.startswith("ss_")}
    file = io.BytesIO(safetensors.torch.save(tensors, told))
    length = int.from_bytes(file.read(8), "little")
    file.seek(8 + length)
    whole = hashlib.sha256(file.read()).hexdigest()
    file.seek(0x100000)
    return whole, hashlib.sha256(file.read(0x10000)).hexdigest()[:8]


def test_the_file_says_what_others_show_and_nothing_of_when_or_where(start: Path, data: Path, tmp_path: Path) -> None:
    table: dict[str, Any] = {"dora": True, "conv_rank": 2, "name": "my squares", "rank": 8, "layers": ("*attn2*",)}
    table |= {"ranks": {"*_to_v": 3}, "conv_rank": 0}
    first, second = (training.Trained(start, data, tmp_path / name, 4, **table).file for name in ("one", "two"))
    assert first.read_bytes() == second.read_bytes()
    told, tensors = read_header(first).metadata, load_tensors(first)
    assert {tensor.shape[0] for name, tensor in tensors.items() if name.endswith("to_v.lora_down.weight")} == {3}
    assert {tensor.shape[0] for name, tensor in tensors.items() if name.endswith("to_q.lora_down.weight")} == {8}
    assert all(float(tensor) in (3, 8) for name, tensor in tensors.items() if name.endswith(".alpha"))
    expected = {
        "ss_network_module": "lycoris.kohya",
        "ss_network_dim": "8",
        "ss_network_alpha": "8.0",
        "ss_base_model_version": "sd_v1",
        "ss_v2": "False",
        "ss_sd_model_name": "tiny-sd1",
        "ss_resolution": "(32, 32)",
        "ss_num_train_images": "5",
        "ss_max_train_steps": "1",
        "ss_steps": "1",
        "ss_output_name": "my squares",
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.title": "my squares",
        "modelspec.resolution": "32x32",
        "modelspec.prediction_type": "epsilon",
    }
    assert {key: told[key] for key in expected} == expected
    assert json.loads(told["ss_network_args"])["dora_wd"] == "True"
    (tags,) = json.loads(told["ss_tag_frequency"]).values()
    assert tags == {f"a square number {i}": 1 for i in range(5)}
    assert list(json.loads(told["ss_dataset_dirs"]).values()) == [{"n_repeats": 1, "img_count": 5}]
    assert (told["sshs_model_hash"], told["sshs_legacy_hash"]) == kohyas_hashes(tensors, told)
    assert not [key for key in told if "date" in key or key.endswith("_at")]


def test_the_old_hash_reads_the_piece_that_it_should() -> None:
    tensors = {f"lora_unet_{i}.lora_down.weight": torch.full((300, 500), float(i)) for i in range(4)}
    told = lora_metadata(LoraFacts(family="sd1", name="é", rank=300, alpha=300), tensors)
    assert (told["sshs_model_hash"], told["sshs_legacy_hash"]) == kohyas_hashes(tensors, told)


@pytest.mark.parametrize("kind", ["linear", "convolution"])
@torch.no_grad()
def test_lycoris_makes_the_same_weight_of_dora(kind: str) -> None:
    from lycoris.modules.locon import LoConModule

    torch.manual_seed(0)
    layer: nn.Linear | nn.Conv2d = nn.Linear(6, 5) if kind == "linear" else nn.Conv2d(6, 5, 3, padding=1)
    change = LowRank(layer, 2, 1.0, dora=True)
    nn.init.normal_(change.up)
    assert change.magnitude is not None
    nn.init.uniform_(change.magnitude, 0.5, 2.0)
    own = lora_tensors("it", change.down, change.up, change.alpha, torch.float32, change.magnitude)
    up, down = own["it.lora_up.weight"], own["it.lora_down.weight"]
    theirs = LoConModule.make_module_from_state_dict(
        "it", layer, up.detach(), down.detach(), None, own["it.alpha"], own["it.dora_scale"]
    )
    merged, _ = theirs.get_merged_weight(1.0, layer.weight.shape)
    x = torch.randn(2, 6) if kind == "linear" else torch.randn(2, 6, 7, 7)
    assert layer.bias is not None
    given = {"weight": merged.view_as(layer.weight), "bias": layer.bias}
    expected = torch.func.functional_call(layer, given, (x,))
    assert torch.allclose(change(layer, x, layer(x)), expected, atol=1e-5)


@pytest.mark.every_time("text")
@pytest.mark.parametrize("kind", list(training.KINDS))
def test_a_resumed_run_is_bit_for_bit_the_whole_one(kind: str, start: Path, data: Path, tmp_path: Path) -> None:
    table = {**training.KINDS[kind], "dropout": 0.1, "layers": ("*attn2*", *(("*te_*",) if kind == "text" else ()))}
    if kind in ("LoCon", "DoRA"):
        table["layers"] = (*table["layers"], "*resnets*")
    training.Trained(start, data, tmp_path / "whole", 8, **table)
    for images in (4, 8):
        training.Trained(start, data, tmp_path / "parts", images, **table)
    whole, parts = (load_tensors(checkpoints(tmp_path / run / "lora")[-1]) for run in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert [name for name in whole if not torch.equal(whole[name], parts[name])] == []


@pytest.mark.slow
def test_accumulated_steps_with_text_encoders_are_whole_ones(start: Path, data: Path, tmp_path: Path) -> None:
    rate = {"learning_rate": 1e-3, "warmup_images": 0, "epsilon": 1e-4}
    saved = []
    for parts in (1, 4):
        table: dict[str, Any] = {"text": True, "optimizer": {**rate, "accumulation": parts}}
        training.Trained(start, data, tmp_path / str(parts), 16, **table)
        saved.append(load_tensors(checkpoints(tmp_path / str(parts) / "lora")[-1]))
    changes = [name for name in saved[0] if name.startswith("network.")]
    assert any("lora_te" in name for name in changes)
    assert all(torch.allclose(saved[0][name], saved[1][name], atol=1e-5) for name in changes)
