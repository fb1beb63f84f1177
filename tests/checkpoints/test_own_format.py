"""The own format with all parts that it can hold: sentence encoder, prior, quantizer, RGBA autoencoder, upscaler."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gouache.checkpoints.convert import convert
from gouache.checkpoints.diffusers.folder import read_json
from gouache.checkpoints.formats.header import read_header
from gouache.checkpoints.formats.safetensors import load_tensors, save_tensors, write_json
from gouache.checkpoints.identify import CARD_FILE, SYNONYMS_FILE, VOCABULARY_FILE
from gouache.checkpoints.load import load_bundle
from gouache.checkpoints.save import Format, bundle_to_write, write_model
from gouache.errors import ConfigError, CorruptCheckpoint, GouacheError, IncompatibleCheckpoint, ModelNotFound
from gouache.models.bundle import ModelBundle
from gouache.models.configs import (
    DenoiserConfig,
    GenerationDefaults,
    NoiseScheduleConfig,
    PriorConfig,
    QuantizerConfig,
    SentenceEncoderConfig,
    UNetConfig,
    UpscalerConfig,
    VAEConfig,
)
from gouache.models.memory.synonyms import Synonyms
from gouache.models.prior import Prior
from gouache.models.quantizer import Quantizer
from gouache.models.text.sentence import SentenceEncoder
from gouache.models.text.stack import TextStack
from gouache.models.unet import UNet
from gouache.models.upscalers import Upscaler
from gouache.models.vae import AutoencoderKL
from gouache.pipeline.pipeline import Pipeline, fill
from gouache.pipeline.request import Request

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "apple", "##s", "苹", "果", "é")
PARTS = {"unet", "vae", "text_encoder", "prior", "quantizer", "upscaler"}

VAE = VAEConfig(
    image_channels=4,
    latent_channels=8,
    channels=(16, 32),
    layers_per_level=1,
    norm_groups=8,
    patch_size=2,
    quant_conv=False,
    scale=tuple(0.5 + 0.1 * k for k in range(8)),
    shift=tuple(0.01 * k for k in range(8)),
)


@pytest.fixture(scope="module")
def pocket() -> ModelBundle:
    """Each part with settings that are not its defaults."""
    unet = UNetConfig(
        in_channels=8,
        out_channels=8,
        draft_channels=8,
        channels=(16, 32),
        layers_per_level=1,
        transformer_layers=(0, 1),
        heads=(2, 2),
        context_width=32,
        norm_groups=8,
        pooled_width=32,
        pooled_grid_channels=4,
    )
    encoder = SentenceEncoder(
        SentenceEncoderConfig(
            vocabulary_size=len(WORDS), width=32, inner_width=64, layers=2, heads=2, positions=24, max_tokens=16
        )
    )
    prior = PriorConfig(
        vocabulary=27,
        groups=(1, 4, 16),
        features=8,
        context_dim=32,
        pooled_dim=32,
        text="cross",
        width=32,
        depth=2,
        heads=2,
    )
    quantizer = QuantizerConfig(
        latent_channels=8,
        latent_size=8,
        features=8,
        width=16,
        blocks=1,
        levels=(3, 3, 3),
        scales=(1, 2, 4),
        residual_codes=5,
    )
    bundle = ModelBundle(
        family="pocket",
        unet=UNet(unet),
        vae=AutoencoderKL(VAE),
        text=TextStack.of_sentences(encoder, WORDS),
        denoiser_config=DenoiserConfig(parameterization="v", schedule=NoiseScheduleConfig(name="cosine")),
        defaults=GenerationDefaults(
            width=32, height=32, num_inference_steps=3, guidance_scale=3.0, sampler="dpmpp_2m", schedule="karras"
        ),
        prior=Prior(prior),
        quantizer=Quantizer(quantizer),
        upscaler=Upscaler(UpscalerConfig(channels=8, blocks=1, scale=2)),
        synonyms=Synonyms({"apple": ("red fruit", "苹果"), "frog": ("toad",), "thing": ()}),
        name="small",
    )
    for k, network in enumerate(bundle.networks().values()):
        fill(network, torch.Generator().manual_seed(k))
    return bundle.eval()


@pytest.fixture(scope="module")
def written(pocket: ModelBundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(bundle_to_write(pocket), tmp_path_factory.mktemp("own") / "small", "gouache")


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(written, tmp_path / "small"))


def assert_same(found: ModelBundle, wanted: ModelBundle) -> None:
    assert found.family == wanted.family
    assert found.name == wanted.name
    assert found.denoiser_config == wanted.denoiser_config
    assert found.defaults == wanted.defaults
    assert wanted.synonyms is not None
    assert found.synonyms is not None
    assert found.synonyms.table == wanted.synonyms.table
    assert found.text.tokenize("a red apples 苹果 é") == wanted.text.tokenize("a red apples 苹果 é")
    assert set(found.networks()) == set(wanted.networks())
    for name, network in wanted.networks().items():
        there = found.networks()[name]
        assert getattr(there, "config", None) == getattr(network, "config", None), name
        state, expected = there.state_dict(), network.state_dict()
        assert set(state) == set(expected)
        assert all(torch.equal(state[key], expected[key]) for key in expected), name


def paint(bundle: ModelBundle) -> bytes:
    image = Pipeline(bundle).paint(Request(prompt="a red apple", seed=5))[0].image
    assert image.mode == "RGBA"
    assert image.size == (32, 32)
    return image.tobytes()


def test_folder_and_file_give_the_model_back_and_paint_the_same(
    pocket: ModelBundle, written: Path, tmp_path: Path
) -> None:
    """folder -> one file -> folder: every tensor, config, default and word, and so the picture."""
    assert {file.name for file in written.iterdir()} == {
        *(f"{part}.safetensors" for part in PARTS),
        CARD_FILE,
        VOCABULARY_FILE,
        SYNONYMS_FILE,
    }
    source, wanted = written, paint(pocket)
    assert_same(load_bundle(source), pocket)
    steps: tuple[tuple[str, Format], ...] = (("one.safetensors", "gouache"), ("again", "gouache"))
    for name, layout in steps:
        convert(source, tmp_path / name, layout)
        source = tmp_path / name
        bundle = load_bundle(source)
        assert_same(bundle, pocket)
        assert paint(bundle) == wanted
    for part in PARTS:
        name = f"{part}.safetensors"
        assert (tmp_path / "again" / name).read_bytes() == (written / name).read_bytes()


def test_half_precision_keeps_everything_else(pocket: ModelBundle, written: Path, tmp_path: Path) -> None:
    convert(written, tmp_path / "half", "gouache", dtype=torch.float16)
    found = load_bundle(tmp_path / "half", dtype=torch.float32)
    wanted = pocket.unet.state_dict()
    assert all(torch.equal(value, wanted[name].half().float()) for name, value in found.unet.state_dict().items())
    assert found.vae.config == pocket.vae.config


def test_words_about_the_model_are_kept(folder: Path, tmp_path: Path) -> None:
    words = {"description": "Stickers on nothing.", "licence": "CC-BY-4.0"}
    write_json(folder / CARD_FILE, {**read_json(folder / CARD_FILE), **words})
    convert(folder, tmp_path / "one.safetensors", "gouache")
    convert(tmp_path / "one.safetensors", tmp_path / "again", "gouache")
    found = read_json(tmp_path / "again" / CARD_FILE)
    assert {key: found[key] for key in words} == words


def test_every_part_is_told_without_torch(written: Path, tmp_path: Path) -> None:
    """Only whether a whole model loads is asked of the loader, which needs torch."""
    convert(written, tmp_path / "one.safetensors", "gouache")
    code = """
