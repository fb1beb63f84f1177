"""Reads GGUF files (ggml's format, versions 2 and 3): what they say about themselves, and their tensors, dequantized.

``GGUF``, version, number of tensors and of entries; the entries ``key, type, value``; for each tensor its name, sizes
(the fastest axis first), type and offset; then the tensors' bytes, each at a multiple of ``general.alignment``. All
numbers have the low byte first. Source: ggml's specification, docs/gguf.md.

Two programs write models of Stable Diffusion so. ComfyUI-GGUF: one denoiser, under the names of its single file;
``general.architecture`` names the family, and matrices whose rows no block divides are stored as [N / 256, 256] with
their sizes under ``comfy.gguf.orig_shape.NAME``. stable-diffusion.cpp: whole models or parts, without an architecture,
and with sizes of 1 at the slow end left out. llama.cpp's T5 encoders, which Stable Diffusion 3 can read prompts with,
get transformers' names.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from gouache.checkpoints.formats.header import (
    DOWNLOAD_AGAIN,
    GGUF,
    MAX_HEADER_BYTES,
    MAX_JSON_VALUES,
    MAX_RANK,
    MAX_TENSORS,
    Header,
    TensorInfo,
)
from gouache.errors import CorruptCheckpoint, IncompatibleCheckpoint, UnknownFamily

if TYPE_CHECKING:
    from torch import Tensor

VERSIONS = (2, 3)
ARCHITECTURE = "general.architecture"
ALIGNMENT_KEY = "general.alignment"
ORIGINAL_SHAPE = "comfy.gguf.orig_shape."
MAX_NAME = 4096
MAX_DEPTH = 4

PLAIN = {0: "F32", 1: "F16", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 30: "BF16"}
"""Types of ggml that are plain numbers, by the names that safetensors gives them."""


@dataclass(frozen=True, slots=True)
class BlockType:
    """A type of ggml that stores numbers in blocks.

    Attributes:
        name: ggml's.
        numbers: in a block.
        bytes: of a block.
    """

    name: str
    numbers: int
    bytes: int


BLOCK_TYPES = {
    2: BlockType("Q4_0", 32, 18),
    3: BlockType("Q4_1", 32, 20),
    6: BlockType("Q5_0", 32, 22),
    7: BlockType("Q5_1", 32, 24),
    8: BlockType("Q8_0", 32, 34),
    9: BlockType("Q8_1", 32, 40),
    10: BlockType("Q2_K", 256, 84),
    11: BlockType("Q3_K", 256, 110),
    12: BlockType("Q4_K", 256, 144),
    13: BlockType("Q5_K", 256, 176),
    14: BlockType("Q6_K", 256, 210),
    15: BlockType("Q8_K", 256, 292),
    16: BlockType("IQ2_XXS", 256, 66),
    17: BlockType("IQ2_XS", 256, 74),
    18: BlockType("IQ3_XXS", 256, 98),
    19: BlockType("IQ1_S", 256, 50),
    20: BlockType("IQ4_NL", 32, 18),
    21: BlockType("IQ3_S", 256, 110),
    22: BlockType("IQ2_S", 256, 82),
    23: BlockType("IQ4_XS", 256, 136),
    29: BlockType("IQ1_M", 256, 56),
    34: BlockType("TQ1_0", 256, 54),
    35: BlockType("TQ2_0", 256, 66),
    39: BlockType("MXFP4", 32, 17),
    40: BlockType("NVFP4", 64, 36),
    41: BlockType("Q1_0", 128, 18),
}
"""By ggml's number. Those that can be dequantized are the keys of `gguf_blocks.DEQUANTIZERS`."""
_BY_NAME = {kind.name: kind for kind in BLOCK_TYPES.values()}

