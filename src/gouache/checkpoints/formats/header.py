"""What a weight file says about itself, read without its tensors (and without torch).

A safetensors file is 8 bytes (the header's length, little-endian), a JSON header, then the tensors' bytes:
``{"__metadata__": {str: str}, name: {"dtype": ..., "shape": [...], "data_offsets": [start, end]}, ...}``.
Every claim of the header is checked against the file before anything is believed.

A weight file is opened by what it holds, never by its suffix: `open_header` and `open_source`.

Matrices stored in int8, as headers tell of them; no tensor is read, and torch is not needed.

A matrix W [rows, ...] is stored as whole numbers Q from -127 to 127 under its own name and one scale a row under
the name and `SCALE`, so that W = Q * scale: the symmetric scheme of Jacob et al. 2018 (arXiv:1712.05877, equation 1,
with zero point 0). Half the bytes of float16, for an error of at most 1/254 of each row's largest number.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from gouache.errors import CorruptCheckpoint, GouacheError, IncompatibleCheckpoint, ModelNotFound, UnknownFamily
from gouache.files import existing

if TYPE_CHECKING:
    from gouache.checkpoints.formats.safetensors import WeightSource

DTYPE_BYTES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E5M2": 1,
    "F8_E4M3": 1,
    "U16": 2,
    "I16": 2,
    "F16": 2,
    "BF16": 2,
    "U32": 4,
    "I32": 4,
    "F32": 4,
    "U64": 8,
    "I64": 8,
    "F64": 8,
}
"""Bytes of one element, by the name that safetensors gives the type."""

UNREAD_TYPES = ("F4", "F6_E2M3", "F6_E3M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "C64")
"""Types of safetensors that no network is computed in; quantizations with scales a block write them."""
MAX_HEADER_BYTES = 64 << 20
MAX_TENSORS = 250_000
MAX_JSON_VALUES = 3_000_000
MAX_RANK = 16
DOWNLOAD_AGAIN = "Download or copy the file again and compare its sha256 with the publisher's."


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor as its file describes it.

    Attributes:
        dtype: a key of `DTYPE_BYTES`.
        shape: its sizes; ``()`` is a scalar.
        start, end: where its bytes lie, counted from the first byte after the header (0 where that has no meaning).
    """

    dtype: str
    shape: tuple[int, ...]
    start: int = 0
    end: int = 0

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """How many bytes its numbers need."""
        return self.elements * DTYPE_BYTES[self.dtype]


@dataclass(frozen=True, slots=True)
class Header:
    """Names and shapes of every tensor of a file, and its metadata.

    Attributes:
        path: the file.
        tensors: every tensor by name, in the order in which their bytes lie.
        metadata: the file's own strings.
        data_start: offset of the first tensor's bytes in the file.
        files: the shards, where the tensors lie in several files; `path` is their folder then.
        stored: tensors that are stored in another type than `tensors` says, which is the one they are read in, and
            that type: "I8" with a scale a row, "F8_E4M3" and "F8_E5M2" with a scale, and ggml's.
    """

    path: Path
    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str] = field(default_factory=dict)
    data_start: int = 0
    files: tuple[Path, ...] = ()
    stored: Mapping[str, str] = field(default_factory=dict)


def read_header(path: str | Path) -> Header:
    """Read and check a safetensors header; no tensor is touched.

    Raises:
        ModelNotFound: there is no such file.
        CorruptCheckpoint: the header is over its limits, is not what the format asks for, or disagrees with the file.
    """
    path = Path(path)
    if existing(path) is None or not path.is_file():
        raise ModelNotFound(str(path), given="no file there", expected="a .safetensors file", cure="Check the path.")
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 10 or length < 2 or length > size - 8:
            raise CorruptCheckpoint(
                str(path),
                given=f"a header of {length} bytes in a file of {size}",
                expected="a safetensors file, whose header fits inside it",
                cure=DOWNLOAD_AGAIN,
            )
        if length > MAX_HEADER_BYTES:
            raise CorruptCheckpoint(
                str(path), given=f"a header of {length} bytes", expected=f"at most {MAX_HEADER_BYTES}"
            )
        raw = file.read(length)
    return parse_header(raw, path=path, data_bytes=size - 8 - length)


def parse_header(raw: bytes, *, path: Path, data_bytes: int) -> Header:
    """Parse a header's JSON and check it against the number of bytes that follow it. Errors as in `read_header`."""
    entries = _parse_json(raw, path)
    metadata = _checked_metadata(entries.pop("__metadata__", {}), path)
    tensors = {name: _checked_entry(name, entry, path) for name, entry in entries.items()}
    ordered = dict(sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)))
    _check_offsets(ordered, path, data_bytes)
    return Header(path, ordered, metadata, data_start=8 + len(raw))


def _bad(path: Path, given: str, expected: str) -> CorruptCheckpoint:
    return CorruptCheckpoint(str(path), given=given, expected=expected, cure=DOWNLOAD_AGAIN)


