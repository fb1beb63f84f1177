"""Reads `.ckpt`, `.pt` and `.bin` files (a zip with a pickle inside) without unpickling them.

`torch.save` writes a zip archive whose entries are not compressed: ``NAME/data.pkl`` describes the tensors, and
``NAME/data/KEY`` holds the numbers of each storage. The description goes through `torch_pickle`.
"""

from __future__ import annotations

import math
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from gouache.checkpoints.formats.header import DOWNLOAD_AGAIN, DTYPE_BYTES, MAX_TENSORS, Header, TensorInfo
from gouache.checkpoints.formats.pickle_leftovers import Array, Opaque
from gouache.checkpoints.formats.pickle_names import Storage, StoredTensor
from gouache.checkpoints.formats.torch_pickle import (
    MAX_NAME,
    MAX_PICKLE_BYTES,
    PickleValue,
    read_pickle,
)
from gouache.errors import CorruptCheckpoint

if TYPE_CHECKING:
    import torch

MAX_ENTRIES = 100_000
MAX_DIRECTORY_BYTES = 32 << 20
MAX_DEPTH = 8
MAX_METADATA = 100
LOCAL_HEADER_BYTES = 30


@dataclass(frozen=True, slots=True)
class _Entry:
    offset: int
    bytes: int
    crc: int


class TensorZip:
    """A torch file, open for reading; a `WeightSource`.

    Plain numbers and strings beside the tensors (`global_step`, an embedding's name) become the header's metadata.
    Each storage is checked against the zip's CRC-32 as it is read.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        with self.path.open("rb") as file:
            _check_directory(file, self.path)
            entries = _entries(file, self.path)
            root = _root(entries, self.path)
            if _text(file, entries.get(f"{root}byteorder"), self.path) not in ("", "little"):
                raise self._corrupt("numbers with the high byte first", "the low byte first")
            pickled = _bytes(file, entries[f"{root}data.pkl"], self.path)
        value = read_pickle(pickled, self.path)
        self._storages = {name.removeprefix(f"{root}data/"): entry for name, entry in entries.items()}
        self._tensors, metadata = flatten(value, self.path)
        for name, tensor in self._tensors.items():
            self._check_storage(name, tensor)
        tensors = {name: TensorInfo(tensor.dtype, tensor.shape) for name, tensor in self._tensors.items()}
        self.header = Header(self.path, tensors, metadata)
        self._last: tuple[str, torch.Tensor] | None = None

    def read(self, name: str, *, mapped: bool = True) -> torch.Tensor:  # noqa: ARG002 - the zip is never mapped
        """One tensor on the CPU, in memory of its own.

        Raises:
            CorruptCheckpoint: the numbers do not have the CRC-32 that the zip records.
        """
        import torch

        from gouache.checkpoints.formats.safetensors import TORCH_DTYPES

        tensor = self._tensors[name]
        numbers = self._storage_bytes(tensor.storage).view(TORCH_DTYPES[tensor.dtype])
        view = torch.as_strided(numbers, tensor.shape, tensor.stride, tensor.offset)
        alone = view.is_contiguous() and view.numel() == numbers.numel()
        return view if alone else view.clone(memory_format=torch.contiguous_format)

    def _storage_bytes(self, storage: Storage) -> torch.Tensor:
        """A storage's bytes; the last one is kept, since several tensors may be views of it."""
        import torch

        from gouache.checkpoints.formats.safetensors import read_tensor

        key = storage.key
        if storage.inline is not None:
            return torch.frombuffer(bytearray(storage.inline), dtype=torch.uint8)
        if self._last is None or self._last[0] != key:
            entry = self._storages[key]
            with self.path.open("rb") as file:
                file.seek(entry.offset)
                data = read_tensor(file, (entry.bytes,), torch.uint8, self.path)
            if zlib.crc32(data.numpy().data) != entry.crc:
                raise self._corrupt(f"storage {key} with another CRC-32 than recorded", "the bytes that were written")
            self._last = (key, data)
        return self._last[1]

    def _check_storage(self, name: str, tensor: StoredTensor) -> None:
        storage = tensor.storage
        if storage.inline is not None:
            return
        entry = self._storages.get(storage.key)
        wanted = storage.elements * (DTYPE_BYTES[storage.dtype] if storage.dtype else 1)
        if entry is None or entry.bytes != wanted:
            given = "no storage" if entry is None else f"a storage of {entry.bytes} bytes"
            raise self._corrupt(f"{given} for tensor {name[:200]!r}", f"{wanted} bytes under {storage.key[:40]!r}")

    def _corrupt(self, given: str, expected: str) -> CorruptCheckpoint:
        return CorruptCheckpoint(str(self.path), given=given, expected=expected, cure=DOWNLOAD_AGAIN)


def _bad_zip(path: Path, given: str, expected: str = "a torch file: an uncompressed zip") -> CorruptCheckpoint:
    return CorruptCheckpoint(str(path), given=given, expected=expected, cure=DOWNLOAD_AGAIN)


def _check_directory(file: BinaryIO, path: Path) -> None:
    """Bound the zip's directory before `zipfile` reads it into memory (APPNOTE.TXT sections 4.3.14 to 4.3.16)."""
    size = file.seek(0, 2)
    file.seek(max(0, size - (1 << 16) - 22))
    tail = file.read()
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) - at < 22:
        raise _bad_zip(path, "a zip without an end", "a whole file; this one is cut off")
    entries, length = struct.unpack("<HI", tail[at + 10 : at + 16])
    wide = tail.rfind(b"PK\x06\x06", 0, at)
    if wide >= 0 and at - wide >= 56:
        entries, length = struct.unpack("<QQ", tail[wide + 32 : wide + 48])
    if entries > MAX_ENTRIES or length > MAX_DIRECTORY_BYTES:
        raise _bad_zip(path, f"a zip of {entries} entries", f"at most {MAX_ENTRIES}")


