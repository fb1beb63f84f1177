"""Conversions: bit-exact round trips, and diffusers as the judge of what we write."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gouache.checkpoints.convert import convert
from gouache.checkpoints.formats.safetensors import load_tensors
from gouache.checkpoints.load import identify, load_bundle
from gouache.checkpoints.save import Format, bundle_to_write, write_model
from gouache.diffusion.noise_schedule import make_noise_schedule
from gouache.errors import InvalidInput, UnknownName
from gouache.models.bundle import ModelBundle

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
Published = Callable[[str], Path]


def tensors_of(bundle: ModelBundle) -> dict[str, Tensor]:
    return {
        f"{part}.{name}": tensor for part, net in bundle.networks().items() for name, tensor in net.state_dict().items()
    }


def assert_same(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    assert set(found) == set(wanted)
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


def assert_same_model(found: ModelBundle, wanted: ModelBundle) -> None:
    assert_same(tensors_of(found), tensors_of(wanted))
    assert found.family == wanted.family
    assert found.unet.config == wanted.unet.config
    assert found.vae.config == wanted.vae.config
    assert found.text.encoders[0].config == wanted.text.encoders[0].config
    assert found.denoiser_config.parameterization == wanted.denoiser_config.parameterization


@pytest.mark.every_time("sdxl")
def test_every_layout_gives_the_same_model_back(published: Published, family: str, tmp_path: Path) -> None:
    """diffusers -> single file -> own file -> own folder -> diffusers -> single file, every tensor bit for bit."""
    first = load_bundle(published(family))
    steps: tuple[tuple[str, Format], ...] = (
        ("single.safetensors", "single-file"),
        ("own.safetensors", "gouache"),
        ("own", "gouache"),
        ("folder", "diffusers"),
        ("again.safetensors", "single-file"),
    )
    source = published(family)
    for name, to in steps:
        told: list[str] = []
        convert(source, tmp_path / name, to, on_tensor=told.append)
        source = tmp_path / name
        assert_same_model(load_bundle(source), first)
        assert set(told) >= {f"unet.{tensor}" for tensor in first.unet.state_dict()}
    assert_same(load_tensors(tmp_path / "again.safetensors"), load_tensors(tmp_path / "single.safetensors"))


def test_the_folder_we_write_is_the_folder_we_read(published: Published, family: str, tmp_path: Path) -> None:
    """File by file against the folder that diffusers wrote, up to the text encoders' `text_model.` prefix."""
    convert(published(family), tmp_path / "folder", "diffusers")
    for file in sorted(published(family).glob("*/*.safetensors")):
        ours = load_tensors(tmp_path / "folder" / file.parent.name / file.name)
        theirs = load_tensors(file)
        assert_same(
            {name.removeprefix("text_model."): tensor for name, tensor in ours.items()},
            {name.removeprefix("text_model."): tensor for name, tensor in theirs.items()},
        )


def outputs(pipe: Any) -> dict[str, Tensor]:
    """What each network of a diffusers pipeline makes of fixed inputs."""
    generator = torch.Generator().manual_seed(7)
    ids = torch.randint(0, 49408, (1, 77), generator=generator)
    ids[0, -1] = 49407
    found = {}
    for name in ("text_encoder", "text_encoder_2"):
        encoder = getattr(pipe, name, None)
        if encoder is not None:
            encoded = encoder(ids, output_hidden_states=True)
            found[name], found[f"{name} pooled"] = encoded.hidden_states[-2], encoded[0]
    config = pipe.unet.config
    conditions = {}
    if config.addition_embed_type:
        width = config.projection_class_embeddings_input_dim
        numbers = (width - 64) // 256
        conditions = {"text_embeds": torch.ones(1, 64), "time_ids": torch.arange(numbers)[None].float()}
    x = torch.randn(1, config.in_channels, 8, 8, generator=generator)
    context = torch.randn(1, 77, config.cross_attention_dim, generator=generator)
    found["unet"] = pipe.unet(x, torch.tensor([500]), context, added_cond_kwargs=conditions).sample
    image = torch.randn(1, 3, 32, 32, generator=generator)
    found["encoder"] = pipe.vae.encode(image).latent_dist.mean
    found["decoder"] = pipe.vae.decode(found["encoder"]).sample
    return found


def assert_same_pipeline(ours: Any, theirs: Any) -> None:
    """Equal tensors bit for bit; equal outputs up to what another place in memory changes in the rounding."""
    for name in ("unet", "vae", "text_encoder", "text_encoder_2"):
        part = getattr(theirs, name, None)
        if part is not None:
            assert_same(getattr(ours, name).state_dict(), part.state_dict())
    wanted, found = outputs(theirs), outputs(ours)
    assert set(found) == set(wanted)
    for name, tensor in wanted.items():
        assert (found[name] - tensor).abs().max() <= 1e-5 * tensor.std(), name


