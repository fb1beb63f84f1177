"""AutoencoderTiny (TAESD) and AsymmetricAutoencoderKL in place of the published autoencoder.

The kind: every shape in which these two come, as a part of a pipeline's folder, as a folder or a file of their own. The
judge is diffusers' classes with random weights: latents and pixels have to be theirs.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AsymmetricAutoencoderKL, AutoencoderTiny
from PIL import Image

from gouache.checkpoints.convert import convert
from gouache.checkpoints.load import identify, load_bundle
from gouache.errors import IncompatibleCheckpoint
from gouache.pipeline.pipeline import Pipeline, shipped_model
from gouache.pipeline.request import Request

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
Published = Callable[[str], Path]


def tiny(**options: Any) -> Any:
    plain = {
        "encoder_block_out_channels": (16, 16, 16),
        "decoder_block_out_channels": (16, 16, 16),
        "num_encoder_blocks": (1, 2, 2),
        "num_decoder_blocks": (2, 2, 1),
    }
    return AutoencoderTiny(**{**plain, **options})


def asymmetric(**options: Any) -> Any:
    plain = {
        "down_block_types": ["DownEncoderBlock2D"] * 3,
        "down_block_out_channels": (32, 32, 64),
        "layers_per_down_block": 1,
        "up_block_types": ["UpDecoderBlock2D"] * 3,
        "up_block_out_channels": (64, 64, 128),
        "layers_per_up_block": 2,
    }
    return AsymmetricAutoencoderKL(**{**plain, **options})


MADE: dict[str, Callable[[], Any]] = {
    "tiny": tiny,
    "tiny with the published blocks": lambda: tiny(
        encoder_block_out_channels=(8,) * 4,
        decoder_block_out_channels=(8,) * 4,
        num_encoder_blocks=(1, 3, 3, 3),
        num_decoder_blocks=(3, 3, 3, 1),
    ),
    "tiny with other blocks": lambda: tiny(num_encoder_blocks=(3, 1, 1), num_decoder_blocks=(1, 1, 4)),
    "tiny, wider": lambda: tiny(encoder_block_out_channels=(24, 24, 24), decoder_block_out_channels=(24, 24, 24)),
    "tiny of two levels": lambda: tiny(
        encoder_block_out_channels=(16, 16),
        decoder_block_out_channels=(16, 16),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    ),
    "tiny with a scale": lambda: tiny(scaling_factor=0.5, shift_factor=0.25),
    "asymmetric": asymmetric,
    "asymmetric by its width alone": lambda: asymmetric(layers_per_up_block=1),
    "asymmetric by its layers alone": lambda: asymmetric(up_block_out_channels=(32, 32, 64)),
    "asymmetric with three layers": lambda: asymmetric(layers_per_up_block=3),
    "asymmetric, narrower": lambda: asymmetric(up_block_out_channels=(32, 32, 32)),
    "asymmetric with a scale": lambda: asymmetric(scaling_factor=0.13025),
}


def randomised(network: Any) -> Any:
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in network.parameters():
            scale = max(parameter[0].numel(), 1) ** -0.5 if parameter.ndim > 1 else 0.2
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale + (parameter.ndim == 1) * 0.3)
    return network.eval()


def theirs_of(network: Any, image: torch.Tensor, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalised latents of a picture and the picture of normalised latents, as diffusers' pipelines make them."""
    scale = network.config.scaling_factor
    shift = getattr(network.config, "shift_factor", 0.0) or 0.0
    with torch.no_grad():
        encoded = network.encode(image)
        found = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()
        return (found - shift) * scale, network.decode(latents / scale + shift).sample


def with_vae(published: Path, folder: Path, network: Any) -> Path:
    shutil.copytree(published, folder, ignore=shutil.ignore_patterns("vae"))
    network.save_pretrained(folder / "vae")
    index = folder / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"vae": ["diffusers", type(network).__name__]}))
    return folder


@pytest.mark.every_time("tiny", "tiny of two levels", "asymmetric")
@pytest.mark.parametrize("name", MADE)
def test_latents_and_pixels_are_those_of_diffusers(published: Published, tmp_path: Path, name: str) -> None:
    network = randomised(MADE[name]())
    folder = with_vae(published("sd1"), tmp_path / "model", network)
    generator = torch.Generator().manual_seed(2)
    image, latents = torch.rand(1, 3, 32, 32, generator=generator) * 2 - 1, torch.randn(1, 4, 8, 8, generator=generator)
    wanted = theirs_of(network, image, latents)
    for source in (load_bundle(folder), load_bundle(published("sd1"), vae=folder / "vae")):
        with torch.no_grad():
            found = source.vae.normalise(source.vae.encode(image).mode()), source.vae.decode(latents)
        for ours, theirs in zip(found, wanted, strict=True):
            assert torch.allclose(ours, theirs, atol=1e-4 * float(theirs.abs().max())), name
        assert not any("mask" in note for note in source.loading_notes)
        if name.startswith("asymmetric"):
            mask = (torch.arange(32)[None, None, None] + torch.arange(32)[None, None, :, None] > 25).float()
            shift = getattr(network.config, "shift_factor", 0.0) or 0.0
            with torch.no_grad():
                judged = network.decode(latents / network.config.scaling_factor + shift, image=image, mask=mask).sample
                ours = source.vae.decode(latents, around=(image, mask))
            assert torch.allclose(ours, judged, atol=1e-4 * float(judged.abs().max())), name
            assert not torch.allclose(ours, found[1], atol=1e-2)