def _parse_json(raw: bytes, path: Path) -> dict[str, object]:
    # Counting first bounds the memory that parsing can take: a header may be a bomb.
    if raw.count(b"{") > MAX_TENSORS or raw.count(b",") + raw.count(b"[") > MAX_JSON_VALUES:
        raise _bad(path, "a header with too many values", f"at most {MAX_TENSORS} tensors")
    try:
        entries = json.loads(raw.decode("utf-8"), object_pairs_hook=lambda pairs: _no_duplicates(pairs, path))
    except (ValueError, RecursionError) as error:
        raise _bad(path, f"a header that is not JSON ({str(error)[:120]})", "a JSON object") from error
    if not isinstance(entries, dict):
        raise _bad(path, f"a header that is a JSON {type(entries).__name__}", "a JSON object")
    return entries


def _no_duplicates(pairs: list[tuple[str, object]], path: Path) -> dict[str, object]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise _bad(path, "a header that names something twice", "every name once")
    return entries


def _checked_metadata(value: object, path: Path) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise _bad(path, "metadata with values that are not strings", "an object of strings")
    return value


def _checked_entry(name: str, entry: object, path: Path) -> TensorInfo:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise _bad(path, f"entry {name[:200]!r}", "an object of dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if dtype in UNREAD_TYPES:
        raise IncompatibleCheckpoint(
            str(path),
            given=f"tensor {name[:200]!r} of type {dtype}",
            expected=f"one of {', '.join(DTYPE_BYTES)}",
            cure="Get the model in float16, in fp8 or as GGUF: gouache reads those.",
        )
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise _bad(path, f"tensor {name[:200]!r} of type {str(dtype)[:40]!r}", f"one of {', '.join(DTYPE_BYTES)}")
    if not _are_counts(shape) or len(shape) > MAX_RANK:
        raise _bad(path, f"tensor {name[:200]!r} of shape {str(shape)[:80]}", "a list of sizes >= 0")
    if not _are_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _bad(path, f"tensor {name[:200]!r} at {str(offsets)[:80]}", "a start and an end")
    info = TensorInfo(dtype, tuple(shape), offsets[0], offsets[1])
    if info.bytes != info.end - info.start:
        raise _bad(
            path,
            f"tensor {name[:200]!r} of {info.end - info.start} bytes",
            f"{dtype} {list(info.shape)} to take {str(info.bytes)[:40]}",
        )
    return info


def _are_counts(values: object) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 1 << 62 for value in values)


def _check_offsets(tensors: Mapping[str, TensorInfo], path: Path, data_bytes: int) -> None:
    position = 0
    for name, info in tensors.items():
        if info.start != position:
            raise _bad(
                path, f"tensor {name[:200]!r} at byte {info.start}", f"it at {position}, without holes or overlap"
            )
        position = info.end
    if position != data_bytes:
        raise _bad(
            path, f"{data_bytes} bytes of tensors", f"{position}, as the header says; the file is cut off or padded"
        )


SHA256 = "gouache.sha256"
"""Key of the metadata under which files in the own format record the sha256 of their tensors."""
SCALE = "_scale"
"""Behind a matrix's name, as the `weight_scale` of other tools' int8 files."""
SCALE_TYPES = ("F16", "BF16", "F32")
SHORTEST_ROW = 32
"""Numbers in a row below which the scales would cost too much."""


def is_matrix(name: str, info: TensorInfo) -> bool:
    """Whether a tensor is worth storing in int8: weights with long rows, and the captions that a prior remembers.

    Biases and norms stay as they are.
    """
    long = len(info.shape) >= 2 and info.elements >= SHORTEST_ROW * info.shape[0]
    return name.endswith(("weight", "recall.captions")) and info.dtype in SCALE_TYPES and long


def dequantised_header(header: Header, parts: Sequence[str]) -> Header:
    """The header as if the matrices of these parts were stored in the type of their scales.

    Args:
        header: of the file.
        parts: what the int8 tensors' names start with: ``""`` for a file of one part.

    Raises:
        CorruptCheckpoint: a part has no int8 matrix, or a scale is missing or of a wrong shape or type.
    """
    found = {
        name: _checked(header, name)
        for name, info in header.tensors.items()
        if info.dtype == "I8" and name.startswith(tuple(parts))
    }
    for part in parts:
        if not any(name.startswith(part) for name in found):
            raise _damaged(header.path, f"no int8 matrix in {part or 'the part'}", "some, as the model's card says")
    tensors = {
        name: found.get(name, info) for name, info in header.tensors.items() if name.removesuffix(SCALE) not in found
    }
    tensors |= found
    order = [name for name in header.tensors if name in tensors]
    return replace(header, tensors={name: tensors[name] for name in order}, stored=dict.fromkeys(found, "I8"))