@pytest.mark.every_time("sd2-v")
@torch.no_grad()
def test_diffusers_loads_what_we_write_and_computes_the_same(published: Published, family: str, tmp_path: Path) -> None:
    from diffusers import DiffusionPipeline

    convert(published(family), tmp_path / "folder", "diffusers")
    theirs = DiffusionPipeline.from_pretrained(published(family), local_files_only=True)
    ours = DiffusionPipeline.from_pretrained(tmp_path / "folder", local_files_only=True)
    assert type(ours) is type(theirs)
    assert ours.scheduler.config.prediction_type == theirs.scheduler.config.prediction_type
    assert_same_pipeline(ours, theirs)
    for name in ("tokenizer", "tokenizer_2"):
        if getattr(theirs, name, None) is not None:
            prompt = "A fox, painted in gouache — 狐狸 🦊"
            arguments = {"padding": "max_length", "max_length": 77}
            assert getattr(ours, name)(prompt, **arguments) == getattr(theirs, name)(prompt, **arguments)


@pytest.mark.every_time("sd1")
@torch.no_grad()
@pytest.mark.parametrize("name", ["sd1", pytest.param("sd1-inpainting", marks=pytest.mark.slow), "sd2-v", "sdxl"])
def test_diffusers_reads_our_single_file_and_computes_the_same(published: Published, name: str, tmp_path: Path) -> None:
    """`from_single_file` has its own tables of names, which judge ours; the configs come from the folder."""
    import diffusers

    folder = published(name)
    convert(folder, tmp_path / "one.safetensors", "single-file")
    theirs = diffusers.DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    ours = type(theirs).from_single_file(str(tmp_path / "one.safetensors"), config=str(folder), local_files_only=True)
    assert_same_pipeline(ours, theirs)


@pytest.mark.every_time("sd1")
@pytest.mark.parametrize("name", ["sd1", "sd2-v", "sdxl"])
def test_the_blocks_are_counted_where_no_config_is_recorded(published: Published, name: str, tmp_path: Path) -> None:
    """A single file of another maker has no config of ours in its metadata."""
    from safetensors.torch import save_file

    wanted = load_bundle(published(name))
    convert(published(name), tmp_path / "ours.safetensors", "single-file")
    tensors = load_tensors(tmp_path / "ours.safetensors")
    if name.startswith("sd2"):  # the published files keep the projection and the layer before it
        last = {key: value for key, value in tensors.items() if ".resblocks.2." in key}
        tensors |= {key.replace(".resblocks.2.", ".resblocks.3."): value.clone() for key, value in last.items()}
        tensors["cond_stage_model.model.text_projection"] = torch.zeros(64, 64)
        tensors["cond_stage_model.model.logit_scale"] = torch.zeros(())
    tensors["model_ema.decay"] = torch.zeros(())
    tensors["alphas_cumprod"] = make_noise_schedule("scaled_linear").alphas_cumprod.float()
    save_file(tensors, tmp_path / "bare.safetensors")
    identity = identify(tmp_path / "bare.safetensors")
    assert identity.left_out["tables of the noise schedule"] == 1
    found = load_bundle(tmp_path / "bare.safetensors", prediction=wanted.denoiser_config.parameterization)
    assert found.unet.config == wanted.unet.config
    assert found.family == wanted.family
    assert_same(tensors_of(found), tensors_of(wanted))


def test_a_model_in_memory_is_written_too(published: Published, tmp_path: Path) -> None:
    bundle = load_bundle(published("sdxl"))
    write_model(bundle_to_write(bundle), tmp_path / "own", "gouache")
    again = load_bundle(tmp_path / "own")
    assert_same_model(again, bundle)
    assert len(again.sha256) == 64
    assert bundle.sha256 == ""  # diffusers records none, and nothing is read twice only to know it


def test_half_precision_halves_the_files(published: Published, tmp_path: Path) -> None:
    convert(published("sd1"), tmp_path / "half.safetensors", "single-file", dtype=torch.float16)
    bundle = load_bundle(tmp_path / "half.safetensors")
    assert {tensor.dtype for tensor in tensors_of(bundle).values()} == {torch.float16}
    first = load_bundle(published("sd1"))
    assert_same(tensors_of(bundle), {name: tensor.half() for name, tensor in tensors_of(first).items()})
    again = load_bundle(tmp_path / "half.safetensors", dtype=torch.float32)
    assert again.unet.get_parameter("conv_in.weight").dtype == torch.float32


def test_nothing_is_overwritten(published: Published, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(InvalidInput, match="something there already"):
        convert(published("sd1"), tmp_path / "mine", "gouache")
    assert not any((tmp_path / "mine").iterdir())


def test_an_unknown_format_is_refused_by_name(published: Published, tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="single-file"):
        convert(published("sd1"), tmp_path / "x", "singlefile")  # type: ignore[arg-type]
