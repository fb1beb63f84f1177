"""The own file format: safetensors, written atomically, with who wrote it and the sha256 of its data in its metadata.

Any safetensors reader reads these files. The keys that gouache adds to the metadata start with ``gouache.``:
``gouache.format`` (this format's version), ``gouache.producer``, ``gouache.torch`` and ``gouache.sha256`` (of
everything after the header, so that the tensors can be checked, and the same weights have the same sum
whatever the metadata says).

The `safetensors` package writes and reads the same format and is what the tests compare with. Its `safe_open` maps a
tensor wherever it lies, while ours must begin at a multiple of `ALIGNMENT`; and every page that it has shown counts as
memory, while ours are read into memory that is given back where they are only converted.
"""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import BinaryIO, Protocol

import torch
from torch import Tensor

from gouache.checkpoints.formats.header import DOWNLOAD_AGAIN, SCALE, SHA256, Header, TensorInfo, read_header
from gouache.errors import CorruptCheckpoint, InvalidInput
from gouache.files import atomic_write

__all__ = [
    "ALIGNMENT",
    "FORMAT_VERSION",
    "SHA256",
    "SafetensorsFile",
    "WeightSource",
    "dtype_name",
    "laid_out",
    "load_tensors",
    "read_header",
    "save_tensors",
    "verify_sha256",
    "write_json",
    "write_tensors",
]


FORMAT_VERSION = "1"
OWN_PREFIX = "gouache."
ALIGNMENT = 64
"""Where in memory a tensor begins is a multiple of this, as torch's own do: matrix libraries add in another order
elsewhere, so that the same weights at another place in a file would paint a picture that differs in rounding."""

TORCH_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn,
    "U16": torch.uint16,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "F32": torch.float32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F64": torch.float64,
}
DTYPE_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}


class WeightSource(Protocol):
    """A file, or several, from which tensors are read one by one."""

    @property
    def header(self) -> Header:
        """Every tensor's name, type and shape, and the metadata."""
        ...

    def read(self, name: str, *, mapped: bool = True) -> Tensor:
        """One tensor on the CPU, as the file has it; `mapped` allows a private view of the file's own pages."""
        ...


def dtype_name(dtype: torch.dtype) -> str:
    """What safetensors calls a torch dtype, for example ``"F16"``."""
    if dtype not in DTYPE_NAMES:
        raise InvalidInput("dtype", given=str(dtype), expected=f"one of {', '.join(map(str, DTYPE_NAMES))}")
    return DTYPE_NAMES[dtype]


class SafetensorsFile:
    """A safetensors file, open for reading; a `WeightSource`.

    A mapped tensor shares the file's pages until it is written to (copy on write), so that loading costs no copy. A
    tensor that doesn't lie at a multiple of `ALIGNMENT` is read into memory of its own instead.
    The file must not be cut short while such a tensor lives; replacing it by another file is safe.
    """

    def __init__(self, path: str | Path) -> None:
        self.header = read_header(path)
        self._map: mmap.mmap | None = None

    def read(self, name: str, *, mapped: bool = True) -> Tensor:
        """One tensor as the file has it; see `WeightSource.read`."""
        info = self.header.tensors[name]
        dtype = TORCH_DTYPES[info.dtype]
        offset = self.header.data_start + info.start
        if not info.elements:
            return torch.empty(info.shape, dtype=dtype)
        if mapped and offset % ALIGNMENT == 0:
            return torch.frombuffer(self._pages(), dtype=dtype, count=info.elements, offset=offset).view(info.shape)
        return self._copied(info, dtype, offset)

    def _pages(self) -> mmap.mmap:
        if self._map is None:
            with self.header.path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        return self._map

    def _copied(self, info: TensorInfo, dtype: torch.dtype, offset: int) -> Tensor:
        with self.header.path.open("rb") as file:
            file.seek(offset)
            return read_tensor(file, info.shape, dtype, self.header.path)


def read_tensor(file: BinaryIO, shape: tuple[int, ...], dtype: torch.dtype, path: Path) -> Tensor:
    """Read a contiguous tensor from where `file` stands, straight into its own memory."""
    tensor = torch.empty(shape, dtype=dtype)
    wanted = tensor.numel() * dtype.itemsize
    got = file.readinto(tensor.view(-1).view(torch.uint8).numpy()) if wanted else 0  # type: ignore[attr-defined]
    if got != wanted:
        raise CorruptCheckpoint(
            str(path), given=f"{got} bytes of a tensor", expected=f"{wanted}; the file is cut off", cure=DOWNLOAD_AGAIN
        )
    return tensor