import json, sys
from pathlib import Path
from gouache.checkpoints.identify import identify
from gouache.cli.inspect import describe
print(json.dumps(describe(Path(sys.argv[1]), identify(sys.argv[1]))))
assert "torch" not in sys.modules, "torch was imported"
"""
    for path in (written, tmp_path / "one.safetensors"):
        done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert found["family"] == "pocket"
        assert found["label"] == "small"
        assert found["layout"] == "gouache"
        assert found["prediction"] == "v"
        assert found["unexplained"] == []
        assert set(found["parts"]) == PARTS
        assert all(part["parameters"] > 0 and part["dtypes"] == ["F32"] for part in found["parts"].values())
        assert found["parts"]["quantizer"]["config"]["levels"] == [3, 3, 3]
        assert found["parts"]["prior"]["config"]["text"] == "cross"
        assert found["parts"]["vae"]["config"]["image_channels"] == 4


def test_painting_imports_nothing_of_training_and_no_peer(written: Path) -> None:
    code = """
import sys
from gouache.pipeline.pipeline import open_pipeline
from gouache.pipeline.request import Request
pipe, _ = open_pipeline(sys.argv[1])
pipe.paint(Request(prompt="a red apple", num_inference_steps=1))
heavy = {"accelerate", "datasets", "diffusers", "fastapi", "gouache.serve", "gouache.training", "k_diffusion",
         "matplotlib", "pandas", "pyarrow", "scipy", "sqlalchemy", "sympy", "torch._dynamo", "torch._inductor",
         "torchvision", "transformers", "huggingface_hub", "rich", "typer"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code, str(written)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("layout", ["diffusers", "single-file"])
def test_layouts_without_a_word_for_it_are_refused(written: Path, tmp_path: Path, layout: Format) -> None:
    with pytest.raises(IncompatibleCheckpoint, match="pocket"):
        convert(written, tmp_path / "out", layout)
    assert not list(tmp_path.iterdir()), "nothing is left behind"


def _without(folder: Path, name: str) -> None:
    values = read_json(folder / CARD_FILE)
    parts = values["parts"]
    assert isinstance(parts, list), "a card lists its parts"
    write_json(folder / CARD_FILE, {**values, "parts": [part for part in parts if part["name"] != name]})


def _prior_of_another_model(folder: Path) -> None:
    file = folder / "prior.safetensors"
    metadata = {key: read_header(file).metadata[key] for key in ("component", "config")}
    tensors = {name: tensor + 1 for name, tensor in load_tensors(file).items()}
    save_tensors(file, tensors, metadata)


def test_damage_is_named(folder: Path) -> None:
    cases: tuple[tuple[Callable[[], None], type[GouacheError], str], ...] = (
        (lambda: (folder / VOCABULARY_FILE).unlink(), CorruptCheckpoint, "vocabulary"),
        (lambda: _without(folder, "quantizer"), ConfigError, "prior and quantizer"),
        (lambda: _prior_of_another_model(folder), CorruptCheckpoint, r"prior\.safetensors.*sha256"),
        (lambda: (folder / "prior.safetensors").unlink(), ModelNotFound, r"prior\.safetensors"),
    )
    sound = {file.name: file.read_bytes() for file in folder.iterdir()}
    for damage, error, told in cases:
        damage()
        with pytest.raises(error, match=told):
            load_bundle(folder)
        for name, content in sound.items():
            (folder / name).write_bytes(content)
