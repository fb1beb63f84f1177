"""Models and autoencoders that lie apart: a checkpoint without one and `--vae FILE`, or parts in files of their own.

The kind: every layout in which programs write an autoencoder, named beside a model, and every way to lay the parts of
one model into a folder. The judge is the whole checkpoint, whose picture has to come out bit for bit.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from gouache.checkpoints.convert import convert
from gouache.checkpoints.load import identify, load_bundle
from gouache.checkpoints.vae_library import find_vae, list_vaes
from gouache.cli.main import app
from gouache.errors import ConfigError, GouacheError, IncompatibleCheckpoint, ModelNotFound
from gouache.pipeline.output.foreign import read_recipe
from gouache.pipeline.pipeline import Pipeline
from gouache.pipeline.request import Request

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
Published = Callable[[str], Path]
Tensors = dict[str, torch.Tensor]
UNET, VAE = "model.diffusion_model.", "first_stage_model."
REQUEST = Request(prompt="a fox", seed=3, num_inference_steps=1, width=32, height=32)


class Family:
    """A family's whole checkpoint, its parts, and the picture that it paints."""

    def __init__(self, folder: Path, published: Path) -> None:
        self.published = published
        self.whole = folder / "whole.safetensors"
        convert(published, self.whole, "single-file")
        self.tensors: Tensors = load_file(self.whole)
        self.vae = {name.removeprefix(VAE): one for name, one in self.tensors.items() if name.startswith(VAE)}
        self.rest = {name: one for name, one in self.tensors.items() if not name.startswith(VAE)}
        self.pixels = self.painted(self.whole)

    def painted(self, model: Path, **options: Any) -> str | None:
        return Pipeline.load(model).paint(REQUEST.replace(options))[0].recipe.pixels


@pytest.fixture(scope="module")
def families(published: Published, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Family]:
    @cache
    def family(name: str) -> Family:
        return Family(tmp_path_factory.mktemp(name), published(name))

    return family


def old_names(folder: Path) -> Tensors:
    words = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    found = {}
    for name, tensor in load_file(folder / "vae/diffusion_pytorch_model.safetensors").items():
        for ours, theirs in words.items():
            name = name.replace(f"attentions.0.{ours}.", f"attentions.0.{theirs}.")
        found[name] = tensor
    return found


def lightning(tensors: Tensors) -> dict[str, Any]:
    losses = {"loss.perceptual_loss.lin0.weight": torch.ones(2), "loss.logvar": torch.ones(1)}
    return {"state_dict": tensors | losses, "epoch": 3, "global_step": 840000}


def write_folder(family: Family, path: Path) -> Path:
    shutil.copytree(family.published / "vae", path)
    return path


LAYOUTS: dict[str, Callable[[Family, Path], Any]] = {
    "kl.safetensors": lambda f, p: save_file(f.vae, p),
    "prefixed.safetensors": lambda f, p: save_file({VAE + name: one for name, one in f.vae.items()}, p),
    "nodes.safetensors": lambda f, p: save_file({"vae." + name: one for name, one in f.vae.items()}, p),
    "diffusers.safetensors": lambda f, p: shutil.copy(f.published / "vae/diffusion_pytorch_model.safetensors", p),
    "old diffusers.safetensors": lambda f, p: save_file(old_names(f.published), p),
    "lightning.vae.pt": lambda f, p: torch.save(lightning(f.vae), p),
    "lightning.ckpt": lambda f, p: torch.save(lightning(f.vae), p, _use_new_zipfile_serialization=False),
    "torch.bin": lambda f, p: torch.save(f.vae, p),
    "with ema.safetensors": lambda f, p: save_file(f.vae | {"model_ema.decay": torch.ones(1)}, p),
    "a checkpoint.safetensors": lambda f, p: shutil.copy(f.whole, p),
    "a folder": write_folder,
    "a pipeline": lambda f, p: shutil.copytree(f.published, p),
}


