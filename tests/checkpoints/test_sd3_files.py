"""Files of Stable Diffusion 3: folders that diffusers wrote, single files that its converters read, our own format."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from diffusers.loaders.single_file_utils import (
    convert_ldm_vae_checkpoint,
    convert_sd3_transformer_checkpoint_to_diffusers,
)
from torch import Tensor
from typer.testing import CliRunner

from gouache.checkpoints.convert import convert
from gouache.checkpoints.formats.safetensors import load_tensors, save_tensors
from gouache.checkpoints.load import identify, load_bundle
from gouache.checkpoints.model_defaults import generation_defaults
from gouache.checkpoints.save import Format
from gouache.cli.main import app
from gouache.errors import GouacheError, IncompatibleCheckpoint
from gouache.models.bundle import ModelBundle
from gouache.models.configs import DenoiserConfig

if TYPE_CHECKING:
    from tests.pipeline.sd3_twins import Sd3Twins

KINDS = ("3 medium", "3.5 large", "3.5 medium")
CLIPS = ("text_encoders.clip_l.", "text_encoders.clip_g.")


def tensors_of(bundle: ModelBundle) -> dict[str, Tensor]:
    return {
        f"{part}.{name}": tensor for part, net in bundle.networks().items() for name, tensor in net.state_dict().items()
    }


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert set(found) == set(wanted)
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


@pytest.fixture(scope="module")
def single(sd3: Sd3Twins, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`single(kind)` is a single file of a kind, made once."""
    folder = tmp_path_factory.mktemp("single")

    def file(kind: str) -> Path:
        path = folder / f"{kind.replace(' ', '_')}.safetensors"
        if not path.exists():
            convert(sd3.path(kind), path, "single-file")
        return path

    return file


@pytest.mark.every_time("3.5 medium")
@pytest.mark.parametrize("kind", KINDS)
def test_a_single_file_is_what_diffusers_reads(sd3: Sd3Twins, single: Callable[[str], Path], kind: str) -> None:
    """Their converters, tensor by tensor, give back the folder that the file was made of."""
    ours, theirs = load_tensors(single(kind)), sd3.theirs(kind)
    network = {name: tensor for name, tensor in ours.items() if name.startswith("model.diffusion_model.")}
    assert_same(convert_sd3_transformer_checkpoint_to_diffusers(network), dict(theirs.transformer.state_dict()))
    autoencoder = convert_ldm_vae_checkpoint(dict(ours), dict(theirs.vae.config))
    assert_same(autoencoder, {name: t for name, t in theirs.vae.state_dict().items() if "quant_conv" not in name})
    for prefix, encoder in zip(CLIPS, (theirs.text_encoder, theirs.text_encoder_2), strict=True):
        names = {f"{prefix}transformer.{_published(name)}": tensor for name, tensor in encoder.state_dict().items()}
        assert_same({name: tensor for name, tensor in ours.items() if name.startswith(prefix)}, names)


def _published(name: str) -> str:
    """A name of transformers' text encoder as published files have it: version 5 leaves out `text_model.`."""
    return name if name.startswith("text_") else f"text_model.{name}"


@pytest.mark.every_time("3.5 medium")
@pytest.mark.parametrize("kind", KINDS)
def test_every_layout_gives_the_same_model_back(sd3: Sd3Twins, kind: str, tmp_path: Path) -> None:
    first = load_bundle(sd3.path(kind))
    source = sd3.path(kind)
    steps: tuple[tuple[str, Format], ...] = (
        ("single.safetensors", "single-file"),
        ("own.safetensors", "gouache"),
        ("own", "gouache"),
        ("folder", "diffusers"),
        ("again.safetensors", "single-file"),
    )
    for name, to in steps:
        convert(source, tmp_path / name, to)
        source = tmp_path / name
        found = load_bundle(source)
        assert_same(tensors_of(found), tensors_of(first))
        assert found.unet.config == first.unet.config
        assert found.vae.config == first.vae.config
        assert found.denoiser_config == first.denoiser_config
        assert [one.config for one in found.text.encoders] == [one.config for one in first.text.encoders]
        assert found.text.joint == first.text.joint
    assert_same(load_tensors(tmp_path / "again.safetensors"), load_tensors(tmp_path / "single.safetensors"))


