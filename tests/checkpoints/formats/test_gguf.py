"""GGUF: every type's arithmetic, files of the two programs that write Stable Diffusion so, and damage.

The judge is ggml's own Python package: it quantizes and dequantizes, and it writes every file here.
"""

from __future__ import annotations

import io
import json
import shutil
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import gguf
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from gouache.checkpoints.convert import convert
from gouache.checkpoints.formats.gguf import BLOCK_TYPES, T5_NAMES, GgufFile
from gouache.checkpoints.formats.gguf_blocks import DEQUANTIZERS, dequantize
from gouache.checkpoints.formats.header import open_header, open_source
from gouache.checkpoints.load import identify, load_bundle
from gouache.checkpoints.networks import load_network, open_part
from gouache.cli.main import app
from gouache.errors import CorruptCheckpoint, GouacheError, IncompatibleCheckpoint, UnknownFamily
from gouache.pipeline.pipeline import Pipeline
from gouache.pipeline.request import Request

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
Published = Callable[[str], Path]
Type = gguf.GGMLQuantizationType
UNET = "model.diffusion_model."
KINDS = {"sd1": "Q8_0", "sdxl": "Q4_1"}
"""What each family's model is written in."""
REQUEST = Request(prompt="a fox", seed=3, num_inference_steps=1, width=32, height=32)
SCALES = {
    "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,), "Q2_K": (80, 82), "Q3_K": (108,),
    "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,),
}  # fmt: skip
"""Where float16 numbers stand in a block."""


def blocks_of(kind: str, count: int, seed: int) -> Any:
    """Random bytes with finite scales."""
    random = np.random.default_rng(seed)
    blocks = random.integers(0, 256, (count, gguf.GGML_QUANT_SIZES[Type[kind]][1]), dtype=np.uint8)
    for at in SCALES[kind]:
        blocks[:, at : at + 2] = random.normal(size=count).astype("<f2").view(np.uint8).reshape(count, 2)
    return blocks


def test_the_types_are_ggmls() -> None:
    for number, kind in BLOCK_TYPES.items():
        assert (Type(number).name, gguf.GGML_QUANT_SIZES[Type(number)]) == (kind.name, (kind.numbers, kind.bytes))


