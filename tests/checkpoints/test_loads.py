"""`gouache inspect` says that a file loads exactly if it loads, and gives the reason that loading would give.

The kind: every file and folder that a user may have, whole, damaged, mixed up, of another kind. Whatever `load_bundle`
does is the truth; what `inspect` says is compared with it. And what lies beside the parts of a model is left out with a
note, while what a part lacks is an error.
"""

from __future__ import annotations

import json
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
from gouache.cli.main import app
from gouache.errors import GouacheError, IncompatibleCheckpoint
from gouache.pipeline.pipeline import Pipeline
from gouache.pipeline.request import Request

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
Published = Callable[[str], Path]
Tensors = dict[str, torch.Tensor]
RUNNER = CliRunner()


@pytest.fixture(scope="module")
def single(published: Published, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Tensors]:
    """`single(family)` gives the tensors of a single file."""

    @cache
    def tensors(family: str) -> Tensors:
        path = tmp_path_factory.mktemp("single") / f"{family}.safetensors"
        convert(published(family), path, "single-file")
        return load_file(path)

    return lambda family: dict(tensors(family))


def inspected(path: Path) -> tuple[bool, str]:
    result = RUNNER.invoke(app, ["inspect", str(path), "--json"])
    if isinstance(result.exception, GouacheError):
        return False, str(result.exception)
    assert result.exit_code == 0, result.output
    found = json.loads(result.output)
    return found["loads"], found["reason"]


def loaded(path: Path) -> tuple[bool, str]:
    try:
        load_bundle(path)
    except GouacheError as error:
        return False, str(error)
    return True, ""


def only(tensors: Tensors, **kept: torch.Tensor) -> None:
    """Put others in the place of all tensors; `__` in a name stands for a dot."""
    tensors.clear()
    tensors.update({name.replace("__", "."): tensor for name, tensor in kept.items()})


def emptied(folder: Path) -> None:
    for one in folder.iterdir():
        if one.is_dir():
            shutil.rmtree(one)
        else:
            one.unlink()


UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model."
FILES: dict[str, tuple[str, Callable[[Tensors], Any], bool]] = {
    "whole": ("sd1", lambda _: None, True),
    "whole SDXL": ("sdxl", lambda _: None, True),
    "whole SD 2.x, told by its weights": ("sd2-v", lambda _: None, True),
    "a tensor missing in the U-Net": ("sd1", lambda t: t.pop(f"{UNET}out.0.bias"), False),
    "a tensor missing in the autoencoder": ("sd1", lambda t: t.pop(f"{VAE}decoder.conv_out.bias"), False),
    "a tensor missing in the text encoder": (
        "sd1",
        lambda t: t.pop(f"{TEXT}transformer.text_model.encoder.layers.0.mlp.fc1.bias"),
        False,
    ),
    "a tensor of another shape": ("sd1", lambda t: t.update({f"{UNET}out.2.bias": torch.ones(5)}), False),
    "a stranger in the U-Net": ("sd1", lambda t: t.update({f"{UNET}stranger": torch.ones(2)}), False),
    "NaN": ("sd1", lambda t: t[f"{UNET}out.0.bias"].fill_(float("nan")), False),
    "infinity": ("sd1", lambda t: t[f"{VAE}decoder.conv_out.bias"].fill_(float("inf")), False),
    "continuous noise levels": ("sdxl", lambda t: t.update({"edm_vpred.sigma_max": torch.ones(1)}), True),
    "Playground's marks": ("sdxl", lambda t: t.update({"edm_mean": torch.ones(4), "edm_std": torch.ones(4)}), True),
    "a noise table that is none": ("sd1", lambda t: t.update({"alphas_cumprod": torch.ones(10)}), False),
    "a noise table with NaN": ("sd1", lambda t: t.update({"alphas_cumprod": torch.full((10,), torch.nan)}), False),
    "no autoencoder": ("sd1", lambda t: [t.pop(name) for name in list(t) if name.startswith(VAE)], False),
    "no text encoder": ("sd1", lambda t: [t.pop(name) for name in list(t) if name.startswith(TEXT)], False),
    "one text encoder of two": (
        "sdxl",
        lambda t: [t.pop(name) for name in list(t) if name.startswith("conditioner.embedders.0.")],
        False,
    ),
    "a U-Net alone": ("sd1", lambda t: [t.pop(name) for name in list(t) if not name.startswith(UNET)], False),
    "an autoencoder alone": ("sd1", lambda t: [t.pop(name) for name in list(t) if not name.startswith(VAE)], False),
    "a LoRA": ("sd1", lambda t: only(t, lora_unet_a__lora_down__weight=torch.ones(4, 768)), False),
    "an embedding": ("sd1", lambda t: only(t, emb_params=torch.ones(2, 768)), False),
    "nothing known": ("sd1", lambda t: only(t, a=torch.ones(2)), False),
    "unCLIP": ("sd1", lambda t: t.update({f"{UNET}label_emb.0.0.weight": torch.ones(128, 64)}), False),
    "an embedding's training": ("sd1", lambda t: t.update({"embedding_manager.x": torch.ones(2)}), True),
    "an integer beside": ("sd1", lambda t: t.update({"global_step": torch.tensor(7)}), True),
}


