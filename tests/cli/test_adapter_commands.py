"""Adapters from the outside: listed, described, named in a prompt, and asked for again by a replay."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

from gouache.checkpoints.hub import file_sha256
from gouache.cli.main import app
from gouache.errors import GouacheError

QUICK = ("--steps", "2", "--model", "untrained", "--size", "32", "--seed", "5")
PLACE = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments])


@pytest.fixture
def adapters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A models folder with one LoRA and one textual inversion for the untrained model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GOUACHE_MODELS", str(tmp_path / "models"))
    folder = tmp_path / "models" / "adapters"
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(1)
    lora = {f"{PLACE}.lora_down.weight": torch.randn(2, 16, generator=generator),
            f"{PLACE}.lora_up.weight": torch.randn(16, 2, generator=generator)}  # fmt: skip
    save_file(lora, folder / "film.safetensors", {"ss_network_alpha": "2"})
    save_file({"emb_params": torch.randn(2, 32, generator=generator)}, folder / "blob.safetensors")
    return folder


def test_models_and_inspect_describe_adapters(adapters: Path) -> None:
    listed = json.loads(run("models", "--json").stdout)
    assert listed["models"] == []
    described = [(one["name"], one["kind"], one["path"]) for one in listed["adapters"]]
    assert described == [
        ("film", "lora", str(adapters / "film.safetensors")),
        ("blob", "textual-inversion", str(adapters / "blob.safetensors")),
    ]
    lines = run("models").stdout.splitlines()
    assert "rank 2 in 1 layer of the U-Net" in lines[0]
    assert "2 vectors" in lines[1]
    told = run("inspect", "film").stdout
    assert "changes     rank 2 in 1 layer of the U-Net" in told
    assert "ss_network_alpha = 2" in told


def test_a_prompt_names_adapters_and_a_replay_wants_the_same(adapters: Path) -> None:
    assert run("paint", "a cat", *QUICK, "-o", "plain.png").exit_code == 0
    assert run("paint", "a blob <lora:film:0.5>", *QUICK, "-o", "a.png").exit_code == 0
    shown = run("show", "a.png").stdout
    digest = file_sha256(adapters / "film.safetensors")
    assert f"adapter: film (lora), sha256 {digest}" in shown
    assert "adapter: blob (textual-inversion)" in shown
    assert "identical" in run("replay", "a.png").stdout
    # A word that was none when the picture was painted stays none.
    save_file({"emb_params": torch.randn(2, 32)}, adapters / "cat.safetensors")
    assert "identical" in run("replay", "plain.png").stdout
    save_file({f"{PLACE}.lora_down.weight": torch.ones(2, 16), f"{PLACE}.lora_up.weight": torch.ones(16, 2)},
              adapters / "film.safetensors")  # fmt: skip
    changed = run("replay", "a.png")
    assert (changed.exit_code, "another file" in changed.stderr) == (2, True)
    (adapters / "film.safetensors").unlink()
    lost = run("replay", "a.png")
    assert lost.exit_code == 2
    assert f"expected the lora with sha256 {digest}" in lost.stderr


def test_a_missing_adapter_is_exit_code_three(adapters: Path) -> None:
    result = run("paint", "a cat <lora:flim>", *QUICK, "-o", "a.png")
    assert isinstance(result.exception, GouacheError)
    assert result.exception.exit_code == 3
    assert "Did you mean 'film'?" in str(result.exception)
    assert not Path("a.png").exists()
    assert adapters.is_dir()
