"""A tiny decoder alone, as TAESD's are published: layers by their number, beside a model's own autoencoder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tests.checkpoints.test_other_vaes import randomised, tiny

from gouache.checkpoints.load import load_bundle
from gouache.checkpoints.vae_library import load_vae
from gouache.errors import CorruptCheckpoint, IncompatibleCheckpoint
from gouache.pipeline.pipeline import Pipeline
from gouache.pipeline.replay import replay
from gouache.pipeline.request import Request

if TYPE_CHECKING:
    from collections.abc import Callable

    from gouache.models.bundle import ModelBundle

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture(scope="module")
def network() -> Any:
    """diffusers' tiny autoencoder with random weights."""
    return randomised(tiny(num_encoder_blocks=(1, 2, 3), num_decoder_blocks=(3, 2, 1)))


@pytest.fixture
def bundle(published: Callable[[str], Path]) -> ModelBundle:
    return load_bundle(published("sd1"))


def published_halves(network: Any, folder: Path) -> tuple[Path, Path]:
    """As TAESD's author saves them: an `nn.Sequential` each, the decoder's with a layer without tensors in front."""
    halves = []
    for half, more in (("decoder", 1), ("encoder", 0)):
        tensors = {}
        for name, tensor in getattr(network, half).state_dict().items():
            _, number, rest = name.split(".", 2)
            tensors[f"{int(number) + more}.{rest}"] = tensor.contiguous()
        halves.append(folder / f"taesd_{half}.safetensors")
        save_file(tensors, halves[-1])
    return halves[0], halves[1]


@torch.no_grad()
def test_it_decodes_as_diffusers_and_the_models_own_encodes(network: Any, bundle: ModelBundle, tmp_path: Path) -> None:
    decoder, _ = published_halves(network, tmp_path)
    generator = torch.Generator().manual_seed(2)
    latents, image = torch.randn(2, 4, 8, 8, generator=generator), torch.rand(1, 3, 32, 32, generator=generator)
    vae, _ = load_vae(decoder, bundle, device=torch.device("cpu"), dtype=torch.float32)
    assert torch.allclose(vae.decode(latents), network.decode(latents).sample, atol=1e-4)
    assert torch.equal(vae.encode(image).mean, bundle.vae.encode(image).mean)
    assert vae.decode_in_tiles(latents, size=4, overlap=2).shape == (2, 3, 32, 32)


def test_a_torch_file_in_half_precision_is_the_same(network: Any, bundle: ModelBundle, tmp_path: Path) -> None:
    decoder, _ = published_halves(network, tmp_path)
    from safetensors.torch import load_file

    torch.save({name: one.half() for name, one in load_file(decoder).items()}, tmp_path / "taesd_decoder.pth")
    vae, _ = load_vae(tmp_path / "taesd_decoder.pth", bundle, device=torch.device("cpu"), dtype=torch.float32)
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        assert torch.allclose(vae.decode(latents), network.decode(latents).sample, atol=0.02)


def test_a_picture_is_painted_with_it_and_replays(
    network: Any, published: Callable[[str], Path], tmp_path: Path
) -> None:
    decoder, _ = published_halves(network, tmp_path)
    start = tmp_path / "start.png"
    Image.new("RGB", (64, 64), "red").save(start)
    pipeline = Pipeline.load(published("sd1"))
    request = Request(prompt="a cat", seed=1, num_inference_steps=2, width=64, height=64, vae=str(decoder))
    (painted,) = pipeline.paint(request)
    assert painted.image.size == (64, 64)
    assert any(f"VAE {decoder}" in note for note in painted.recipe.notes)
    assert painted.image.tobytes() != pipeline.paint(request.replace({"vae": None}))[0].image.tobytes()
    file = tmp_path / "picture.png"
    file.write_bytes(painted.encode())
    assert replay(file, model=str(published("sd1"))).same
    for more in ({"init_image": str(start), "strength": 0.5}, {"seamless": "both"}, {"vae_tiling": True}):
        assert pipeline.paint(request.replace(more))[0].image.size == (64, 64)


def test_what_is_none_or_does_not_fit_is_refused_by_name(network: Any, bundle: ModelBundle, tmp_path: Path) -> None:
    decoder, encoder = published_halves(network, tmp_path)

    def refused(match: str, file: Path, kind: type[Exception] = IncompatibleCheckpoint) -> None:
        with pytest.raises(kind, match=match):
            load_vae(file, bundle, device=torch.device("cpu"), dtype=torch.float32)

    refused("the encoder of a tiny autoencoder.*taesd_decoder", encoder)
    from safetensors.torch import load_file

    tensors = load_file(decoder)

    def changed(**others: torch.Tensor | None) -> Path:
        file = tmp_path / "changed.safetensors"
        mixed = tensors | {name.replace("_", "."): one for name, one in others.items()}
        save_file({name: one for name, one in mixed.items() if one is not None}, file)
        return file

    refused("1 missing: layers.3.conv.2.weight", changed(**{"4_conv_2_weight": None}))
    refused("1 unexpected: layers.2.conv.7.weight", changed(**{"3_conv_7_weight": torch.zeros(3, 4)}))
    refused("of another shape: layers.2.conv.0.bias", changed(**{"3_conv_0_bias": torch.zeros(5)}))
    broken = tensors["3.conv.0.weight"].clone()
    broken[0, 0] = torch.nan
    refused("NaN", changed(**{"3_conv_0_weight": broken}), CorruptCheckpoint)
    options = {"decoder_block_out_channels": (16, 16), "num_decoder_blocks": (1, 1)}
    options |= {"encoder_block_out_channels": (16, 16), "num_encoder_blocks": (1, 1)}
    refused("2 times as large.*4, 3 and 4", published_halves(randomised(tiny(**options)), tmp_path)[0])
    other = tiny(latent_channels=16)
    refused("16 latent channels.*4, 3 and 4", published_halves(randomised(other), tmp_path)[0])
