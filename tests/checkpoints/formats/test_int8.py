"""Matrices in int8: the arithmetic, a whole model through it, and damaged files."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from gouache.checkpoints.convert import convert
from gouache.checkpoints.diffusers.folder import read_json
from gouache.checkpoints.formats.header import SCALE, TensorInfo, dequantised_header, is_matrix, read_header
from gouache.checkpoints.formats.safetensors import dequantise, load_tensors, quantise, save_tensors, write_json
from gouache.checkpoints.identify import CARD_FILE
from gouache.checkpoints.load import load_bundle
from gouache.checkpoints.save import Format, ModelToWrite, bundle_to_write, write_model
from gouache.cli.main import app
from gouache.errors import CorruptCheckpoint, IncompatibleCheckpoint, InvalidInput, UnknownName
from gouache.models.configs import SentenceEncoderConfig
from gouache.models.text.sentence import SentenceEncoder
from gouache.models.text.stack import TextStack
from gouache.pipeline.pipeline import Pipeline, fill, untrained_bundle
from gouache.pipeline.request import Request

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "apple")
TABLE = "embeddings.word_embeddings.weight"
FILE = "text_encoder.safetensors"


@pytest.fixture(scope="module")
def model() -> ModelToWrite:
    """The untrained model with a sentence encoder of its context's width, to be stored in int8."""
    base = untrained_bundle()
    width = base.unet.config.context_width
    encoder = SentenceEncoder(
        SentenceEncoderConfig(
            vocabulary_size=len(WORDS),
            width=width,
            inner_width=2 * width,
            layers=1,
            heads=2,
            positions=24,
            max_tokens=16,
        )
    )
    fill(encoder, torch.Generator().manual_seed(3))
    bundle = replace(
        base, family="pocket", text=TextStack.of_sentences(encoder, WORDS), name="small", styles=("flat", "3d")
    ).eval()
    return replace(bundle_to_write(bundle), int8=("text_encoder",))


@pytest.fixture
def folder(model: ModelToWrite, tmp_path: Path) -> Path:
    return write_model(model, tmp_path / "small", "gouache")