def test_diffusers_opens_the_folder_we_write(sd3: Sd3Twins, tmp_path: Path) -> None:
    import diffusers

    kind = "3.5 medium"
    convert(sd3.path(kind), tmp_path / "folder", "diffusers")
    opened = diffusers.StableDiffusion3Pipeline.from_pretrained(
        tmp_path / "folder", text_encoder_3=None, tokenizer_3=None
    )
    for name in ("transformer", "vae", "text_encoder", "text_encoder_2"):
        assert_same(getattr(opened, name).state_dict(), getattr(sd3.theirs(kind), name).state_dict())
    assert dict(opened.transformer.config)["dual_attention_layers"] == [0, 1]
    assert opened.scheduler.config.shift == 3.0
    assert opened.vae.config.shift_factor == 0.0609


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_nobody_here_is_known_by_its_names_and_shapes(
    sd3: Sd3Twins, single: Callable[[str], Path], kind: str, tmp_path: Path
) -> None:
    """Without gouache's metadata, and as published: the first CLIP without its projection, which is the identity."""
    tensors = load_tensors(single(kind))
    projection = "text_encoders.clip_l.transformer.text_projection.weight"
    width = tensors["text_encoders.clip_l.transformer.text_model.final_layer_norm.weight"].shape[0]
    tensors.pop(projection)
    tensors["text_encoders.clip_l.logit_scale"] = torch.ones(())
    save_tensors(tmp_path / "model.safetensors", tensors)
    identity = identify(tmp_path / "model.safetensors")
    assert (identity.kind, identity.family, identity.label) == ("model", "sd3", kind)
    assert (identity.prediction, identity.variant) == ("flow", "base")
    config, wanted = identity.parts["unet"].config, load_bundle(sd3.path(kind)).unet.config
    heads = ("heads", "head_width")  # without QK-norm the shapes don't show them
    assert config.model_dump(exclude=set(heads)) == wanted.model_dump(exclude=set(heads))
    if kind != "3 medium":
        assert config == wanted
    encoder = identity.parts["text_encoder"].config
    assert encoder.model_dump()["projection_width"] == width


def test_the_first_clips_missing_projection_is_the_identity(single: Callable[[str], Path], tmp_path: Path) -> None:
    tensors = load_tensors(single("3.5 medium"))
    name = "text_encoders.clip_l.transformer.text_projection.weight"
    width = tensors[name].shape[1]
    lacking = {key: tensor for key, tensor in tensors.items() if key != name}
    # As wide a pooled vector as the network takes: the second CLIP gives so much less.
    second = "text_encoders.clip_g.transformer.text_projection.weight"
    lacking[second] = lacking[second][: 40 - width].clone()
    save_tensors(tmp_path / "model.safetensors", lacking)
    bundle = load_bundle(tmp_path / "model.safetensors")
    assert torch.equal(bundle.text.encoders[0].get_parameter("text_projection.weight"), torch.eye(width))
    assert bundle.defaults.sampler == "euler"
    assert (bundle.defaults.schedule, bundle.defaults.num_inference_steps) == ("model", 40)
    assert bundle.denoiser_config.schedule.shift == 3.0
    assert (bundle.vae.config.scale, bundle.vae.config.shift) == (1.5305, 0.0609)
    convert(tmp_path / "model.safetensors", tmp_path / "folder", "diffusers")
    assert torch.equal(
        load_bundle(tmp_path / "folder").text.encoders[0].get_parameter("text_projection.weight"), torch.eye(width)
    )