@pytest.mark.every_time("kl.*", "prefixed.*", "lightning.ckpt-*", "torch.bin-*", "a folder-*")
@pytest.mark.parametrize("family", ["sd1", pytest.param("sdxl", marks=pytest.mark.slow)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_model_without_an_autoencoder_paints_with_one_named_beside_it(
    families: Callable[[str], Family], tmp_path: Path, layout: str, family: str
) -> None:
    one = families(family)
    model, vae = tmp_path / "model.safetensors", tmp_path / layout
    save_file(one.rest, model)
    LAYOUTS[layout](one, vae)
    assert one.painted(model, vae=str(vae)) == one.pixels
    bundle = load_bundle(model, vae=vae)
    assert bundle.vae.config.scale == (0.13025 if family == "sdxl" else 0.18215)


def test_another_autoencoder_takes_the_place_of_the_models_own(
    families: Callable[[str], Family], tmp_path: Path
) -> None:
    one = families("sd1")
    other = {name: tensor * 1.1 for name, tensor in one.vae.items()}
    save_file(other, tmp_path / "other.safetensors")
    whole = one.rest | {VAE + name: tensor for name, tensor in other.items()}
    save_file(whole, tmp_path / "whole.safetensors")
    pipeline = Pipeline.load(one.whole)
    named = pipeline.paint(REQUEST.replace({"vae": str(tmp_path / "other.safetensors")}))[0]
    assert named.recipe.pixels == one.painted(tmp_path / "whole.safetensors") != one.pixels
    assert any("VAE" in note and "sha256" in note for note in named.recipe.notes)
    assert pipeline.paint(REQUEST)[0].recipe.pixels == one.pixels


def test_without_a_name_the_refusal_says_how_to_give_one(families: Callable[[str], Family], tmp_path: Path) -> None:
    save_file(families("sd1").rest, tmp_path / "model.safetensors")
    for attempt in (load_bundle, lambda path: Pipeline.load(path).paint(REQUEST)):
        with pytest.raises(IncompatibleCheckpoint, match=r"without an autoencoder.*--vae FILE.*sd_vae"):
            attempt(tmp_path / "model.safetensors")
    assert identify(tmp_path / "model.safetensors").kind == "model"


def test_the_file_of_the_same_name_beside_the_model_is_taken_and_noted(
    families: Callable[[str], Family], tmp_path: Path
) -> None:
    one = families("sd1")
    save_file(one.rest, tmp_path / "model.safetensors")
    torch.save(lightning(one.vae), tmp_path / "model.vae.pt")
    (painted,) = Pipeline.load(tmp_path / "model.safetensors").paint(REQUEST)
    assert painted.recipe.pixels == one.pixels
    assert "model.vae.pt" in painted.recipe.notes[0]


def test_what_is_no_fitting_autoencoder_is_refused(families: Callable[[str], Family], tmp_path: Path) -> None:
    one = families("sd1")
    unet = {name: tensor for name, tensor in one.rest.items() if name.startswith(UNET)}
    save_file(unet, tmp_path / "unet.safetensors")
    wide = dict(one.vae)
    wide["decoder.conv_in.weight"] = torch.ones(64, 16, 3, 3)
    wide["post_quant_conv.weight"], wide["post_quant_conv.bias"] = torch.ones(16, 16, 1, 1), torch.ones(16)
    wide["quant_conv.weight"], wide["quant_conv.bias"] = torch.ones(32, 32, 1, 1), torch.ones(32)
    wide["encoder.conv_out.weight"], wide["encoder.conv_out.bias"] = torch.ones(32, 64, 3, 3), torch.ones(32)
    save_file(wide, tmp_path / "flux.safetensors")
    pipeline = Pipeline.load(one.whole)
    with pytest.raises(IncompatibleCheckpoint, match="given a unet, expected an autoencoder"):
        pipeline.paint(REQUEST.replace({"vae": str(tmp_path / "unet.safetensors")}))
    with pytest.raises(ConfigError, match="latent channels"):
        pipeline.paint(REQUEST.replace({"vae": str(tmp_path / "flux.safetensors")}))
    with pytest.raises(ModelNotFound, match="nothing"):
        pipeline.paint(REQUEST.replace({"vae": "nothing"}))


def test_names_in_the_folder_of_autoencoders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOUACHE_MODELS", str(tmp_path))
    for file in ("VAE/Kl-F8.vae.pt", "VAE/more/ft.safetensors", "vaes/folder/model.safetensors", "VAE/notes.txt"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes(b"")
    (tmp_path / "vaes/folder/config.json").write_text("{}")
    assert set(list_vaes()) == {"Kl-F8.vae", "ft", "folder"}
    assert find_vae("kl-f8.vae.pt") == tmp_path / "VAE/Kl-F8.vae.pt"
    assert find_vae("ft", paths=False) == tmp_path / "VAE/more/ft.safetensors"
    with pytest.raises(ModelNotFound):
        find_vae(str(tmp_path / "VAE/more/ft.safetensors"), paths=False)


def test_the_command_line_takes_it(families: Callable[[str], Family], tmp_path: Path) -> None:
    one = families("sd1")
    save_file(one.rest, tmp_path / "model.safetensors")
    save_file(one.vae, tmp_path / "kl.safetensors")
    options = ["--model", str(tmp_path / "model.safetensors"), "--vae", str(tmp_path / "kl.safetensors")]
    options += ["--steps", "1", "--seed", "3", "--size", "32", "--output", str(tmp_path / "fox.png"), "--json"]
    result = CliRunner().invoke(app, ["paint", "a fox", *options])
    assert result.exit_code == 0, result.output or result.exception
    recipe = read_recipe(tmp_path / "fox.png").recipe
    assert recipe is not None
    assert recipe.request.vae == str(tmp_path / "kl.safetensors")
    assert recipe.pixels == one.pixels


NEWER = {"unet": "diffusion_models/m.safetensors", "vae": "vae/v.safetensors"}
PLACES: dict[str, Callable[[str], str]] = {
    "side by side": lambda part: f"{part}.safetensors",
    "in folders of nodes": lambda part: f"{'clip' if part.startswith('clip') else part}/{part}.safetensors",
    "in newer folders of nodes": lambda part: NEWER.get(part, f"text_encoders/{part}.safetensors"),
    "the U-Net outside": lambda part: {"unet": "u.safetensors", "vae": "VAE/v.safetensors"}.get(
        part, f"clip/{part}.pt"
    ).replace(".pt", ".safetensors"),
}


def parts_of(one: Family) -> dict[str, Tensors]:
    """As programs with nodes write them."""
    bare = {name.removeprefix(UNET): tensor for name, tensor in one.rest.items() if name.startswith(UNET)}
    first = {
        name.partition("transformer.")[2]: tensor
        for name, tensor in one.rest.items()
        if name.startswith(("cond_stage_model.transformer.", "conditioner.embedders.0.transformer."))
    }
    second = {
        name.removeprefix("conditioner.embedders.1.model."): tensor
        for name, tensor in one.rest.items()
        if name.startswith("conditioner.embedders.1.model.")
    }
    parts = {"unet": bare, "vae": one.vae, "clip_l": first, "clip_g": second}
    return {name: tensors for name, tensors in parts.items() if tensors}


@pytest.mark.every_time("*-sd1", "in newer folders of nodes-sdxl")
@pytest.mark.parametrize("family", ["sd1", "sdxl"])
@pytest.mark.parametrize("place", PLACES)
def test_parts_in_files_of_their_own_are_one_model(
    families: Callable[[str], Family], tmp_path: Path, place: str, family: str
) -> None:
    one = families(family)
    for part, tensors in parts_of(one).items():
        file = tmp_path / PLACES[place](part)
        file.parent.mkdir(exist_ok=True)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
    identity = identify(tmp_path)
    assert (identity.kind, identity.family) == ("model", family)
    assert one.painted(tmp_path) == one.pixels


def test_a_checkpoint_without_an_autoencoder_and_one_beside_it_in_its_folder(
    families: Callable[[str], Family], tmp_path: Path
) -> None:
    one = families("sd1")
    save_file(one.rest, tmp_path / "model.safetensors")
    (tmp_path / "vae").mkdir()
    save_file(one.vae, tmp_path / "vae/kl.safetensors")
    assert one.painted(tmp_path) == one.pixels


@pytest.mark.parametrize("extra", ["unet", "vae", "clip_l", "lora", "whole"])
def test_a_folder_in_which_something_is_twice_is_not_guessed_at(
    families: Callable[[str], Family], tmp_path: Path, extra: str
) -> None:
    one = families("sd1")
    parts = parts_of(one)
    for part, tensors in parts.items():
        save_file(tensors, tmp_path / f"{part}.safetensors")
    more = parts.get(extra) or {"whole": one.tensors}.get(extra, {"lora_unet_x.lora_down.weight": torch.ones(2, 768)})
    save_file(more, tmp_path / "more.safetensors")
    with pytest.raises(GouacheError, match=r"a folder with 4 weight files.*Name the file you mean"):
        identify(tmp_path)