def test_inpainting_decodes_with_the_picture_around(
    published: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last latents go through diffusers' decoder with picture and mask; with the mask's edge where it is."""
    network = randomised(asymmetric())
    pipeline = Pipeline.load(with_vae(published("sd1"), tmp_path / "model", network), device="cpu")
    start = Image.fromarray(np.random.default_rng(1).integers(0, 255, (32, 32, 3), np.uint8))
    mask = Image.new("L", (32, 32))
    mask.paste(255, (0, 0, 16, 32))
    names = ["sha256:" + "0" * 64, "sha256:" + "1" * 64]
    data = dict(zip(names, map(png, (start, mask)), strict=True))
    options = {"image": names[1], "blur": 0, "preserve": False}
    plain = {"prompt": "a", "seed": 1, "num_inference_steps": 2, "width": 32, "height": 32, "init_image": names[0]}
    request = Request.from_dict({**plain, "mask": options}, where="request")
    seen: list[torch.Tensor] = []
    decode = pipeline.bundle.vae.decode

    def watched(latents: torch.Tensor, **more: Any) -> torch.Tensor:
        seen.append(latents)
        return decode(latents, **more)

    monkeypatch.setattr(pipeline.bundle.vae, "decode", watched)
    (painted,) = pipeline.paint(request, data)
    image = torch.from_numpy(np.asarray(start).copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    hard = torch.zeros(1, 1, 32, 32)
    hard[..., :16] = 1
    with torch.no_grad():
        judged = network.decode(seen[-1] / network.config.scaling_factor, image=image, mask=hard).sample
    expected = ((judged[0] / 2 + 0.5).clamp(0, 1) * 255).round().permute(1, 2, 0).numpy()
    assert np.abs(np.asarray(painted.image, np.float64) - expected).max() <= 1
    (tiles,) = pipeline.paint(request.replace({"vae_tiling": True}), data)
    assert any("without the picture around" in note for note in tiles.recipe.notes)


def png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def test_a_file_without_its_config_paints_the_same(published: Published, tmp_path: Path) -> None:
    network = randomised(tiny())
    folder = with_vae(published("sd1"), tmp_path / "model", network)
    request = Request(prompt="a", seed=1, num_inference_steps=1, width=32, height=32)
    pipeline = Pipeline.load(folder)
    (inside,) = pipeline.paint(request)
    shutil.copy(folder / "vae/diffusion_pytorch_model.safetensors", tmp_path / "taesd.safetensors")
    identity = identify(tmp_path / "taesd.safetensors")
    assert identity.kind == "vae"
    other = Pipeline.load(published("sd1"))
    (beside,) = other.paint(request.replace({"vae": str(tmp_path / "taesd.safetensors")}))
    assert beside.recipe.pixels == inside.recipe.pixels
    edit = request.replace({"init_image": str(tmp_path / "start.png"), "vae_tiling": True, "seamless": "both"})
    inside.image.save(tmp_path / "start.png")
    assert pipeline.paint(edit)[0].image.size == (32, 32)


@pytest.mark.parametrize("name", ["tiny", "asymmetric"])
def test_the_own_format_keeps_them_and_other_layouts_say_that_they_have_no_names(
    published: Published, tmp_path: Path, name: str
) -> None:
    folder = with_vae(published("sd1"), tmp_path / "model", randomised(MADE[name]()))
    convert(folder, tmp_path / "own.safetensors", "gouache")
    wanted, found = load_bundle(folder).vae.state_dict(), load_bundle(tmp_path / "own.safetensors").vae.state_dict()
    assert set(wanted) == set(found)
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    with pytest.raises(IncompatibleCheckpoint, match="--to gouache"):
        convert(folder, tmp_path / "single.safetensors", "single-file")


@pytest.mark.parametrize(
    ("key", "value"), [("act_fn", "gelu"), ("upsample_fn", "bilinear"), ("num_decoder_blocks", [9, 9, 9])]
)
def test_another_tiny_autoencoder_is_refused_by_what_differs(
    published: Published, tmp_path: Path, key: str, value: object
) -> None:
    folder = with_vae(published("sd1"), tmp_path / "model", tiny())
    file = folder / "vae/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    with pytest.raises(IncompatibleCheckpoint, match=rf"given {key} = "):
        load_bundle(folder)


def test_a_part_that_gouache_wrote_says_its_sizes_itself() -> None:
    """No shape of a weight tells the size of patches, or the scale and shift of each channel."""
    shipped = shipped_model()
    assert shipped is not None
    whole, path = identify(shipped), shipped / "vae.safetensors"
    assert identify(path).parts["vae"].config == whole.parts["vae"].config
    assert identify(shipped, vae=path).parts["vae"].config == whole.parts["vae"].config