T5_ARCHITECTURES = ("t5", "t5encoder")
T5_NAMES = {
    "token_embd.": "shared.",
    "enc.output_norm.": "encoder.final_layer_norm.",
    "enc.blk.": "encoder.block.",
    ".attn_rel_b.": ".layer.0.SelfAttention.relative_attention_bias.",
    ".attn_norm.": ".layer.0.layer_norm.",
    ".attn_q.": ".layer.0.SelfAttention.q.",
    ".attn_k.": ".layer.0.SelfAttention.k.",
    ".attn_v.": ".layer.0.SelfAttention.v.",
    ".attn_o.": ".layer.0.SelfAttention.o.",
    ".ffn_norm.": ".layer.1.layer_norm.",
    ".ffn_gate.": ".layer.1.DenseReluDense.wi_0.",
    ".ffn_up.": ".layer.1.DenseReluDense.wi_1.",
    ".ffn_down.": ".layer.1.DenseReluDense.wo.",
}
"""What llama.cpp calls the layers of a T5 encoder -> what transformers does."""

_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Types of values in the header, as `struct` calls them."""
_INTEGERS = frozenset("BbHhIiQq")
_STRING, _ARRAY = 8, 9


class _HeaderReader:
    """Numbers and strings one after the other from a file's start; nothing behind `limit` is read."""

    def __init__(self, file: BinaryIO, path: Path, limit: int) -> None:
        self.file, self.path, self.limit = file, path, limit
        self.position = 0
        self.values = 0

    def take(self, count: int, what: str) -> bytes:
        """The next bytes."""
        if count > self.limit - self.position:
            raise bad(self.path, f"{what} of {count} bytes at byte {self.position}", "a header that ends in the file")
        self.position += count
        data = self.file.read(count)
        if len(data) != count:
            raise bad(self.path, f"the end of the file in {what}", "a whole header")
        return data

    def number(self, code: str, what: str) -> int | float:
        """One number of a type of `struct`."""
        self.values += 1
        if self.values > MAX_JSON_VALUES:
            raise bad(self.path, "a header with too many values", f"at most {MAX_JSON_VALUES}")
        return struct.unpack(f"<{code}", self.take(struct.calcsize(code), what))[0]  # type: ignore[no-any-return]

    def count(self, code: str, what: str) -> int:
        """One number that counts something."""
        return int(self.number(code, what))

    def text(self, what: str, most: int = MAX_HEADER_BYTES) -> str:
        """One string."""
        length = self.count("Q", what)
        if length > most:
            raise bad(self.path, f"{what} of {length} bytes", f"at most {most}")
        data = self.take(length, what)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise bad(self.path, f"{what} that is no UTF-8", "text") from error

    def value(self, kind: int, what: str, depth: int = 0) -> str | tuple[int, ...] | None:
        """A value as text; of arrays of whole numbers the numbers, if they are few; of others nothing."""
        if kind == _STRING:
            return self.text(what)
        if kind in _NUMBERS:
            return str(self.number(_NUMBERS[kind], what))
        if kind != _ARRAY or depth == MAX_DEPTH:
            raise bad(self.path, f"{what} of type {kind}", "a type of the format")
        inner, length = self.count("I", what), self.count("Q", what)
        code = _NUMBERS.get(inner, "")
        if code in _INTEGERS and length <= MAX_RANK:
            return tuple(self.count(code, what) for _ in range(length))
        if code:
            self.take(length * struct.calcsize(code), what)
            return None
        if length > MAX_JSON_VALUES:
            raise bad(self.path, f"{what} of {length} values", f"at most {MAX_JSON_VALUES}")
        for _ in range(length):
            self.value(inner, what, depth + 1)
        return None


def bad(path: Path, given: str, expected: str) -> CorruptCheckpoint:
    """The refusal of a damaged file."""
    return CorruptCheckpoint(str(path), given=f"a damaged GGUF file: {given}", expected=expected, cure=DOWNLOAD_AGAIN)