def test_a_file_without_text_encoders_says_so_and_takes_those_beside_it(
    single: Callable[[str], Path], tmp_path: Path
) -> None:
    tensors = load_tensors(single("3.5 large"))
    alone = {name: tensor for name, tensor in tensors.items() if not name.startswith("text_encoders.")}
    folder = tmp_path / "model"
    folder.mkdir()
    save_tensors(folder / "sd3.5_large.safetensors", alone)
    assert identify(folder / "sd3.5_large.safetensors").family == "sd3"
    with pytest.raises(IncompatibleCheckpoint, match="text encoder"):
        load_bundle(folder / "sd3.5_large.safetensors")
    for prefix in CLIPS:
        start = f"{prefix}transformer."
        one = {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}
        save_tensors(folder / f"{prefix.split('.')[1]}.safetensors", one)
    found = load_bundle(folder)
    assert_same(tensors_of(found), tensors_of(load_bundle(single("3.5 large"))))


@pytest.mark.parametrize(
    ("kind", "name", "steps", "scale"),
    [
        ("3 medium", "sd3_medium", 28, 7.0),
        ("3.5 medium", "sd3.5_medium", 40, 4.5),
        ("3.5 large", "sd3.5_large", 28, 3.5),
        ("3.5 large", "SD3.5-Large-Turbo", 4, 1.0),
    ],
)
def test_steps_and_guidance_are_those_of_the_published_cards(
    sd3: Sd3Twins, tmp_path: Path, kind: str, name: str, steps: int, scale: float
) -> None:
    (tmp_path / name).symlink_to(sd3.path(kind))
    identity = identify(tmp_path / name)
    defaults = generation_defaults(tmp_path / name, identity, DenoiserConfig())
    assert (defaults.num_inference_steps, defaults.guidance_scale) == (steps, scale)
    assert (defaults.sampler, defaults.schedule, defaults.width) == ("euler", "model", 32)


def test_inspect_says_which_it_is(single: Callable[[str], Path]) -> None:
    result = CliRunner().invoke(app, ["inspect", str(single("3.5 medium"))])
    assert result.exit_code == 0
    assert "model of Stable Diffusion 3 (3.5 medium)" in result.output
    assert "flow (the family's rule for sd3)" in result.output
    assert "loads       yes" in result.output


def _changed(**values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / "transformer" / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **values}))

    return change


def _without(pattern: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
        save_tensors(file, {name: t.clone() for name, t in load_tensors(file).items() if pattern not in name})

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_changed(num_attention_heads=3), "num_attention_heads x attention_head_dim = '3 x 16'"),
        (_changed(attention_head_dim="wide"), "num_attention_heads"),
        (_changed(num_layers=2), "num_layers = 2"),
        (_changed(patch_size=1), "patch_size"),
        (_changed(joint_attention_dim=4096), "joint_attention_dim"),
        (_changed(pooled_projection_dim=2048), "pooled_projection_dim"),
        (_changed(pos_embed_max_size=96), "pos_embed_max_size"),
        (_changed(dual_attention_layers=[0]), "dual_attention_layers"),
        (_changed(qk_norm=None), "qk_norm"),
        (_changed(qk_norm="layer_norm"), "qk_norm = 'layer_norm'"),
        (_changed(_class_name="FluxTransformer2DModel"), "Flux"),
        (_without("transformer_blocks.1.attn.to_out.0.bias"), "1 missing: transformer_blocks.1.attn.to_out.0.bias"),
        (_without("context_embedder"), "no context_embedder.weight"),
        (_without("proj_out.weight"), "no proj_out.weight"),
        (_without("transformer_blocks.2."), "num_layers"),
    ],
)
def test_folders_that_disagree_with_themselves_are_refused(
    sd3: Sd3Twins, tmp_path: Path, change: Callable[[Path], None], words: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(sd3.path("3.5 medium"), folder, copy_function=_linked)
    change(folder)
    with pytest.raises(GouacheError) as caught:
        load_bundle(folder)
    assert words in str(caught.value)


def _linked(source: str, target: str) -> None:
    """Copies what the test changes, and links the rest."""
    if "transformer" in Path(source).parts[-2:]:
        shutil.copy2(source, target)
    else:
        Path(target).symlink_to(source)