@pytest.mark.parametrize("kind", DEQUANTIZERS)
def test_blocks_come_back_as_ggmls_package_has_them(kind: str) -> None:
    blocks = blocks_of(kind, 500, seed=1)
    assert np.array_equal(DEQUANTIZERS[kind](blocks), gguf.quants.dequantize(blocks, Type[kind]))


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q6_K"])
def test_a_tensor_larger_than_what_is_read_at_once_comes_back_whole(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gouache.checkpoints.formats.gguf_blocks.AT_ONCE", 1024)
    rows = np.random.default_rng(2).normal(size=(7, 512)).astype(np.float32)
    stored = blocks_of(kind, 14, seed=3).reshape(7, -1) if "K" in kind else gguf.quants.quantize(rows, Type[kind])
    write(tmp_path / "a.gguf", {"first": (rows, Type.F32), "x": (stored, Type[kind])})
    found = GgufFile(tmp_path / "a.gguf").read("x")
    assert np.array_equal(found.float().numpy(), gguf.quants.dequantize(stored, Type[kind]).reshape(7, 512))


@pytest.mark.parametrize("kind", ["Q8_0", "Q3_K", "Q6_K"])
def test_what_is_needed_on_the_way_does_not_grow_with_the_tensor(kind: str) -> None:
    size = gguf.GGML_QUANT_SIZES[Type[kind]]
    block_type = next(one for one in BLOCK_TYPES.values() if one.name == kind)
    peaks = []
    for count in (1 << 20, 1 << 22):
        blocks = io.BytesIO(blocks_of(kind, 64, seed=4).tobytes() * (count // size[0] // 64))
        out = np.empty(count, np.float32)
        tracemalloc.start()
        dequantize(blocks, block_type, out, Path("model.gguf"))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0]
    assert peaks[1] < 64 << 20


def write(path: Path, tensors: dict[str, tuple[Any, Any]], architecture: str | None = None, **entries: Any) -> Path:
    """A file by ggml's package; `entries` are arrays of whole numbers or strings."""
    writer = gguf.GGUFWriter(path, architecture or "none")
    if architecture is None:  # stable-diffusion.cpp writes none
        writer.kv_data[0].clear()
    for key, value in entries.items():
        writer.add_string(key, value) if isinstance(value, str) else writer.add_array(key, value)
    for name, (values, kind) in tensors.items():
        writer.add_tensor(name, values, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def as_comfyui(tensors: dict[str, torch.Tensor], path: Path, kind: str, architecture: str) -> dict[str, torch.Tensor]:
    """One denoiser as ComfyUI-GGUF's tools write it: matrices reshaped to rows of 256 where their own don't divide.

    Returns:
        what the tensors are after quantization, by ggml's package.
    """
    written, shapes, expected = {}, {}, {}
    reshapes = architecture in ("sd1", "sdxl")
    for name, tensor in tensors.items():
        values = tensor.float().numpy()
        as_is = values.ndim == 1 or values.size <= 1024
        if reshapes and values.ndim > 1 and values.size >= 512 and values.size % 256 == 0 and values.shape[-1] % 256:
            shapes[f"comfy.gguf.orig_shape.{name}"] = list(values.shape)
            values = values.reshape(-1, 256)
        divides = values.shape[-1] % gguf.GGML_QUANT_SIZES[Type[kind]][0] == 0
        how = Type.F32 if as_is else Type[kind] if divides else Type.F16
        stored = gguf.quants.quantize(values, how)
        written[name] = (stored, how)
        expected[name] = torch.from_numpy(gguf.quants.dequantize(stored, how).astype(np.float32)).reshape(tensor.shape)
    write(path, written, architecture, **shapes)
    return expected


def as_sd_cpp(tensors: dict[str, torch.Tensor], path: Path, kind: str) -> dict[str, torch.Tensor]:
    """A whole model as stable-diffusion.cpp converts it: the file's names, no architecture, no sizes of 1 in front."""
    written, expected = {}, {}
    for name, tensor in tensors.items():
        values = tensor.float().numpy()
        while values.ndim > 1 and values.shape[0] == 1:
            values = values[0]
        matrix = values.ndim == 2 and values.shape[-1] % 32 == 0 and len(values) < 10_000  # the vocabulary takes long
        how = Type[kind] if matrix else Type.F32 if values.ndim == 1 else Type.F16
        stored = gguf.quants.quantize(values, how)
        written[name] = (stored, how)
        expected[name] = torch.from_numpy(gguf.quants.dequantize(stored, how).astype(np.float32)).reshape(tensor.shape)
    write(path, written)
    return expected


@dataclass(frozen=True)
class Written:
    """A whole model in GGUF, and the same numbers in safetensors."""

    gguf: Path
    plain: Path
    tensors: dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def whole(published: Published, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Written]:
    """`whole(family)`: as stable-diffusion.cpp converts it; each is made once."""

    @cache
    def made(family: str) -> Written:
        folder = tmp_path_factory.mktemp("whole")
        convert(published(family), folder / "plain.safetensors", "single-file")
        tensors = load_file(folder / "plain.safetensors")
        expected = as_sd_cpp(tensors, folder / "model.gguf", KINDS[family])
        save_file(expected, folder / "plain.safetensors")
        return Written(folder / "model.gguf", folder / "plain.safetensors", tensors)

    return made


def pixels(model: Path) -> str | None:
    return Pipeline.load(model).paint(REQUEST)[0].recipe.pixels


@pytest.mark.every_time("sd1")
@pytest.mark.parametrize("family", KINDS)
def test_a_whole_model_of_stable_diffusion_cpp_paints_what_its_numbers_paint(
    whole: Callable[[str], Written], family: str
) -> None:
    model = whole(family)
    identity = identify(model.gguf)
    assert (identity.kind, identity.family, identity.layout) == ("model", family, "single-file")
    assert KINDS[family] in identity.parts["unet"].dtypes
    assert pixels(model.gguf) == pixels(model.plain)


def test_a_denoiser_of_comfyui_beside_the_other_parts_is_a_model(
    whole: Callable[[str], Written], tmp_path: Path
) -> None:
    tensors = whole("sdxl").tensors
    unet = {name.removeprefix(UNET): one for name, one in tensors.items() if name.startswith(UNET)}
    (tmp_path / "model" / "unet").mkdir(parents=True)
    file = tmp_path / "model" / "unet" / "net-Q8_0.gguf"
    expected = as_comfyui(unet, file, "Q8_0", "sdxl")
    alone = identify(file)
    assert (alone.kind, alone.family) == ("unet", "sdxl")
    with pytest.raises(IncompatibleCheckpoint, match=r"a unet.*expected a whole model"):
        load_bundle(file)
    rest = {name: one for name, one in tensors.items() if not name.startswith(UNET)}
    save_file(rest, tmp_path / "model" / "others.safetensors")
    assert identify(tmp_path / "model").kind == "model"
    found = load_bundle(tmp_path / "model").unet.state_dict()
    save_file(rest | {UNET + name: one for name, one in expected.items()}, tmp_path / "same.safetensors")
    wanted = load_bundle(tmp_path / "same.safetensors").unet.state_dict()
    assert all(torch.equal(found[name].float(), tensor) for name, tensor in wanted.items())


def test_a_transformer_of_stable_diffusion_3_is_one(tmp_path: Path) -> None:
    sizes = {"joint_attention_dim": 64, "pooled_projection_dim": 40, "pos_embed_max_size": 12, "sample_size": 8}
    heads = {"num_attention_heads": 2, "attention_head_dim": 16, "caption_projection_dim": 32, "num_layers": 2}
    theirs = diffusers.SD3Transformer2DModel(**sizes, **heads).state_dict()
    expected = as_comfyui(theirs, tmp_path / "sd3-Q8_0.gguf", "Q8_0", "sd3")
    identity = identify(tmp_path / "sd3-Q8_0.gguf")
    assert (identity.kind, identity.family) == ("unet", "sd3")
    assert "Q8_0" in identity.parts["unet"].dtypes
    part = identity.parts["unet"]
    network, _ = load_network(part, open_part(part.header), identity.family)
    found = network.state_dict()
    assert set(found) == set(expected)
    assert all(torch.equal(tensor.float(), expected[name].view(tensor.shape)) for name, tensor in found.items())


def test_a_t5_under_llama_cpps_names_is_the_one_of_transformers(tmp_path: Path) -> None:
    config = transformers.T5Config(
        vocab_size=256, d_model=64, d_ff=96, num_layers=2, num_heads=4, d_kv=16, feed_forward_proj="gated-gelu"
    )
    theirs = transformers.T5EncoderModel(config).state_dict()
    spellings = {ours: name for name, ours in T5_NAMES.items()}
    written, expected = {}, {}
    for name, tensor in theirs.items():
        if name == "encoder.embed_tokens.weight":
            continue
        llama = name
        for ours, spelled in spellings.items():
            llama = llama.replace(ours, spelled)
        how = Type.Q8_0 if tensor.ndim == 2 and tensor.shape[1] % 32 == 0 else Type.F32
        written[llama] = (gguf.quants.quantize(tensor.numpy(), how), how)
        expected[name] = torch.from_numpy(gguf.quants.dequantize(*written[llama]).astype(np.float32))
    assert "enc.blk.0.attn_rel_b.weight" in written
    path = write(tmp_path / "t5-Q8_0.gguf", written, "t5encoder")
    identity = identify(path)
    assert (identity.kind, list(identity.parts)) == ("text-encoder", ["text_encoder_3"])
    part = identity.parts["text_encoder_3"]
    network, _ = load_network(part, open_part(part.header), identity.family)
    found = network.state_dict()
    assert set(found) == set(expected)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


def test_it_becomes_the_type_that_is_asked_for_and_any_layout(whole: Callable[[str], Written], tmp_path: Path) -> None:
    exact, half = load_bundle(whole("sd1").plain), load_bundle(whole("sd1").gguf, dtype=torch.float16)
    for name, tensor in half.unet.state_dict().items():
        assert torch.equal(tensor, exact.unet.state_dict()[name].half())
    convert(whole("sd1").gguf, tmp_path / "folder", "diffusers", dtype=torch.float16)
    again = load_bundle(tmp_path / "folder").unet.state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in half.unet.state_dict().items())


def test_inspect_names_the_types_and_says_that_it_loads(whole: Callable[[str], Written]) -> None:
    found = json.loads(CliRunner().invoke(app, ["inspect", str(whole("sd1").gguf), "--json"]).stdout)
    assert found["loads"]
    assert "Q8_0" in found["parts"]["unet"]["dtypes"]


def test_headers_are_read_without_torch(whole: Callable[[str], Written]) -> None:
    code = "import sys; from gouache.checkpoints.identify import identify; print(identify(sys.argv[1]).family)"
    code += "; assert not {'torch', 'numpy'} & set(sys.modules)"
    run = [sys.executable, "-c", code, str(whole("sd1").gguf)]
    assert subprocess.run(run, check=True, capture_output=True, text=True).stdout == "sd1\n"


@pytest.mark.parametrize("kind", ["IQ4_XS", "TQ1_0", "MXFP4", "Q8_K", "IQ2_XXS"])
def test_types_that_are_not_dequantized_are_known_and_refused_by_name(tmp_path: Path, kind: str) -> None:
    numbers, size = gguf.GGML_QUANT_SIZES[Type[kind]]
    stored = np.zeros((256, 256 // numbers * size), np.uint8)
    path = write(tmp_path / "other.gguf", {"x": (stored, Type[kind])}, "sd1")
    assert open_header(path).stored == {"x": kind}
    with pytest.raises(IncompatibleCheckpoint, match=rf"tensors in {kind}.*Get the model in one of these"):
        open_source(path).read("x")


def header_of(*parts: bytes) -> bytes:
    return b"GGUF" + b"".join(parts)


def word(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def tensor(name: str, sizes: tuple[int, ...], kind: int, offset: int) -> bytes:
    return word(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, kind, offset)


def one(entry: bytes, *, entries: int = 0, before: bytes = b"", data: bytes = bytes(256)) -> bytes:
    """A file of one tensor, by hand."""
    head = header_of(struct.pack("<IQQ", 3, 1, entries), before, entry)
    return head + bytes(-len(head) % 32) + data


SPLIT = word("split.count") + struct.pack("<IH", 2, 3)
SHAPE = word("comfy.gguf.orig_shape.x") + struct.pack("<IIQ", 9, 5, 2)
DAMAGE: dict[str, tuple[bytes, type[GouacheError], str]] = {
    "nothing behind the first word": (b"GGUF", CorruptCheckpoint, "the version"),
    "version 1": (header_of(struct.pack("<III", 1, 1, 0)), UnknownFamily, "version 1"),
    "the high byte first": (header_of(struct.pack(">IQQ", 3, 1, 0)), UnknownFamily, "high byte first"),
    "more tensors than can be": (header_of(struct.pack("<IQQ", 3, 1 << 60, 0)), CorruptCheckpoint, "tensors"),
    "more entries than can be": (header_of(struct.pack("<IQQ", 3, 0, 1 << 60)), CorruptCheckpoint, "entries"),
    "a key longer than the file": (header_of(struct.pack("<IQQQ", 3, 0, 1, 1 << 50)), CorruptCheckpoint, "a key"),
    "a key that is no text": (
        header_of(struct.pack("<IQQQ", 3, 0, 1, 2), b"\xff\xfe", bytes(40)), CorruptCheckpoint, "UTF-8",
    ),
    "a value of an unknown type": (
        header_of(struct.pack("<IQQ", 3, 0, 1), word("k"), struct.pack("<IQ", 77, 0)), CorruptCheckpoint, "type 77",
    ),
    "an array as large as memory": (
        header_of(struct.pack("<IQQ", 3, 0, 1), word("k"), struct.pack("<IIQ", 9, 8, 1 << 50)),
        CorruptCheckpoint, "'k'",
    ),
    "arrays without an end": (
        header_of(struct.pack("<IQQ", 3, 0, 1), word("k"), struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 99),
        CorruptCheckpoint, "type 9",
    ),
    "an alignment of three": (
        one(tensor("x", (8,), 0, 0), entries=1, before=word("general.alignment") + struct.pack("<II", 4, 3)),
        CorruptCheckpoint, "alignment",
    ),
    "a shard": (one(tensor("x", (8,), 0, 0), entries=1, before=SPLIT), IncompatibleCheckpoint, "--merge"),
    "a tensor cut off": (one(tensor("x", (64, 2), 0, 0)), CorruptCheckpoint, "cut off"),
    "a tensor of a million axes": (
        one(word("x") + struct.pack("<IQQ", 1_000_000, 1, 1)), CorruptCheckpoint, "1000000 axes",
    ),
    "a tensor without an end": (one(tensor("x", (1 << 62, 1 << 62), 0, 0)), CorruptCheckpoint, "sizes"),
    "a type that isn't known yet": (one(tensor("x", (32,), 99, 0)), UnknownFamily, "number 99"),
    "rows that no block divides": (one(tensor("x", (33,), 8, 0)), CorruptCheckpoint, "multiple of 32"),
    "an offset between": (one(tensor("x", (8,), 0, 4)), CorruptCheckpoint, "byte 4"),
    "an original shape of other numbers": (
        one(tensor("x", (32,), 0, 0), entries=1, before=SHAPE + struct.pack("<ii", 5, 5)),
        CorruptCheckpoint, "32 numbers",
    ),
    "an original shape below zero": (
        one(tensor("x", (32,), 0, 0), entries=1, before=SHAPE + struct.pack("<ii", -8, -4)), CorruptCheckpoint, "shape",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_a_typed_error_with_the_files_name(name: str, tmp_path: Path) -> None:
    data, kind, told = DAMAGE[name]
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    with pytest.raises(kind, match=told) as caught:
        identify(path)
    assert str(caught.value).startswith(str(path))


def test_two_tensors_in_one_place_or_of_one_name_are_damage(tmp_path: Path) -> None:
    for name, offset, told in (("y", 0, "from 32 on"), ("x", 32, "twice")):
        head = header_of(struct.pack("<IQQ", 3, 2, 0), tensor("x", (8,), 0, 0), tensor(name, (8,), 0, offset))
        (tmp_path / "a.gguf").write_bytes(head + bytes(-len(head) % 32) + bytes(64))
        with pytest.raises(CorruptCheckpoint, match=told):
            open_header(tmp_path / "a.gguf")


def test_a_file_cut_anywhere_is_told_from_a_whole_one(whole: Callable[[str], Written], tmp_path: Path) -> None:
    data = whole("sd1").gguf.read_bytes()
    (tmp_path / "model.gguf").write_bytes(data)
    for length in (5, 24, 100, 5_000, 20_000, len(data) // 2, len(data) - 40):
        (tmp_path / "cut.gguf").write_bytes(data[:length])
        with pytest.raises(CorruptCheckpoint):
            open_header(tmp_path / "cut.gguf")
    source = open_source(tmp_path / "model.gguf")
    shutil.copy(tmp_path / "cut.gguf", tmp_path / "model.gguf")  # cut while it is open
    with pytest.raises(CorruptCheckpoint, match="cut off"):
        source.read(max(source.header.tensors, key=lambda name: source.header.tensors[name].end))


def test_a_scale_that_is_no_number_is_found_at_loading(whole: Callable[[str], Written], tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    shutil.copy(whole("sd1").gguf, path)
    header = open_header(path)
    name = next(name for name in header.stored if name.startswith(UNET))
    data = bytearray(path.read_bytes())
    at = header.data_start + header.tensors[name].start
    data[at : at + 2] = np.array([np.nan], "<f2").tobytes()
    path.write_bytes(data)
    with pytest.raises(CorruptCheckpoint, match="NaN in tensor"):
        load_bundle(path)