@pytest.mark.parametrize("name", FILES)
def test_inspect_and_load_agree_about_files(single: Callable[[str], Tensors], tmp_path: Path, name: str) -> None:
    family, change, loads = FILES[name]
    tensors = {key: tensor.clone() for key, tensor in single(family).items()}
    change(tensors)
    path = tmp_path / "model.safetensors"
    save_file(tensors, path)
    assert inspected(path) == loaded(path)
    assert loaded(path)[0] is loads


def edit_json(file: Path, **values: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


FOLDERS: dict[str, tuple[Callable[[Path], Any], bool]] = {
    "whole": (lambda _: None, True),
    "an autoencoder of another width": (lambda f: edit_json(f / "vae/config.json", latent_channels=16), False),
    "an unknown beta schedule": (
        lambda f: edit_json(
            f / "scheduler/scheduler_config.json", beta_schedule="sigmoid", _class_name="DDIMScheduler"
        ),
        False,
    ),
    "betas that are none": (
        lambda f: edit_json(f / "scheduler/scheduler_config.json", trained_betas=[2.0, 3.0]),
        False,
    ),
    "an unknown prediction": (
        lambda f: edit_json(f / "scheduler/scheduler_config.json", prediction_type="mystery"),
        False,
    ),
    "no scheduler": (lambda f: shutil.rmtree(f / "scheduler"), True),
    "no text encoder": (lambda f: shutil.rmtree(f / "text_encoder"), False),
    "no autoencoder": (lambda f: shutil.rmtree(f / "vae"), False),
    "an option of another U-Net": (lambda f: edit_json(f / "unet/config.json", time_cond_proj_dim=256), False),
    "Marigold": (lambda f: edit_json(f / "model_index.json", _class_name="MarigoldDepthPipeline"), False),
    "heads that don't divide": (lambda f: edit_json(f / "unet/config.json", attention_head_dim=7), False),
    "JSON that is none": (lambda f: (f / "unet/config.json").write_text("{"), False),
    "weights cut off": (
        lambda f: (f / "unet/diffusion_pytorch_model.safetensors").write_bytes(b"\x00" * 100),
        False,
    ),
    "empty": (emptied, False),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_inspect_and_load_agree_about_folders(published: Published, tmp_path: Path, name: str) -> None:
    change, loads = FOLDERS[name]
    folder = tmp_path / "model"
    shutil.copytree(published("sd1"), folder)
    change(folder)
    assert inspected(folder) == loaded(folder)
    assert loaded(folder)[0] is loads


def test_inspect_and_load_agree_about_the_own_format(published: Published, tmp_path: Path) -> None:
    convert(published("sd1"), tmp_path / "own", "gouache")
    assert inspected(tmp_path / "own") == loaded(tmp_path / "own") == (True, "")
    file = next((tmp_path / "own").glob("unet*.safetensors"))
    raw = bytearray(file.read_bytes())
    raw[-3] ^= 1
    file.write_bytes(raw)
    assert inspected(tmp_path / "own") == loaded(tmp_path / "own")
    assert not loaded(tmp_path / "own")[0]


BESIDE: dict[str, dict[str, tuple[int, ...]]] = {
    "an embedding's training": {"embedding_manager.string_to_param_dict.*": (1, 768)},
    "the scale of latents": {"scale_factor": ()},
    "a LoRA": {"lora_unet_down_blocks_0.lora_down.weight": (4, 32), "lora_unet_down_blocks_0.lora_up.weight": (32, 4)},
    "a LoRA of peft": {"base_model.model.x.lora_A.weight": (4, 32), "base_model.model.x.lora_B.weight": (32, 4)},
    "a DoRA": {"lora_te_x.dora_scale": (4, 1)},
    "a LyCORIS difference": {"lycoris_x.diff": (4, 4)},
    "discriminator": {"discriminator.main.0.weight": (4, 3)},
    "an optimizer": {"optimizer.exp_avg": (4,)},
    "a step counter": {"global_step": ()},
    "a merge's marks": {"__merge_ratio": (1,)},
    "another text encoder": {"text_encoders.t5xxl.logit": ()},
    "a teacher": {"teacher.model.weight": (2, 2)},
    "a prompt tuner": {"prompt_tuner.weight": (2, 2)},
    "a null condition": {"null_cond": (1, 77, 4)},
}


@pytest.mark.parametrize("family", ["sd1", pytest.param("sdxl", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", BESIDE)
def test_tensors_outside_every_part_are_left_out_with_a_note(
    single: Callable[[str], Tensors], tmp_path: Path, name: str, family: str
) -> None:
    strays = {key: torch.ones(shape) for key, shape in BESIDE[name].items()}
    path = tmp_path / "model.safetensors"
    save_file(single(family) | strays, path)
    identity = identify(path)
    assert (identity.kind, identity.family) == ("model", family)
    assert set(identity.unexplained) == set(strays)
    bundle = load_bundle(path)
    (note,) = bundle.loading_notes
    assert next(iter(sorted(strays))) in note
    assert f"{len(strays)} tensor" in note


def test_what_is_known_to_be_of_no_use_is_no_news(single: Callable[[str], Tensors], tmp_path: Path) -> None:
    strays = {
        "safety_checker.concept_embeds": torch.ones(3, 4),
        "model_ema.decay": torch.ones(1),
        f"{TEXT}transformer.vision_model.encoder.layers.0.mlp.fc1.bias": torch.ones(3),
        f"{TEXT}transformer.visual_projection.weight": torch.ones(3, 3),
    }
    save_file(single("sd1") | strays, tmp_path / "model.safetensors")
    assert load_bundle(tmp_path / "model.safetensors").loading_notes == ()


def test_the_note_is_in_the_recipe(single: Callable[[str], Tensors], tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(single("sd1"), path)
    request = Request(prompt="a", seed=1, num_inference_steps=1, width=32, height=32)
    (plain,) = Pipeline.load(path).paint(request)
    save_file(single("sd1") | {"embedding_manager.x": torch.ones(2)}, path)
    (noted,) = Pipeline.load(path).paint(request)
    assert plain.recipe.notes == ()
    assert "embedding_manager.x" in noted.recipe.notes[0]
    assert plain.recipe.pixels == noted.recipe.pixels


def test_a_stray_does_not_hide_what_is_missing(single: Callable[[str], Tensors], tmp_path: Path) -> None:
    tensors = single("sd1") | {"embedding_manager.x": torch.ones(2)}
    del tensors[f"{UNET}out.0.bias"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(IncompatibleCheckpoint, match=r"1 missing: model\.diffusion_model\.out\.0\.bias"):
        load_bundle(tmp_path / "model.safetensors")
