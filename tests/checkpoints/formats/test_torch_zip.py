"""The reader of torch files: against torch itself, and against hostile files, of which nothing may run."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gouache.checkpoints.convert import convert
from gouache.checkpoints.formats.header import open_header, open_source
from gouache.checkpoints.formats.torch_pickle import read_pickle
from gouache.checkpoints.formats.torch_zip import TensorZip
from gouache.checkpoints.load import identify, load_bundle
from gouache.errors import CorruptCheckpoint, GouacheError, UnsafeCheckpoint

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
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
    torch.uint16,
)


def some_state() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    state = {str(dtype): torch.randint(0, 2, (3, 4), generator=generator).to(dtype) for dtype in DTYPES}
    base = torch.randn(6, 8, generator=generator)
    state |= {"whole": base, "rows": base[2:4], "transposed": base.T, "column": base[:, 3], "scalar": base[0, 0]}
    state["parameter"] = torch.nn.Parameter(torch.randn(5, generator=generator))
    state["empty"] = torch.empty(0, 3)
    return state


def read_all(path: Path) -> dict[str, torch.Tensor]:
    source = open_source(path)
    return {name: source.read(name) for name in source.header.tensors}


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_it_reads_what_torch_writes(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "a.anything"
    state = OrderedDict(some_state())
    state._metadata = {"": {"version": 1}}  # type: ignore[attr-defined]
    torch.save({"state_dict": state, "global_step": 875000, "name": "x"}, path, pickle_protocol=protocol)
    found = read_all(path)
    assert set(found) == set(state)
    for name, tensor in state.items():
        assert found[name].dtype == tensor.dtype, name
        assert found[name].is_contiguous(), name
        ours, theirs = (one.detach().contiguous().reshape(-1).view(torch.uint8) for one in (found[name], tensor))
        assert torch.equal(ours, theirs), name
    assert open_header(path).metadata == {"global_step": "875000", "name": "x"}


def test_a_trainers_leftovers_are_read_past(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    optimizer = {"state": {0: {"exp_avg": torch.ones(2), "step": 3}}, "param_groups": [{"lr": 1e-4, "params": [0]}]}
    torch.save(
        {
            "epoch": 2,
            "state_dict": {"w": torch.ones(2)},
            "optimizer_states": [optimizer],
            "best": np.float64(0.25),
            "callbacks": {"a": {"best": None}},
            "size": torch.Size([1, 2]),
            "set": {1, 2},
        },
        path,
    )
    assert list(open_header(path).tensors) == ["w"]


def test_an_embedding_of_the_old_kind_is_recognised(tmp_path: Path) -> None:
    path = tmp_path / "cat.pt"
    vectors = {"*": torch.ones(2, 768)}
    torch.save({"string_to_token": {"*": 265}, "string_to_param": vectors, "name": "cat", "step": 10}, path)
    found = identify(path)
    assert (found.kind, found.family, found.label) == ("textual-inversion", "sd1", "2 vectors")
    torch.save({"string_to_param": torch.nn.ParameterDict({"x": torch.ones(3, 768)})}, path)
    assert identify(path).label == "3 vectors"


def test_a_model_in_a_ckpt_loads_bit_for_bit(published: Callable[[str], Path], tmp_path: Path) -> None:
    convert(published("sd1"), tmp_path / "a.safetensors", "single-file")
    source = open_source(tmp_path / "a.safetensors")
    state = {name: source.read(name) for name in source.header.tensors}
    torch.save({"state_dict": state, "global_step": 1}, tmp_path / "renamed.safetensors")
    wanted, found = load_bundle(published("sd1")), load_bundle(tmp_path / "renamed.safetensors")
    assert found.family == "sd1"
    for name, tensor in wanted.unet.state_dict().items():
        assert torch.equal(found.unet.state_dict()[name], tensor), name


class Evil:
    """Pickles to a call; if anything ran it, the file would be there."""

    def __init__(self, call: Any, *arguments: Any) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call, self.arguments


def hostile(mark: Path) -> dict[str, Any]:
    return {
        "os.system": Evil(os.system, f"touch {mark}"),
        "eval": Evil(eval, f"open({str(mark)!r}, 'w')"),
        "exec": Evil(exec, f"open({str(mark)!r}, 'w')"),
        "getattr": Evil(getattr, "x", "upper"),
        "open": Evil(open, str(mark), "w"),
        "import": Evil(__import__, "os"),
        "loads": Evil(pickle.loads, pickle.dumps(Evil(os.system, f"touch {mark}"))),
        "torch.load": Evil(torch.load, str(mark)),
        "from_file": Evil(torch.FloatStorage.from_file, str(mark), True, 4),
    }


@pytest.mark.parametrize("name", hostile(Path()))
def test_code_is_refused_by_name_and_never_run(tmp_path: Path, name: str) -> None:
    mark = tmp_path / "it ran"
    path = tmp_path / "evil.safetensors"
    torch.save({"state_dict": {"w": torch.ones(2)}, "x": hostile(mark)[name]}, path)
    with pytest.raises(UnsafeCheckpoint, match=r"evil\.safetensors: given the (global|pickle opcode)") as caught:
        open_header(path)
    assert "nothing was executed" in str(caught.value)
    assert not mark.exists()


def test_ficklings_injections_are_refused(tmp_path: Path) -> None:
    from fickling.fickle import Pickled

    mark = tmp_path / "it ran"
    clean = tmp_path / "clean.ckpt"
    torch.save({"w": torch.ones(2)}, clean)
    with zipfile.ZipFile(clean) as archive:
        entries = {info.filename: archive.read(info) for info in archive.infolist()}
    name = next(name for name in entries if name.endswith("data.pkl"))
    for run_first in (True, False):
        pickled = Pickled.load(entries[name])
        pickled.insert_python_exec(f"open({str(mark)!r}, 'w')", run_first=run_first)
        stream = io.BytesIO()
        pickled.dump(stream)
        path = tmp_path / "injected.ckpt"
        with zipfile.ZipFile(path, "w") as archive:
            for entry, data in (entries | {name: stream.getvalue()}).items():
                archive.writestr(entry, data)
        with pytest.raises(UnsafeCheckpoint, match=r"injected\.ckpt.*exec"):
            open_header(path)
        assert not mark.exists()


PICKLES = {
    "INST": b"\x80\x02(S'id'\nios\nsystem\n.",
    "OBJ": b"\x80\x02(cos\nsystem\nX\x02\x00\x00\x00ido.",
    "NEWOBJ": b"\x80\x02ccollections\nOrderedDict\n)\x81.",
    "EXT1": b"\x80\x02\x82\x01.",
    "PERSID": b"\x80\x02Pabc\n.",
    "NEXT_BUFFER": b"\x80\x05\x97.",
    "a call of a number": b"\x80\x02K\x01)R.",
    "a call of an inert name": b"\x80\x02cpytorch_lightning.callbacks.model_checkpoint\nModelCheckpoint\n)R.",
    "a call of a storage": b"\x80\x02ctorch\nFloatStorage\n)R.",
    "a storage type called": b"\x80\x02ctorch.storage\nUntypedStorage\n)R.",
    "state on a list": b"\x80\x02]}b.",
    "a tuple as a key": b"\x80\x02}K\x01K\x02\x86K\x03s.",
    "another encoding": b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00utf16\x86R.",
    "builtins.getattr": b"\x80\x04\x8c\x08builtins\x8c\x07getattr\x93.",
    "a dotted name": b"\x80\x04\x8c\x05torch\x8c\x10FloatStorage.new\x93.",
    "the name of another module": b"\x80\x02cos\nFloatStorage\n.",
}


@pytest.mark.parametrize("name", PICKLES)
def test_every_other_opcode_and_global_is_refused(name: str) -> None:
    with pytest.raises((UnsafeCheckpoint, CorruptCheckpoint), match=r"file: given ") as caught:
        read_pickle(PICKLES[name], Path("file"))
    if name.isupper() or name[0] != "a":
        assert isinstance(caught.value, UnsafeCheckpoint)


BOMBS = {
    "no end": b"\x80\x02}",
    "nothing on the stack": b"\x80\x02.",
    "memo of nothing": b"\x80\x02h\x05.",
    "a mark too few": b"\x80\x02}u.",
    "endless opcodes": b"\x80\x02" + b"]" * 500_005 + b".",
    "endless copies": b"\x80\x02ctorch\nSize\nq\x01("
    + b"K\x01" * 3000
    + b"lq\x020"
    + b"h\x01h\x02\x85R0" * 3000
    + b".",
    "a length past the end": b"\x80\x02X\xff\xff\xff\x7fab.",
    "a long name": b"\x80\x02}X\x00\x20\x00\x00" + b"a" * 8192 + b"K\x01s.",
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_and_ruins_end_in_a_typed_error(name: str) -> None:
    with pytest.raises(CorruptCheckpoint, match=r"file: given "):
        read_pickle(BOMBS[name], Path("file"))


def rewritten(path: Path, change: Callable[[str, bytes], bytes | None], **options: Any) -> None:
    with zipfile.ZipFile(path) as archive:
        entries = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, data in entries.items():
            new = change(name, data)
            if new is not None:
                archive.writestr(name, new)


ZIPS: dict[str, tuple[Callable[[str, bytes], bytes | None], dict[str, Any]]] = {
    "compressed": (lambda _, data: data, {"compression": zipfile.ZIP_DEFLATED}),
    "without its pickle": (lambda name, data: None if name.endswith("pkl") else data, {}),
    "without a storage": (lambda name, data: None if name.endswith("data/0") else data, {}),
    "with a short storage": (lambda name, data: data[:-4] if name.endswith("data/0") else data, {}),
    "for machines with the high byte first": (lambda name, data: b"big" if name.endswith("byteorder") else data, {}),
    "with a number for a pickle": (lambda name, data: b"\x80\x02K\x01." if name.endswith("pkl") else data, {}),
    "with an empty dictionary": (lambda name, data: b"\x80\x02}." if name.endswith("pkl") else data, {}),
}


@pytest.mark.parametrize("name", ZIPS)
def test_a_zip_that_torch_would_not_write_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "odd.ckpt"
    torch.save({"w": torch.arange(100.0)}, path)
    change, options = ZIPS[name]
    rewritten(path, change, **options)
    with pytest.raises(CorruptCheckpoint, match=r"odd\.ckpt"):
        open_header(path)


def test_a_flipped_bit_in_a_storage_is_found(tmp_path: Path) -> None:
    path = tmp_path / "flipped.ckpt"
    torch.save({"w": torch.arange(100.0)}, path)
    raw = bytearray(path.read_bytes())
    raw[raw.index(torch.arange(100.0).numpy().tobytes()) + 17] ^= 4
    path.write_bytes(raw)
    with pytest.raises(CorruptCheckpoint, match=r"flipped\.ckpt.*CRC-32"):
        TensorZip(path).read("w")


def test_strides_cannot_blow_a_tensor_up(tmp_path: Path) -> None:
    path = tmp_path / "wide.ckpt"
    torch.save({"w": torch.ones(1).expand(1 << 40)}, path)
    with pytest.raises(CorruptCheckpoint, match=r"wide\.ckpt.*past its storage"):
        open_header(path)


def test_a_dictionary_that_holds_itself_is_walked_once(tmp_path: Path) -> None:
    path = tmp_path / "round.ckpt"
    inner: dict[str, Any] = {"w": torch.ones(1)}
    inner["again"] = inner
    torch.save({"a": inner, "b": inner}, path)
    assert list(open_header(path).tensors) == ["a.w"]


@pytest.mark.parametrize(
    ("start", "told"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>", "log in or give a token"),
        (b"GGUF\x03\x00\x00\x00", "GGUF"),
        (pickle.dumps({"w": 1}), "bare pickle"),
        (b"", "empty file"),
        (b"PK\x03\x04 but no more", "cut off"),
        (b"just some text that is no model at all", "header"),
    ],
)
def test_other_files_are_named_for_what_they_are(tmp_path: Path, start: bytes, told: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(start)
    with pytest.raises(GouacheError, match=rf"model\.safetensors(.|\n)*{told}"):
        open_header(path)