def read_gguf_header(path: Path) -> Header:
    """Names, shapes and types of every tensor, and the plain values of the metadata; no tensor is touched.

    Tensors in blocks are said to be F32, which they are read as; what they are stored in is `Header.stored`.

    Raises:
        CorruptCheckpoint: the header is over its limits, is not what the format asks for, or disagrees with the file.
        UnknownFamily: another version of the format, or numbers with the high byte first.
        IncompatibleCheckpoint: one file of several.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        reader = _HeaderReader(file, path, min(size, MAX_HEADER_BYTES))
        if reader.take(len(GGUF), "a header") != GGUF:
            raise bad(path, "another first word", "GGUF")
        _check_version(reader.count("I", "the version"), path)
        tensors = _counted(reader, "tensors")
        metadata, shapes = _metadata(reader, _counted(reader, "entries"))
        listed = [_tensor(reader, shapes) for _ in range(tensors)]
        if metadata.get(ARCHITECTURE) in T5_ARCHITECTURES:
            listed = [(_name_of_t5(name), info, kind) for name, info, kind in listed]
        start = _aligned(reader.position, _alignment(metadata, path))
    _check_places(listed, path, size - start, _alignment(metadata, path))
    found = {name: info for name, info, _ in listed}
    if len(found) != len(listed):
        raise bad(path, "a header that names a tensor twice", "every name once")
    stored = {name: kind for name, _, kind in listed if kind}
    return Header(path, found, metadata, data_start=start, stored=stored)


def _check_version(version: int, path: Path) -> None:
    if version in VERSIONS:
        return
    swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS
    given = "a GGUF file with the high byte first" if swapped else f"GGUF of version {version}"
    raise UnknownFamily(
        str(path),
        given=given,
        expected=f"version {' or '.join(map(str, VERSIONS))}, with the low byte first",
        cure="Convert the model again with today's tools, or get its .safetensors.",
    )


def _counted(reader: _HeaderReader, what: str) -> int:
    count = reader.count("Q", f"the number of {what}")
    if count > MAX_TENSORS:
        raise bad(reader.path, f"a header of {count} {what}", f"at most {MAX_TENSORS}")
    return count


def _metadata(reader: _HeaderReader, count: int) -> tuple[dict[str, str], dict[str, tuple[int, ...]]]:
    """The plain values of the metadata, and the original shapes of reshaped tensors."""
    metadata: dict[str, str] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for _ in range(count):
        key = reader.text("a key", MAX_NAME)
        value = reader.value(reader.count("I", f"the type of {key[:80]!r}"), f"the value of {key[:80]!r}")
        if isinstance(value, str):
            metadata[key] = value
        elif value is not None and key.startswith(ORIGINAL_SHAPE):
            shapes[key.removeprefix(ORIGINAL_SHAPE)] = value
    parts = metadata.get("split.count", "1")
    if parts not in ("0", "1"):
        raise IncompatibleCheckpoint(
            str(reader.path),
            given=f"one of {parts[:20]} files of a model",
            expected="all of it in one",
            cure="Put them together: llama-gguf-split --merge FIRST_FILE WHOLE_FILE.",
        )
    # gouache's own keys mean something in its own files only.
    return {key: text for key, text in metadata.items() if not key.startswith("gouache.")}, shapes


def _alignment(metadata: Mapping[str, str], path: Path) -> int:
    text = metadata.get(ALIGNMENT_KEY, "32")
    alignment = int(text) if text.isdecimal() and len(text) < 10 else 0
    if alignment < 8 or alignment % 8 or alignment > 1 << 20:
        raise bad(path, f"{ALIGNMENT_KEY} {text[:20]}", "a multiple of 8")
    return alignment


def _aligned(position: int, alignment: int) -> int:
    return -(-position // alignment) * alignment


def _tensor(reader: _HeaderReader, shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, TensorInfo, str]:
    """Name, place and shape of the next tensor, and its type if it isn't plain."""
    name = reader.text("a tensor's name", MAX_NAME)
    what = f"tensor {name[:200]!r}"
    rank = reader.count("I", what)
    if rank > MAX_RANK:
        raise bad(reader.path, f"{what} with {rank} axes", f"at most {MAX_RANK}")
    sizes = tuple(reader.count("Q", what) for _ in range(rank))
    number, start = reader.count("I", what), reader.count("Q", what)
    if any(size >= 1 << 40 for size in sizes) or math.prod(sizes) >= 1 << 50:
        raise bad(reader.path, f"{what} of sizes {str(list(sizes))[:80]}", "sizes that fit a file")
    shape = shapes.get(name, sizes[::-1])
    if name in shapes and (min(shape, default=1) < 1 or math.prod(shape) != math.prod(sizes)):
        raise bad(reader.path, f"{what} of original shape {list(shape)}", f"{math.prod(sizes)} numbers")
    if number in PLAIN:
        info = TensorInfo(PLAIN[number], shape, start)
        return name, TensorInfo(info.dtype, shape, start, start + info.bytes), ""
    if number not in BLOCK_TYPES:
        raise UnknownFamily(
            str(reader.path),
            given=f"{what} in a type of ggml with the number {number}",
            expected=f"one of {', '.join((*PLAIN.values(), *_BY_NAME))}",
            cure="Get the model in another quantization, or its .safetensors.",
        )
    kind = BLOCK_TYPES[number]
    if not sizes or sizes[0] % kind.numbers:
        raise bad(reader.path, f"{what} in {kind.name} with rows of {sizes[:1]}", f"a multiple of {kind.numbers}")
    return name, TensorInfo("F32", shape, start, start + math.prod(sizes) // kind.numbers * kind.bytes), kind.name


def _name_of_t5(name: str) -> str:
    for theirs, ours in T5_NAMES.items():
        name = name.replace(theirs, ours)
    return name


def _check_places(listed: list[tuple[str, TensorInfo, str]], path: Path, data_bytes: int, alignment: int) -> None:
    position = 0
    for name, info, _ in sorted(listed, key=lambda one: (one[1].start, one[1].end)):
        if info.start % alignment or info.start < position:
            raise bad(
                path, f"tensor {name[:200]!r} at byte {info.start}", f"a multiple of {alignment} from {position} on"
            )
        position = info.end
    if position > data_bytes:
        raise bad(path, f"{max(data_bytes, 0)} bytes of tensors", f"{position}; the file is cut off")


class GgufFile:
    """A GGUF file, open for reading; a `WeightSource`. Tensors in blocks are dequantized to float32."""

    def __init__(self, path: str | Path) -> None:
        self.header = read_gguf_header(Path(path))

    def read(self, name: str, *, mapped: bool = True) -> Tensor:  # noqa: ARG002 - tensors have memory of their own
        """One tensor on the CPU.

        Raises:
            CorruptCheckpoint: the file was cut off since it was opened.
            IncompatibleCheckpoint: it is stored in a type that gouache doesn't dequantize.
        """
        import torch

        from gouache.checkpoints.formats.gguf_blocks import dequantize
        from gouache.checkpoints.formats.safetensors import TORCH_DTYPES, read_tensor

        info, kind = self.header.tensors[name], self.header.stored.get(name)
        with self.header.path.open("rb") as file:
            file.seek(self.header.data_start + info.start)
            if kind is None:
                return read_tensor(file, info.shape, TORCH_DTYPES[info.dtype], self.header.path)
            check_readable(self.header, [name])
            out = torch.empty(info.shape)
            dequantize(file, _BY_NAME[kind], out.view(-1).numpy(), self.header.path)
        return out


def check_readable(header: Header, names: list[str]) -> None:
    """See that tensors are stored in types that can be dequantized.

    Raises:
        IncompatibleCheckpoint: one isn't; the types are named.
    """
    from gouache.checkpoints.formats.gguf_blocks import DEQUANTIZERS

    kinds = {header.stored[name] for name in names if name in header.stored}
    others = sorted(kind for kind in kinds if kind in _BY_NAME and kind not in DEQUANTIZERS)
    if others:
        raise IncompatibleCheckpoint(
            str(header.path),
            given=f"tensors in {', '.join(others)}",
            expected=f"types of ggml that gouache dequantizes: {', '.join(DEQUANTIZERS)}",
            cure="Get the model in one of these quantizations, or its .safetensors.",
        )