def _checked(header: Header, name: str) -> TensorInfo:
    info, scale = header.tensors[name], header.tensors.get(name + SCALE)
    if scale is None:
        raise _damaged(header.path, f"int8 tensor {name!r} without a scale", f"a tensor {name + SCALE!r}")
    if not info.shape or scale.shape != (info.shape[0], 1) or scale.dtype not in SCALE_TYPES:
        raise _damaged(
            header.path,
            f"scales {scale.dtype} {list(scale.shape)} of the int8 tensor {name!r} {list(info.shape)}",
            f"one of {', '.join(SCALE_TYPES)} a row",
        )
    return replace(info, dtype=scale.dtype)


def _damaged(path: Path, given: str, expected: str) -> CorruptCheckpoint:
    return CorruptCheckpoint(str(path), given=given, expected=expected, cure=DOWNLOAD_AGAIN)


def few(names: Sequence[str], most: int = 6) -> str:
    """The first names of a list, for a message."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


PNG = b"\x89PNG\r\n\x1a\n"
GGUF = b"GGUF"
ZIP = b"PK\x03\x04"
PICKLES = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
"""How pickles of each protocol start; `torch.save` before 1.6 wrote several into a row."""


def open_header(path: Path) -> Header:
    """Names and shapes of a weight file of any kind; no tensor is read, and torch is not needed.

    Raises:
        ModelNotFound: there is no such file.
        CorruptCheckpoint: it is damaged, or no weight file at all.
        UnsafeCheckpoint: it would have to be unpickled.
        UnknownFamily: a format that gouache doesn't read.
        IncompatibleCheckpoint: tensors of a type, or with scales, that gouache doesn't read.
    """
    from gouache.checkpoints.formats.scaled import unscaled_header

    kind = file_format(path)
    return unscaled_header(read_header(path) if kind == "safetensors" else _open_as(path, kind).header)


def open_source(path: Path) -> WeightSource:
    """Open a weight file for reading tensors; errors as in `open_header`."""
    from gouache.checkpoints.formats.scaled import ScaledSource, unscaled_header

    source = _open_as(path, file_format(path))
    header = unscaled_header(source.header)
    return source if header is source.header else ScaledSource(source, header)


FileFormat = Literal["zip", "pickle", "safetensors", "png", "gguf"]


def _open_as(path: Path, kind: FileFormat) -> WeightSource:
    if kind == "safetensors":
        from gouache.checkpoints.formats.safetensors import SafetensorsFile

        return SafetensorsFile(path)
    if kind == "gguf":
        from gouache.checkpoints.formats.gguf import GgufFile

        return GgufFile(path)
    if kind == "zip":
        from gouache.checkpoints.formats.torch_zip import TensorZip

        return TensorZip(path)
    if kind == "png":
        from gouache.checkpoints.formats.png_embedding import PngEmbedding

        return PngEmbedding(path)
    from gouache.checkpoints.formats.legacy import TensorPickles

    return TensorPickles(path)


def file_format(path: Path) -> FileFormat:
    """What a file starts as.

    Raises:
        ModelNotFound: there is no such file.
        CorruptCheckpoint, UnknownFamily: a format that isn't read, which is named.
    """
    if existing(path) is None or not path.is_file():
        raise ModelNotFound(str(path), given="no file there", expected="a weight file", cure="Check the path.")
    with path.open("rb") as file:
        start = file.read(512)
    if start[8:9] == b"{":
        # The first 8 bytes of safetensors are a number, and a number may look like any other format's first bytes.
        return "safetensors"
    error = _other_format(start, path)
    if error is not None:
        raise error
    if start.startswith(GGUF):
        return "gguf"
    if start.startswith(ZIP):
        return "zip"
    if start.startswith(PNG):
        return "png"
    return "pickle" if start.startswith(PICKLES) else "safetensors"


def _other_format(start: bytes, path: Path) -> GouacheError | None:
    where, expected = str(path), "a .safetensors, .gguf or .ckpt file"
    if start.startswith(b"version https://git-lfs"):
        return CorruptCheckpoint(
            where, given="a Git LFS pointer", expected=f"{expected} itself", cure="Run `git lfs pull` in its folder."
        )
    if start.lstrip()[:14].lower().startswith((b"<!doctype html", b"<html", b'{"error"')):
        return CorruptCheckpoint(
            where,
            given="a web page or an error message",
            expected=expected,
            cure="The download was answered with a page; log in or give a token, and download again.",
        )
    if start[257:262] == b"ustar":
        return UnknownFamily(
            where,
            given="a tar archive, as torch wrote before 0.1.10, or a packed folder",
            expected=expected,
            cure="Unpack it; if torch wrote it, load it and save it again with a newer torch.",
        )
    if not start:
        return CorruptCheckpoint(where, given="an empty file", expected=expected, cure=DOWNLOAD_AGAIN)
    return None