def _entries(file: BinaryIO, path: Path) -> dict[str, _Entry]:
    """Where each entry's bytes lie. Errors for whatever `torch.save` doesn't write."""
    size = file.seek(0, 2)
    try:
        with zipfile.ZipFile(file) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, ValueError, struct.error, NotImplementedError, OSError) as error:
        raise _bad_zip(path, f"a damaged zip ({str(error)[:80]})") from error
    entries: dict[str, _Entry] = {}
    total = 0
    for info in infos:
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 or info.file_size != info.compress_size:
            raise _bad_zip(path, f"the entry {info.filename[:80]!r}, which is compressed or encrypted")
        if info.filename in entries:
            raise _bad_zip(path, f"the entry {info.filename[:80]!r} twice")
        total += info.file_size
        offset = _data_offset(file, info.header_offset, path)
        if offset + info.file_size > size or total > size:
            raise _bad_zip(path, f"the entry {info.filename[:80]!r}, which reaches past the file's end")
        entries[info.filename] = _Entry(offset, info.file_size, info.CRC)
    return entries


def _data_offset(file: BinaryIO, header_offset: int, path: Path) -> int:
    """The entry's own header says how long it is; torch pads it so that the numbers are aligned."""
    if header_offset < 0:
        raise _bad_zip(path, "an entry before the file's start")
    file.seek(header_offset)
    header = file.read(LOCAL_HEADER_BYTES)
    if len(header) < LOCAL_HEADER_BYTES or header[:4] != b"PK\x03\x04":
        raise _bad_zip(path, "an entry without a header")
    name, extra = struct.unpack("<HH", header[26:30])
    return header_offset + LOCAL_HEADER_BYTES + int(name) + int(extra)


def _root(entries: Mapping[str, _Entry], path: Path) -> str:
    roots = [name.removesuffix("data.pkl") for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(roots) != 1:
        raise _bad_zip(path, f"a zip with {len(roots)} files named data.pkl", "a torch file, which has one")
    if entries[f"{roots[0]}data.pkl"].bytes > MAX_PICKLE_BYTES:
        raise _bad_zip(path, "a pickle that is too large", f"at most {MAX_PICKLE_BYTES} bytes")
    return roots[0]


def _bytes(file: BinaryIO, entry: _Entry, path: Path) -> bytes:
    file.seek(entry.offset)
    data = file.read(entry.bytes)
    if zlib.crc32(data) != entry.crc:
        raise _bad_zip(path, "an entry with another CRC-32 than recorded", "the bytes that were written")
    return data


def _text(file: BinaryIO, entry: _Entry | None, path: Path) -> str:
    if entry is None or entry.bytes > 100:
        return ""
    return _bytes(file, entry, path).decode("ascii", "replace").strip()


WRAPPERS = ("state_dict", "model_state_dict", "module", "model")
"""Under which trainers put a network's tensors: Lightning, plain torch, DeepSpeed and others."""


def flatten(value: PickleValue, path: Path) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """Every tensor under a dotted name, and the plain values beside them.

    If there is a `state_dict` (or what other trainers call it), only its tensors count: what lies beside it is an
    optimiser's. A bare list of tensors, as the first trainer of LoRA saved it, is read as if each stood under its
    number.

    Raises:
        CorruptCheckpoint: it is no dictionary of tensors.
    """
    if isinstance(value, list) and value and all(isinstance(item, StoredTensor) for item in value):
        value = {str(number): item for number, item in enumerate(value)}
    if not isinstance(value, dict):
        kind = value.name if isinstance(value, Opaque) else type(value).__name__
        raise _bad_zip(path, f"a pickled {kind}", "a dictionary of tensors")
    plain = [(key, item) for key, item in value.items() if isinstance(item, str | int | float)]
    metadata = {str(key): str(item)[:1000] for key, item in plain[:MAX_METADATA]}
    for _ in range(MAX_DEPTH):
        inner = next((value[key] for key in WRAPPERS if isinstance(value.get(key), dict)), None)
        if not isinstance(inner, dict):
            break
        value = inner
    tensors: dict[str, StoredTensor] = {}
    _collect(value, "", tensors, seen=set(), depth=0)
    if not tensors or len(tensors) > MAX_TENSORS or max(map(len, tensors)) > MAX_NAME:
        raise _bad_zip(path, f"a file of {len(tensors)} tensors", "a dictionary of tensors with short names")
    return tensors, metadata


def _collect(
    value: dict[PickleValue, PickleValue], prefix: str, found: dict[str, StoredTensor], seen: set[int], depth: int
) -> None:
    # A dictionary may hold itself, or be reached on many ways: each is visited once.
    if id(value) in seen or depth > MAX_DEPTH:
        return
    seen.add(id(value))
    for key, item in value.items():
        name = f"{prefix}{key}"
        if isinstance(item, StoredTensor):
            found[name] = item
        elif isinstance(item, Array) and item.dtype is not None:
            storage = Storage(f"array {len(found)}", item.dtype, math.prod(item.shape), inline=item.data)
            found[name] = StoredTensor(storage, item.dtype, item.shape, item.stride, 0)
        elif isinstance(item, dict):
            _collect(item, f"{name}.", found, seen, depth + 1)
        elif isinstance(key, int) and isinstance(item, list):  # a hypernetwork: the networks of each width
            layers: dict[PickleValue, PickleValue] = dict(enumerate(item))
            _collect(layers, f"{name}.", found, seen, depth + 1)