def load_tensors(
    path: str | Path, *, device: str | torch.device = "cpu", dtype: torch.dtype | None = None, verify: bool = True
) -> dict[str, Tensor]:
    """Read every tensor of a safetensors file into memory of its own.

    Args:
        path: the file.
        device: where the tensors go.
        dtype: what floating-point tensors become; other tensors keep their type. None keeps all.
        verify: compare the data with the sha256 that the metadata records (files of other makers record none).

    Raises:
        ModelNotFound: there is no such file.
        CorruptCheckpoint: the file is damaged, or its data has another sha256 than it records.
    """
    source = SafetensorsFile(path)
    if verify:
        verify_sha256(source.header)
    tensors = {}
    for name in source.header.tensors:
        tensor = source.read(name, mapped=False)
        tensors[name] = tensor.to(device, dtype if tensor.is_floating_point() else None)
    return tensors


def data_sha256(header: Header) -> str:
    """The sha256 of everything after the header, in hexadecimal."""
    with header.path.open("rb", buffering=0) as file:
        file.seek(header.data_start)
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify_sha256(header: Header) -> None:
    """Compare a file's data with the sha256 it records; a file that records none passes.

    Raises:
        CorruptCheckpoint: they differ.
    """
    recorded = header.metadata.get(SHA256)
    if recorded is None:
        return
    found = data_sha256(header)
    if found != recorded:
        raise CorruptCheckpoint(
            str(header.path),
            given=f"tensors with sha256 {found[:16]}...",
            expected=f"{recorded[:16]}..., as the file records; its data was changed after it was written",
            cure="Copy the file again from where it was written, or go back to an earlier one.",
        )


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> str:
    """Write a safetensors file atomically: after a crash the old file is there, or the new one, never a half.

    Args:
        path: where; its folder must exist.
        tensors: what; any device and strides.
        metadata: the caller's own strings. Keys that start with ``gouache.`` are set here.

    Returns:
        the sha256 of the data, as the metadata records it.

    Raises:
        InvalidInput: a metadata key is one of ours, or a dtype has no name in the format.
    """
    infos = {name: TensorInfo(dtype_name(tensor.dtype), tuple(tensor.shape)) for name, tensor in tensors.items()}
    return write_tensors(path, infos, lambda name: tensors[name], metadata)


def write_tensors(
    path: str | Path,
    infos: Mapping[str, TensorInfo],
    tensor_of: Callable[[str], Tensor],
    metadata: Mapping[str, str] | None = None,
) -> str:
    """As `save_tensors`, asking for one tensor at a time, so that a file larger than memory can be written."""
    header, order = laid_out(infos, _signed_metadata(metadata or {}))
    digest = hashlib.sha256()
    with atomic_write(Path(path)) as file:
        file.write(header)
        for name in order:
            _write_tensor(file, digest, tensor_of(name), name, infos[name])
        # The sum is known last; its place in the header has a fixed width.
        file.seek(header.index(UNKNOWN_SHA256))
        file.write(digest.hexdigest().encode())
    return digest.hexdigest()


UNKNOWN_SHA256 = b"0" * 64


class _Digest(Protocol):
    def update(self, data: memoryview, /) -> None: ...


def _write_tensor(file: BinaryIO, digest: _Digest, tensor: Tensor, name: str, info: TensorInfo) -> None:
    if tuple(tensor.shape) != info.shape or dtype_name(tensor.dtype) != info.dtype:
        raise InvalidInput(
            f"tensor {name!r}",
            given=f"{tensor.dtype} {list(tensor.shape)}",
            expected=f"{info.dtype} {list(info.shape)}, as announced",
        )
    if not tensor.numel():
        return
    flat = tensor.detach().to("cpu").contiguous().view(-1).view(torch.uint8).numpy()
    file.write(flat.data)
    digest.update(flat.data)


def _signed_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    own = {
        "format": "pt",  # readers of other makers ask for it
        f"{OWN_PREFIX}format": FORMAT_VERSION,
        f"{OWN_PREFIX}producer": f"gouache {version('gouache')}",
        f"{OWN_PREFIX}torch": str(torch.__version__),
        SHA256: UNKNOWN_SHA256.decode(),
    }
    for key, value in metadata.items():
        if key in own or not isinstance(value, str) or UNKNOWN_SHA256.decode() in value:
            raise InvalidInput(
                f"metadata {key!r}", given=repr(value)[:80], expected=f"a string under a key not in {', '.join(own)}"
            )
    # The sum's key comes first, so that its place is the first run of 64 zeros.
    return {SHA256: own.pop(SHA256), **own, **metadata}


