"""Adapters from the outside: listed, described, named in a prompt, and asked for again by a replay."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

from gouache.checkpoints.hub import file_sha256
from gouache.cli.main import app
from gouache.errors import GouacheError
from gouache.models.conditioning.controlnet import ControlNet, ControlNetConfig
from gouache.models.conditioning.image_encoder import ImageEncoder, ImageEncoderConfig
from gouache.models.conditioning.ip_adapter import IPAdapter, IPAdapterConfig
from gouache.pipeline.pipeline import UNET, fill

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
    lora = {
        f"{PLACE}.lora_down.weight": torch.randn(2, 16, generator=generator),
        f"{PLACE}.lora_up.weight": torch.randn(16, 2, generator=generator),
    }
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
    save_file(
        {f"{PLACE}.lora_down.weight": torch.ones(2, 16), f"{PLACE}.lora_up.weight": torch.ones(16, 2)},
        adapters / "film.safetensors",
    )
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


@pytest.fixture
def control(adapters: Path) -> Path:
    """A ControlNet for the untrained model, in a folder as diffusers writes it, and a picture for it."""
    folder = adapters.parent / "ControlNet" / "lines"
    folder.mkdir(parents=True)
    network = ControlNet(ControlNetConfig(unet=UNET, hint_widths=(4, 8, 8)))
    fill(network, torch.Generator().manual_seed(3))
    save_file(network.state_dict(), folder / "diffusion_pytorch_model.safetensors")
    (folder / "config.json").write_text(json.dumps({"attention_head_dim": 2, "norm_num_groups": 8}))
    picture = Image.new("RGB", (48, 32), "white")
    ImageDraw.Draw(picture).ellipse((12, 8, 30, 26), fill="black")
    picture.save("lines.png")
    return folder


@pytest.fixture
def ip_adapter(adapters: Path) -> Path:
    """An IP-Adapter for the untrained model with its vision tower beside it, and a picture."""
    folder = adapters.parent / "ipadapter"
    tower = ImageEncoder(
        ImageEncoderConfig(
            image_size=28, patch_size=14, width=32, inner_width=64, layers=2, heads=1, projection_width=24
        )
    )
    network = IPAdapter(IPAdapterConfig(picture_width=24, context_width=32, block_widths=(16, 32, 32, 32, 16, 16, 32)))
    (folder / "image_encoder").mkdir(parents=True)
    for seed, (made, file) in enumerate(((network, "style"), (tower, "image_encoder/model"))):
        fill(made, torch.Generator().manual_seed(seed))
        save_file(made.state_dict(), folder / f"{file}.safetensors")
    (folder / "image_encoder" / "config.json").write_text(json.dumps({"num_attention_heads": 1}))
    Image.radial_gradient("L").convert("RGB").save("sun.png")
    return folder


def test_an_ip_adapter_is_listed_used_recorded_and_asked_for_by_a_replay(ip_adapter: Path) -> None:
    (listed,) = json.loads(run("models", "--json").stdout)["ip_adapters"]
    assert (listed["name"], listed["is"]) == ("style", "IP-Adapter, plain")
    assert json.loads(run("models", "--json").stdout)["controls"] == []
    assert "ip-adapter" in run("inspect", "style").stdout
    assert run("paint", "a ball", *QUICK, "-o", "plain.png").exit_code == 0
    painted = run("paint", "a ball", *QUICK, "--image-prompt", "style:sun.png:0.8,end=0.9", "-o", "a.png")
    assert painted.exit_code == 0, painted.output
    assert Path("a.png").read_bytes() != Path("plain.png").read_bytes()
    (told,) = json.loads(run("show", "a.png", "--json").stdout)["request"]["image_prompts"]
    assert (told["adapter"], told["images"], told["weight"], told["end"]) == ("style", ["sun.png"], 0.8, 0.9)
    assert "identical" in run("replay", "a.png").stdout
    (ip_adapter / "image_encoder" / "model.safetensors").unlink()
    lost = run("replay", "a.png")
    assert (lost.exit_code, "image-encoder" in lost.stderr) == (2, True)


def test_a_controlnet_is_listed_used_recorded_and_asked_for_by_a_replay(control: Path) -> None:
    (listed,) = json.loads(run("models", "--json").stdout)["controls"]
    assert (listed["name"], listed["path"]) == ("lines", str(control))
    assert "controlnet, ControlNet, diffusers names" in run("models").stdout
    assert "ControlNet, diffusers names" in run("inspect", "lines").stdout
    assert run("paint", "a ball", *QUICK, "-o", "plain.png").exit_code == 0
    form = "lines:lines.png:0.7,preprocessor=canny,end=0.9"
    assert run("paint", "a ball", *QUICK, "--control", form, "-o", "a.png").exit_code == 0
    edited = run(
        "edit", "plain.png", "a ball", *QUICK, "--control", "lines:lines.png", "--control", form, "-o", "b.png"
    )
    assert edited.exit_code == 0, edited.output
    assert len({Path(name).read_bytes() for name in ("plain.png", "a.png", "b.png")}) == 3
    (told,) = json.loads(run("show", "a.png", "--json").stdout)["request"]["control"]
    assert (told["model"], told["weight"], told["preprocessor"]) == ("lines", 0.7, "canny")
    assert "identical" in run("replay", "a.png").stdout
    assert "identical" in run("replay", "b.png").stdout
    assert run("paint", "--like", "a.png", "-o", "again.png").exit_code == 0
    with Image.open("a.png") as first, Image.open("again.png") as second:
        assert first.tobytes() == second.tobytes()
    Image.new("RGB", (48, 32)).save("lines.png")
    assert "a picture that has changed" in run("replay", "a.png").stderr
    (control / "config.json").rename(control / "other.json")
    (control / "diffusion_pytorch_model.safetensors").unlink()
    lost = run("replay", "a.png")
    assert (lost.exit_code, "changed" in lost.stderr or "controlnet" in lost.stderr) == (2, True)


@pytest.mark.parametrize(
    ("form", "words", "code"),
    [
        ("linse:lines.png", "Did you mean 'lines'", 3),
        ("lines", "MODEL:PICTURE", 2),
        ("lines:nowhere.png", "no such file", 2),
        ("lines:lines.png:11", "less than or equal to 10", 2),
        ("lines:lines.png,preprocessor=pose", "'none', 'canny', 'inpaint', 'depth' or 'segmentation'", 2),
    ],
)
def test_a_control_that_can_not_be_used_is_said_so(control: Path, form: str, words: str, code: int) -> None:
    assert control.is_dir()
    result = run("paint", "a ball", *QUICK, "--control", form, "-o", "a.png")
    assert isinstance(result.exception, GouacheError), result.output
    assert result.exception.exit_code == code
    assert words in str(result.exception)
    assert not Path("a.png").exists()
