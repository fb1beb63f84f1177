"""Reads what `torch.save` wrote before 1.6, and bare pickles of numpy arrays, without unpickling them.

Such a file is a row of pickles: a magic number, a version, a description of the machine, the object, and the keys of
the storages in the order in which they follow. Behind them lies each storage: its number of elements (8 bytes,
little-endian) and its numbers. A bare pickle is the object alone; its numpy arrays lie inside it. The pickles go
through `torch_pickle`.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from gouache.checkpoints.formats.header import DOWNLOAD_AGAIN, DTYPE_BYTES, Header, TensorInfo
from gouache.checkpoints.formats.pickle_names import Storage, StoredTensor
from gouache.checkpoints.formats.torch_pickle import (
    MAX_PICKLE_BYTES,
    PickleValue,
    read_next_pickle,
)
from gouache.checkpoints.formats.torch_zip import flatten
from gouache.errors import CorruptCheckpoint

if TYPE_CHECKING:
    import torch

MAGIC = 0x1950A86A20F9469CFC6C
VERSION = 1001


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a storage's numbers begin in the file, and how many bytes they are."""

    offset: int
    bytes: int


class TensorPickles:
    """A torch file of before 1.6, or a bare pickle, open for reading; a `WeightSource`.

    Raises:
        UnsafeCheckpoint: it would have to be unpickled.
        CorruptCheckpoint: it is cut off, or no such file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        storages: dict[str, Storage] = {}
        with self.path.open("rb") as file:
            stream = io.BytesIO(file.read(MAX_PICKLE_BYTES))
            value = read_next_pickle(stream, self.path)
            magic = value == MAGIC
            if magic:
                self._check_machine(read_next_pickle(stream, self.path), read_next_pickle(stream, self.path))
                value = read_next_pickle(stream, self.path, storages)
                keys = read_next_pickle(stream, self.path)
        try:
            self._tensors, metadata = flatten(value, self.path)
        except CorruptCheckpoint as error:
            raise self._corrupt(f"a bare pickle without tensors ({error.given})", error.expected) from error
        self._places: dict[str, _Place] = {}
        if magic:
            with self.path.open("rb") as file:
                file.seek(stream.tell())
                self._places = self._laid_out(file, keys, storages)
        for name, tensor in self._tensors.items():
            self._check_storage(name, tensor)
        tensors = {name: TensorInfo(tensor.dtype, tensor.shape) for name, tensor in self._tensors.items()}
        self.header = Header(self.path, tensors, metadata)

    def read(self, name: str, *, mapped: bool = True) -> torch.Tensor:  # noqa: ARG002 - the file is never mapped
        """One tensor on the CPU, in memory of its own.

        Raises:
            CorruptCheckpoint: the file was cut off in the meantime.
        """
        import torch

        from gouache.checkpoints.formats.safetensors import TORCH_DTYPES, read_tensor

        tensor = self._tensors[name]
        if tensor.storage.inline is not None:
            data = torch.frombuffer(bytearray(tensor.storage.inline), dtype=torch.uint8)
        else:
            place = self._places[tensor.storage.key]
            with self.path.open("rb") as file:
                file.seek(place.offset)
                data = read_tensor(file, (place.bytes,), torch.uint8, self.path)
        view = torch.as_strided(data.view(TORCH_DTYPES[tensor.dtype]), tensor.shape, tensor.stride, tensor.offset)
        return view.clone(memory_format=torch.contiguous_format)

    def _check_machine(self, version: PickleValue, machine: PickleValue) -> None:
        if version != VERSION or not isinstance(machine, dict):
            raise self._corrupt(f"version {str(version)[:20]}", f"version {VERSION} of torch's format")
        if machine.get("little_endian") is not True:
            raise self._corrupt("numbers with the high byte first", "the low byte first")

    def _laid_out(self, file: BinaryIO, keys: PickleValue, storages: dict[str, Storage]) -> dict[str, _Place]:
        """Where each storage lies; an optimiser's lie between the others."""
        size = self.path.stat().st_size
        if not isinstance(keys, list) or not all(isinstance(key, str) and key in storages for key in keys):
            raise self._corrupt("no list of storages", "the keys of the storages that the object names")
        places: dict[str, _Place] = {}
        for key in keys:
            count = int.from_bytes(file.read(8), "little")
            dtype = storages[key].dtype
            length = count * (DTYPE_BYTES[dtype] if dtype else 1)
            places[key] = _Place(file.tell(), length)
            if file.tell() + length > size:
                raise self._corrupt(f"storage {key[:40]!r}, which reaches past the file's end", "a whole file")
            file.seek(length, 1)
        return places

    def _check_storage(self, name: str, tensor: StoredTensor) -> None:
        storage = tensor.storage
        if storage.inline is not None:
            return
        place = self._places.get(storage.key)
        wanted = storage.elements * (DTYPE_BYTES[storage.dtype] if storage.dtype else 1)
        if place is None or place.bytes != wanted:
            given = "no storage" if place is None else f"a storage of {place.bytes} bytes"
            raise self._corrupt(f"{given} for tensor {name[:200]!r}", f"{wanted} bytes under {storage.key[:40]!r}")

    def _corrupt(self, given: str, expected: str) -> CorruptCheckpoint:
        return CorruptCheckpoint(str(self.path), given=given, expected=expected, cure=DOWNLOAD_AGAIN)