def text_state(path: Path, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    return load_bundle(path, dtype=dtype).text.encoders[0].state_dict()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_number_comes_back_within_half_a_scale(dtype: torch.dtype) -> None:
    """The bound of rounding, with rows of very different size, an empty one and one below the type's normal range."""
    generator = torch.Generator().manual_seed(0)
    sizes = torch.tensor([1.0, 1e-3, 30.0, 0.0, 1e-9, 7.0])[:, None]
    matrix = (torch.randn(6, 64, generator=generator) * sizes).to(dtype)
    whole, scale = quantise(matrix)
    assert whole.dtype == torch.int8
    assert scale.dtype == dtype
    assert scale.shape == (6, 1)
    assert int(whole.abs().max()) <= 127
    assert int(whole[2].abs().max()) >= 126
    error = (whole.float() * scale.float() - matrix.float()).abs()
    assert bool((error <= scale.float() / 2 * (1 + 1e-6)).all())
    assert bool((dequantise(whole, scale)[3] == 0).all())


def test_kernels_have_one_scale_an_output_channel() -> None:
    kernel = torch.randn(5, 4, 3, 3, generator=torch.Generator().manual_seed(1))
    whole, scale = quantise(kernel)
    assert whole.shape == kernel.shape
    assert torch.allclose(scale[:, 0] * 127, kernel.abs().amax((1, 2, 3)), rtol=1e-6)
    assert dequantise(whole, scale).shape == kernel.shape


@pytest.mark.parametrize("bad", [torch.tensor([[1.0, float("nan")]]), torch.tensor([[float("inf"), 1.0]])])
def test_what_is_not_finite_is_refused(bad: Tensor) -> None:
    with pytest.raises(InvalidInput, match="matrix"):
        quantise(bad)


@pytest.mark.parametrize("bad", [torch.ones(4), torch.ones(2, 2, dtype=torch.long)])
def test_what_is_no_matrix_is_refused(bad: Tensor) -> None:
    with pytest.raises(InvalidInput, match="matrix"):
        quantise(bad)


def test_only_weights_with_long_rows_are_chosen() -> None:
    assert is_matrix("a.weight", TensorInfo("F16", (8, 32)))
    assert is_matrix("a.weight", TensorInfo("F32", (8, 4, 3, 3)))
    for name, info in (
        ("norm.weight", TensorInfo("F16", (384,))),
        ("a.bias", TensorInfo("F16", (8, 64))),
        ("a.weight", TensorInfo("F16", (8, 4))),
        ("a.weight", TensorInfo("I64", (8, 64))),
    ):
        assert not is_matrix(name, info)


def test_a_model_loads_with_every_tensor_near_what_it_was(model: ModelToWrite, folder: Path) -> None:
    """Matrices within half a scale, everything else bit for bit; and the file is a quarter as large."""
    wanted, found = model.networks["text_encoder"], text_state(folder)
    assert set(found) == set(wanted.infos)
    for name, info in wanted.infos.items():
        there, given = found[name], wanted.tensor_of(name)
        if is_matrix(name, info):
            assert not torch.equal(there, given)
            assert torch.equal(there, dequantise(*quantise(given)))
        else:
            assert torch.equal(there, given)
    assert read_json(folder / CARD_FILE)["int8"] == ["text_encoder"]
    stored = read_header(folder / FILE).tensors
    assert stored[TABLE].dtype == "I8"
    assert stored[TABLE + SCALE].shape == (len(WORDS), 1)


def test_one_file_holds_int8_too_and_converting_writes_plain_numbers(model: ModelToWrite, folder: Path) -> None:
    write_model(model, folder.parent / "one.safetensors", "gouache")
    wanted = text_state(folder)
    convert(folder.parent / "one.safetensors", folder.parent / "plain", "gouache")
    for path in (folder.parent / "one.safetensors", folder.parent / "plain"):
        found = text_state(path)
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert read_json(folder.parent / "plain" / CARD_FILE)["int8"] == []
    assert {info.dtype for info in read_header(folder.parent / "plain" / FILE).tensors.values()} == {"F32"}


def test_styles_travel_with_the_model_and_others_are_refused(model: ModelToWrite, folder: Path) -> None:
    write_model(model, folder.parent / "one.safetensors", "gouache")
    convert(folder.parent / "one.safetensors", folder.parent / "again", "gouache")
    pipeline = Pipeline(load_bundle(folder.parent / "again"))
    assert pipeline.bundle.styles == ("flat", "3d")
    assert pipeline.resolve(Request(prompt="a cat", style="3d")).style == "3d"
    with pytest.raises(UnknownName, match="Did you mean 'flat'"):
        pipeline.resolve(Request(prompt="a cat", style="flt"))


def test_inspect_shows_the_stored_types(folder: Path) -> None:
    result = CliRunner().invoke(app, ["inspect", str(folder), "--json"])
    assert result.exit_code == 0, result.output
    parts = json.loads(result.output)["parts"]
    assert set(parts["text_encoder"]["dtypes"]) == {"I8", "F32"}
    assert parts["unet"]["dtypes"] == ["F32"]


def without_a_scale(tensors: dict[str, Tensor]) -> None:
    del tensors[TABLE + SCALE]


def with_too_few_scales(tensors: dict[str, Tensor]) -> None:
    tensors[TABLE + SCALE] = tensors[TABLE + SCALE][:-1]


def with_scales_of_whole_numbers(tensors: dict[str, Tensor]) -> None:
    tensors[TABLE + SCALE] = torch.ones(len(WORDS), 1, dtype=torch.int32)


def with_a_scale_of(value: float) -> Callable[[dict[str, Tensor]], None]:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors[TABLE + SCALE][2] = value

    return change


def with_a_number_out_of_range(tensors: dict[str, Tensor]) -> None:
    tensors[TABLE][0, 0] = -128


def without_any(tensors: dict[str, Tensor]) -> None:
    for name in [name for name, tensor in tensors.items() if tensor.dtype == torch.int8]:
        tensors[name] = dequantise(tensors[name], tensors.pop(name + SCALE))


@pytest.mark.parametrize(
    "damage",
    [
        without_a_scale,
        with_too_few_scales,
        with_scales_of_whole_numbers,
        with_a_number_out_of_range,
        without_any,
        *(with_a_scale_of(value) for value in (0.0, -1.0, float("nan"), float("inf"))),
    ],
)
def test_damage_is_told(folder: Path, damage: Callable[[dict[str, Tensor]], None]) -> None:
    rewrite(folder, damage)
    with pytest.raises(CorruptCheckpoint, match="int8"):
        load_bundle(folder)


def test_a_scale_of_nothing_and_int8_that_the_card_does_not_name_are_refused(folder: Path) -> None:
    write_json(folder / CARD_FILE, {**read_json(folder / CARD_FILE), "int8": []})
    with pytest.raises(IncompatibleCheckpoint, match=SCALE):
        load_bundle(folder)
    write_json(folder / CARD_FILE, {**read_json(folder / CARD_FILE), "int8": ["text_encoder"]})
    rewrite(folder, lambda tensors: tensors.update({"odd.weight_scale": torch.ones(3, 1)}))
    with pytest.raises(IncompatibleCheckpoint, match="odd"):
        load_bundle(folder)


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    """Change a part's file, and its sum on the card."""
    tensors = load_tensors(folder / FILE)
    config = read_header(folder / FILE).metadata["config"]
    change(tensors)
    sha256 = save_tensors(folder / FILE, tensors, {"config": config})
    card = read_json(folder / CARD_FILE)
    parts = card["parts"]
    assert isinstance(parts, list)
    for part in parts:
        if part["name"] == "text_encoder":
            part["sha256"] = sha256
    write_json(folder / CARD_FILE, card)


def test_other_formats_and_unknown_parts_refuse_int8(model: ModelToWrite, tmp_path: Path) -> None:
    wrong: tuple[tuple[ModelToWrite, Format], ...] = (
        (model, "diffusers"),
        (replace(model, int8=("ears",)), "gouache"),
    )
    for one, layout in wrong:
        with pytest.raises(InvalidInput, match="int8"):
            write_model(one, tmp_path / "out", layout)
        assert not (tmp_path / "out").exists()


def test_the_header_of_a_file_without_int8_parts_is_as_it_was(tmp_path: Path) -> None:
    save_tensors(tmp_path / "a.safetensors", {"x.weight": torch.ones(2, 2)})
    header = read_header(tmp_path / "a.safetensors")
    assert dequantised_header(header, ()) == header
