"""Adapters on the disk, tags in prompts, and files that can't be used."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from gouache.checkpoints.adapters.library import AdapterFolder, list_adapters
from gouache.errors import InvalidInput, ModelNotFound
from gouache.models.bundle import ModelBundle
from gouache.pipeline.pipeline import Pipeline
from gouache.pipeline.request import Request


def folder_with(tmp_path: Path, name: str, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    path = tmp_path / "adapters" / f"{name}.safetensors"
    path.parent.mkdir(exist_ok=True)
    save_file(tensors, path, metadata)
    return path


def use_folder(pipeline: Pipeline, folder: Path) -> None:
    pipeline.adapters.folder = AdapterFolder(folder)


@pytest.mark.parametrize(
    "prompt",
    [
        "<lora:>",
        "<lora:a:b>",
        "<lora:a:1:2:3>",
        "<lora:a:dyn=3>",
        "<lora:a:te=1:te=2>",
        "<lora:a:1e9>",
        "<lora:a:nan>",
        "<lora:a:1000>",
        "<hypernet:a:1>",
    ],
)
def test_a_tag_that_cannot_be_read_is_an_error(pipe: Pipeline, prompt: str) -> None:
    with pytest.raises(InvalidInput, match="prompt: given <"):
        pipe.run(Request(prompt=prompt))


def test_a_missing_adapter_is_named_with_the_nearest(tiny: ModelBundle, tmp_path: Path) -> None:
    folder_with(tmp_path, "filmgrain", {"x.lora_up.weight": torch.ones(1)})
    pipeline = Pipeline(tiny)
    use_folder(pipeline, tmp_path)
    with pytest.raises(ModelNotFound, match="filmgrain"):
        pipeline.run(Request(prompt="<lora:filmgrains>"))
    with pytest.raises(ModelNotFound, match="no such LoRA"):
        pipeline.run(Request(prompt="<lora:../../etc/passwd>"))


def test_the_trainers_name_is_an_alias_and_one_name_means_one_file(tmp_path: Path) -> None:
    tensors = {"lora_unet_x.lora_up.weight": torch.ones(1, 1)}
    folder_with(tmp_path, "v2-final", tensors, {"ss_output_name": "film"})
    folder = AdapterFolder(tmp_path)
    assert folder.lora("film").name == folder.lora("V2-Final").name == "v2-final"
    (tmp_path / "Lora" / "deep").mkdir(parents=True)
    save_file(tensors, tmp_path / "Lora" / "deep" / "v2-final.safetensors")
    with pytest.raises(InvalidInput, match="2 files"):
        AdapterFolder(tmp_path).lora("v2-final")


def test_the_list_of_adapters(tmp_path: Path) -> None:
    folder_with(tmp_path, "film", {"lora_unet_x_attn2_to_k.lora_down.weight": torch.ones(4, 768)})
    (tmp_path / "embeddings").mkdir()
    torch.save({"string_to_param": {"*": torch.ones(2, 768)}}, tmp_path / "embeddings" / "blob.pt")
    (tmp_path / "loras").mkdir()
    (tmp_path / "loras" / "torn.safetensors").write_bytes(b"no such thing")
    found = {file.name: (file.kind, file.family) for file in list_adapters(tmp_path)}
    assert found == {"film": ("lora", "sd1"), "blob": ("textual-inversion", "sd1"), "torn": ("lora", "unknown")}
    assert list_adapters(tmp_path / "nowhere") == []
