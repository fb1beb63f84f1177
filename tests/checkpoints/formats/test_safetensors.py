"""The own format against the safetensors library, and against damage."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from gouache.checkpoints.formats.header import DTYPE_BYTES, open_header, open_source
from gouache.checkpoints.formats.safetensors import (
    TORCH_DTYPES,
    SafetensorsFile,
    load_tensors,
    read_header,
    save_tensors,
)
from gouache.errors import CorruptCheckpoint, InvalidInput, ModelNotFound
from gouache.files import atomic_write

DTYPES = (
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
)


def some_tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    tensors = {
        str(dtype): torch.randint(0, 2, (3, 5), generator=generator).to(dtype) for dtype in DTYPES
    }  # zero and one exist in every type
    tensors["transposed"] = torch.randn(4, 6, generator=generator).T
    tensors["scalar"] = torch.tensor(1.25)
    tensors["empty"] = torch.empty(0, 4)
    tensors['ключ/鍵 "quoted"'] = torch.randn(2, generator=generator)
    return tensors


def assert_same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert set(found) == set(wanted)
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype, name
        assert found[name].shape == tensor.shape, name
        assert (
            found[name].contiguous().view(-1).view(torch.uint8).equal(tensor.contiguous().view(-1).view(torch.uint8))
        ), name


def test_the_safetensors_library_reads_what_we_write(tmp_path: Path) -> None:
    tensors = some_tensors()
    save_tensors(tmp_path / "a.safetensors", tensors, {"title": "тест"})
    assert_same(load_file(tmp_path / "a.safetensors"), tensors)
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata["title"] == "тест"
    assert metadata["format"] == "pt"
    assert metadata["gouache.producer"].startswith("gouache ")


@pytest.mark.parametrize("mapped", [True, False])
def test_we_read_what_the_safetensors_library_writes(tmp_path: Path, mapped: bool) -> None:
    tensors = {name: tensor.contiguous() for name, tensor in some_tensors().items()}
    save_file(tensors, tmp_path / "a.safetensors", {"who": "library"})
    source = SafetensorsFile(tmp_path / "a.safetensors")
    assert source.header.metadata == {"who": "library"}
    assert_same({name: source.read(name, mapped=mapped) for name in source.header.tensors}, tensors)


def test_the_recorded_sha256_is_that_of_the_bytes_after_the_header(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    told = save_tensors(path, some_tensors())
    raw = path.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    assert told == hashlib.sha256(raw[8 + length :]).hexdigest()
    assert read_header(path).metadata["gouache.sha256"] == told


def test_the_same_tensors_make_the_same_file(tmp_path: Path) -> None:
    tensors = some_tensors()
    save_tensors(tmp_path / "a", tensors, {"x": "y"})
    save_tensors(tmp_path / "b", dict(reversed(tensors.items())), {"x": "y"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_dtype_changes_floating_point_tensors_only(tmp_path: Path) -> None:
    save_tensors(tmp_path / "a", {"f": torch.ones(2), "i": torch.ones(2, dtype=torch.int64)})
    tensors = load_tensors(tmp_path / "a", dtype=torch.float16)
    assert tensors["f"].dtype == torch.float16
    assert tensors["i"].dtype == torch.int64


def test_a_mapped_tensor_may_be_written_to_and_the_file_stays(tmp_path: Path) -> None:
    save_tensors(tmp_path / "a", {"f": torch.ones(4)})
    before = (tmp_path / "a").read_bytes()
    tensor = SafetensorsFile(tmp_path / "a").read("f")
    tensor.mul_(7)
    assert tensor.tolist() == [7.0] * 4
    assert (tmp_path / "a").read_bytes() == before


def test_every_flipped_bit_of_the_data_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_tensors(path, {"f": torch.arange(6.0)})
    raw = path.read_bytes()
    start = read_header(path).data_start
    for position in range(start, len(raw)):
        for bit in range(8):
            flipped = bytearray(raw)
            flipped[position] ^= 1 << bit
            path.write_bytes(flipped)
            with pytest.raises(CorruptCheckpoint, match=r"a\.safetensors.*sha256"):
                load_tensors(path)


def test_every_truncation_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_tensors(path, {"f": torch.arange(6.0)})
    raw = path.read_bytes()
    for length in range(len(raw)):
        path.write_bytes(raw[:length])
        with pytest.raises(CorruptCheckpoint, match=r"a\.safetensors"):
            read_header(path)


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_tensors(path, {"f": torch.ones(1)})
    before = path.read_bytes()

    def stopped_half_way() -> None:
        with atomic_write(path) as file:
            file.write(b"half")
            raise KeyboardInterrupt("the user stopped it")

    with pytest.raises(KeyboardInterrupt):
        stopped_half_way()
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.safetensors"]  # noqa: PTH208 - a name that starts with a dot counts too


@pytest.mark.parametrize("key", ["gouache.sha256", "format", "gouache.producer"])
def test_the_metadata_keys_of_the_format_are_not_the_callers(tmp_path: Path, key: str) -> None:
    with pytest.raises(InvalidInput, match=key):
        save_tensors(tmp_path / "a", {"f": torch.ones(1)}, {key: "mine"})


def test_a_type_without_a_name_in_the_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="complex64"):
        save_tensors(tmp_path / "a", {"f": torch.ones(1, dtype=torch.complex64)})


def test_no_file_is_said_to_be_no_file(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="nowhere"):
        read_header(tmp_path / "nowhere")


GOOD = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
BAD_HEADERS = {
    "not JSON": b"{" * 20,
    "not an object": b"[1,2,3]",
    "deep nesting": b"[" * 100_000,
    "not UTF-8": b'{"\xff":1}',
    "a name twice": b'{"a":%b,"a":%b}' % ((json.dumps(GOOD).encode(),) * 2),
    "no dtype": json.dumps({"a": {"shape": [2], "data_offsets": [0, 8]}}).encode(),
    "a key too many": json.dumps({"a": {**GOOD, "more": 1}}).encode(),
    "unknown dtype": json.dumps({"a": {**GOOD, "dtype": "F31"}}).encode(),
    "dtype not a string": json.dumps({"a": {**GOOD, "dtype": ["F32"]}}).encode(),
    "negative size": json.dumps({"a": {**GOOD, "shape": [-2]}}).encode(),
    "fractional size": json.dumps({"a": {**GOOD, "shape": [2.0]}}).encode(),
    "true as a size": json.dumps({"a": {**GOOD, "shape": [True, 2]}}).encode(),
    "huge size": json.dumps({"a": {**GOOD, "shape": [1 << 61] * 16}}).encode(),
    "a number of 5000 digits": b'{"a":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,8]}}',
    "rank 17": json.dumps({"a": {**GOOD, "shape": [1] * 16 + [2]}}).encode(),
    "end before start": json.dumps({"a": {**GOOD, "data_offsets": [8, 0]}}).encode(),
    "three offsets": json.dumps({"a": {**GOOD, "data_offsets": [0, 8, 8]}}).encode(),
    "wrong number of bytes": json.dumps({"a": {**GOOD, "data_offsets": [0, 4]}}).encode(),
    "a hole": json.dumps({"a": {**GOOD, "data_offsets": [4, 12]}}).encode(),
    "overlap": json.dumps({"a": GOOD, "b": GOOD}).encode(),
    "past the end": json.dumps({"a": {**GOOD, "shape": [4], "data_offsets": [0, 16]}}).encode(),
    "metadata not strings": json.dumps({"__metadata__": {"a": 1}, "a": GOOD}).encode(),
    "metadata not an object": json.dumps({"__metadata__": ["a"], "a": GOOD}).encode(),
    "nothing but commas": b"[" + b"1," * 3_000_000 + b"1]",
    "nothing but objects": b"[" + b"{}," * 250_000 + b"{}]",
}


@pytest.mark.parametrize("cause", BAD_HEADERS)
def test_a_bad_header_is_refused_with_the_file_and_the_cause(tmp_path: Path, cause: str) -> None:
    raw = BAD_HEADERS[cause]
    path = tmp_path / "bad.safetensors"
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(8))
    with pytest.raises(CorruptCheckpoint, match=r"bad\.safetensors: given .*, expected ") as caught:
        read_header(path)
    assert len(str(caught.value)) < 1500


def test_a_header_that_claims_to_be_enormous_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "bomb.safetensors"
    with path.open("wb") as file:
        file.write((1 << 31).to_bytes(8, "little"))
        file.truncate(8 + (1 << 31))  # a sparse file: it takes no disk
    with pytest.raises(CorruptCheckpoint, match=r"bomb\.safetensors.*2147483648"):
        read_header(path)


def test_every_type_of_the_format_has_its_width() -> None:
    assert set(TORCH_DTYPES) == set(DTYPE_BYTES)
    for name, dtype in TORCH_DTYPES.items():
        assert DTYPE_BYTES[name] == dtype.itemsize, name


def test_a_header_of_any_length_is_a_header(tmp_path: Path) -> None:
    """The kind: the first 8 bytes of a safetensors file are a number, and may be what another format starts with.

    The lengths are those of every pickle protocol, of a zip's first bytes, of white space and of text, alone and with
    other high bytes; the judge is the safetensors package, which reads the same files.
    """
    starts = [
        b"\x80\x02",
        b"\x80\x03",
        b"\x80\x04",
        b"\x80\x05",
        b"PK",
        b"<h",
        b"<!",
        b"\n\n",
        b"  ",
        b'{"',
        b"GG",
        b"ve",
    ]
    lengths = [int.from_bytes(start, "little") + (high << 16) for start in starts for high in (0, 1, 2)]
    path = tmp_path / "a.safetensors"
    for length in (*lengths, 10 + 128, 0x80, 0x8002, 65536 + 0x4B50):
        entry = b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
        if length < len(entry):
            continue
        path.write_bytes(length.to_bytes(8, "little") + entry.ljust(length) + struct.pack("<2f", 1, 2))
        assert open_source(path).read("w").tolist() == [1.0, 2.0], length
        assert load_file(path)["w"].tolist() == [1.0, 2.0]


@pytest.mark.parametrize("step", [61, pytest.param(1, marks=pytest.mark.slow)])
def test_the_first_two_bytes_of_a_length_never_decide_what_a_file_is(tmp_path: Path, step: int) -> None:
    """All 65,536 of them (every 61st when it has to be quick): the error is that of a header too long for its file."""
    path = tmp_path / "a.safetensors"
    path.write_bytes(bytes(8) + b"{" + bytes(99))
    with path.open("r+b", buffering=0) as file:
        for low in range(0, 65_536, step):
            file.seek(0)
            file.write((low + 65_536).to_bytes(8, "little"))
            with pytest.raises(CorruptCheckpoint, match="a header of"):
                open_header(path)