def laid_out(
    infos: Mapping[str, TensorInfo], metadata: Mapping[str, str], *, alignment: int = ALIGNMENT
) -> tuple[bytes, list[str]]:
    """How a file begins, up to its first tensor, and the order of its tensors.

    Args:
        infos: type and shape of each tensor.
        metadata: as it is written.
        alignment: of the place where the first tensor begins; 8 in files of the safetensors library.

    Raises:
        InvalidInput: a tensor has the metadata's name.
    """
    # Widest types first, as the safetensors library does: then every tensor lies at a multiple of its element size.
    order = sorted(infos, key=lambda name: (-TORCH_DTYPES[infos[name].dtype].itemsize, name))
    entries: dict[str, object] = {"__metadata__": dict(metadata)}
    position = 0
    for name in order:
        if name == "__metadata__":
            raise InvalidInput("tensors", given=repr(name), expected="names other than the metadata's own")
        info = infos[name]
        entries[name] = {
            "dtype": info.dtype,
            "shape": list(info.shape),
            "data_offsets": [position, position + info.bytes],
        }
        position += info.bytes
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-(8 + len(text)) % alignment)
    return len(text).to_bytes(8, "little") + text, order


def write_json(path: Path, values: Mapping[str, object]) -> None:
    """Write a JSON object atomically, indented, for people to read."""
    with atomic_write(path) as file:
        file.write(json.dumps(values, indent=2, ensure_ascii=False).encode("utf-8") + b"\n")


LARGEST = 127


def quantise(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers and scales of a matrix.

    Args:
        matrix: floating point. [R, ...]

    Returns:
        int8 from -127 to 127 [R, ...], and scales in the matrix's type [R, 1]. The scale is rounded first and upwards,
        so that no number is cut off and each comes back within half a scale.

    Raises:
        InvalidInput: it holds NaN or infinity, or is no matrix of a known floating-point type.
    """
    if not matrix.is_floating_point() or matrix.ndim < 2 or matrix.dtype not in DTYPE_NAMES:
        given = f"{matrix.dtype} {list(matrix.shape)}"
        raise InvalidInput("matrix", given=given, expected="floating point with two or more axes")
    rows = matrix.detach().float().flatten(1)
    peak = rows.abs().amax(1, keepdim=True)
    if not bool(torch.isfinite(peak).all()):
        raise InvalidInput("matrix", given="NaN or infinity", expected="finite numbers")
    kind = torch.finfo(matrix.dtype)
    scale = (peak * ((1 + kind.eps) / LARGEST)).clamp(min=kind.tiny).to(matrix.dtype)
    whole = (rows / scale.float()).round().to(torch.int8)
    return whole.view(matrix.shape), scale


def dequantise(whole: Tensor, scale: Tensor) -> Tensor:
    """whole [R, ...] int8 times scale [R, 1], in the scale's type."""
    # In float32 the product is exact and rounded once, as in the scale's own type, at a quarter of the time.
    return whole.flatten(1).float().mul_(scale.float()).to(scale.dtype).view(whole.shape)


class Int8Source:
    """A weight file with int8 matrices, read as if they were floating point; a `WeightSource`.

    Args:
        source: the file as it is.
        header: what `dequantised_header` made of the file's.
    """

    def __init__(self, source: WeightSource, header: Header) -> None:
        self.header, self._source = header, source

    def read(self, name: str, *, mapped: bool = True) -> Tensor:
        """One tensor; see `WeightSource.read`.

        Raises:
            CorruptCheckpoint: a scale that is not above zero and finite, or a number outside -127 to 127.
        """
        if name not in self.header.stored:
            return self._source.read(name, mapped=mapped)
        whole, scale = self._source.read(name, mapped=False), self._source.read(name + SCALE, mapped=False)
        if not bool((torch.isfinite(scale) & (scale > 0)).all()) or (whole.numel() and int(whole.amin()) < -LARGEST):
            raise CorruptCheckpoint(
                str(self.header.path),
                given=f"int8 tensor {name!r} with a scale or a number out of range",
                expected="scales above 0 and numbers from -127 to 127",
                cure=DOWNLOAD_AGAIN,
            )
        return dequantise(whole, scale)
