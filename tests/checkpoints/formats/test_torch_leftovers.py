"""`.ckpt` files as trainers write them: in torch's old format too, with settings and arrays beside the tensors.

The kind: a dictionary of tensors is in the file, and something harmless that is no tensor lies beside or around it. The
judge is torch, which wrote the files and whose own reader, trusted with them, gives the tensors to compare with.
"""

from __future__ import annotations

import argparse
import collections
import datetime
import io
import os
import pathlib
import pickle
import struct
import sys
import types
import uuid
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gouache.checkpoints.convert import convert
from gouache.checkpoints.formats.header import open_header, open_source
from gouache.checkpoints.load import load_bundle
from gouache.errors import CorruptCheckpoint, UnknownFamily, UnsafeCheckpoint

WEIGHTS = torch.arange(12.0).view(3, 4)


def class_named(module: str, name: str) -> type:
    """A class that pickles under a name of a package that isn't installed here."""
    for k in range(1, module.count(".") + 2):
        parent = ".".join(module.split(".")[:k])
        sys.modules.setdefault(parent, types.ModuleType(parent))
    made = type(name, (), {"__module__": module})
    setattr(sys.modules[module], name, made)
    return made


def instance(module: str, name: str, **state: Any) -> Any:
    made = class_named(module, name)()
    vars(made).update(state)
    return made


@pytest.fixture(autouse=True)
def modules_as_before() -> Iterator[None]:
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.split(".")[0] in ("omegaconf", "pytorch_lightning", "lightning_fabric", "yacs", "easydict", "hydra"):
            del sys.modules[name]


def nested_default(items: dict[str, torch.Tensor]) -> Any:
    return collections.defaultdict(dict, items)


def with_attribute(tensor: torch.Tensor) -> torch.nn.Parameter:
    parameter = torch.nn.Parameter(tensor, requires_grad=False)
    parameter.note = "mine"  # type: ignore[attr-defined]
    return parameter


BESIDE: dict[str, Callable[[], Any]] = {
    "argparse.Namespace": lambda: argparse.Namespace(lr=1e-4, out=pathlib.Path("runs"), sizes=[1, 2]),
    "defaultdict": lambda: collections.defaultdict(list, {"loss": [0.1]}),
    "defaultdict of defaultdicts' type": lambda: collections.defaultdict(collections.OrderedDict),
    "Counter": lambda: collections.Counter("abca"),
    "deque": lambda: collections.deque([1, 2], maxlen=4),
    "OrderedDict": lambda: collections.OrderedDict(a=1),
    "SimpleNamespace": lambda: types.SimpleNamespace(a=1),
    "path": lambda: pathlib.PurePosixPath("a/b"),
    "windows path": lambda: pathlib.PureWindowsPath("a\\b"),
    "date": lambda: datetime.datetime(2023, 1, 2, tzinfo=datetime.UTC),
    "uuid": lambda: uuid.UUID(int=7),
    "decimal": lambda: Decimal("0.1"),
    "set": lambda: {1, 2},
    "frozenset": lambda: frozenset(["a"]),
    "bytes": lambda: b"abc" * 200,
    "bytearray": lambda: bytearray(b"abc"),
    "complex": lambda: 1 + 2j,
    "device": lambda: torch.device("cpu"),
    "torch dtype": lambda: torch.float16,
    "numpy number": lambda: np.float32(0.5),
    "numpy bool": lambda: np.bool_(True),
    "numpy array of text": lambda: np.array(["a", "bc"]),
    "numpy array of objects": lambda: np.array([None, {"a": 1}], dtype=object),
    "numpy record": lambda: np.zeros(2, dtype=[("a", "f4"), ("b", "i8")]),
    "numpy random state": lambda: np.random.RandomState(0).get_state(),
    "torch random state": torch.get_rng_state,
    "optimizer": lambda: torch.optim.AdamW([torch.nn.Parameter(torch.ones(3))]).state_dict(),
    "learning rate": lambda: torch.optim.lr_scheduler.StepLR(torch.optim.SGD([torch.ones(1)]), 3).state_dict(),
    "lightning callback": lambda: {
        class_named("pytorch_lightning.callbacks.early_stopping", "EarlyStopping"): {"a": 1}
    },
    "lightning's dictionary": lambda: instance("pytorch_lightning.utilities.parsing", "AttributeDict", lr=0.1),
    "lightning fabric": lambda: instance("lightning_fabric.utilities.data", "AttributeDict", lr=0.1),
    "omegaconf": lambda: instance("omegaconf.dictconfig", "DictConfig", _content={"a": 1}, _parent=None),
    "omegaconf list": lambda: instance("omegaconf.listconfig", "ListConfig", _content=[1]),
    "yacs": lambda: instance("yacs.config", "CfgNode", a=1),
    "easydict": lambda: instance("easydict", "EasyDict", a=1),
    "hydra": lambda: instance("hydra.conf", "RunDir", dir="x"),
}
FORMATS = {"zip": True, "before 1.6": False}


@pytest.mark.parametrize("modern", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("name", BESIDE)
def test_what_lies_beside_the_tensors_is_read_past(tmp_path: Path, name: str, modern: bool) -> None:
    path = tmp_path / "a.ckpt"
    stored = {"hyper_parameters": BESIDE[name](), "state_dict": {"w": WEIGHTS, "t": WEIGHTS.T}, "epoch": 3}
    torch.save(stored, path, _use_new_zipfile_serialization=modern)
    source = open_source(path)
    assert list(source.header.tensors) == ["w", "t"]
    assert source.header.metadata["epoch"] == "3"
    assert torch.equal(source.read("w"), WEIGHTS)
    assert torch.equal(source.read("t"), WEIGHTS.T)


AROUND: dict[str, Callable[[dict[str, torch.Tensor]], Any]] = {
    "a plain dictionary": dict,
    "an ordered dictionary": collections.OrderedDict,
    "a default dictionary": nested_default,
    "Lightning": lambda items: {"state_dict": items, "optimizer_states": []},
    "Lightning twice": lambda items: {"state_dict": {"state_dict": items}},
    "plain torch": lambda items: {"model_state_dict": items, "optimizer_state_dict": {"state": {0: torch.ones(2)}}},
    "DeepSpeed": lambda items: {"module": items, "dp_world_size": 2},
    "a training script": lambda items: {"model": items, "args": argparse.Namespace(lr=1)},
    "parameters": lambda items: {
        name: torch.nn.Parameter(tensor, requires_grad=False) for name, tensor in items.items()
    },
    "parameters with attributes": lambda items: {name: with_attribute(tensor) for name, tensor in items.items()},
    "numpy arrays": lambda items: {name: tensor.numpy() for name, tensor in items.items()},
    "numpy arrays, the first axis fastest": lambda items: {n: np.asfortranarray(t.numpy()) for n, t in items.items()},
}


@pytest.mark.parametrize("modern", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("name", AROUND)
def test_what_lies_around_the_tensors_is_opened(tmp_path: Path, name: str, protocol: int, modern: bool) -> None:
    path = tmp_path / "a.ckpt"
    items = {"w": WEIGHTS, "half": WEIGHTS.half(), "row": WEIGHTS[1], "n": torch.arange(3)}
    torch.save(AROUND[name](items), path, pickle_protocol=protocol, _use_new_zipfile_serialization=modern)
    source = open_source(path)
    assert {n: source.read(n).tolist() for n in source.header.tensors} == {n: t.tolist() for n, t in items.items()}
    assert {n: source.read(n).dtype for n in source.header.tensors} == {n: t.dtype for n, t in items.items()}


def test_an_array_with_the_high_byte_first_is_not_taken_for_one_with_the_low(tmp_path: Path) -> None:
    torch.save({"a": np.arange(3, dtype=">f4"), "w": WEIGHTS, "n": np.array(3, ">i4")[()]}, tmp_path / "a.ckpt")
    header = open_header(tmp_path / "a.ckpt")
    assert list(header.tensors) == ["w"]
    assert header.metadata["n"] == "3"


def test_a_whole_model_in_torchs_old_format_loads_bit_for_bit(published: Callable[[str], Path], tmp_path: Path) -> None:
    convert(published("sd1"), tmp_path / "a.safetensors", "single-file")
    source = open_source(tmp_path / "a.safetensors")
    state = {name: source.read(name) for name in source.header.tensors}
    optimizer = {"exp_avg": torch.ones(100), "step": 3}
    torch.save(
        {"optimizer": optimizer, "state_dict": state, "args": argparse.Namespace(a=1)},
        tmp_path / "old.ckpt",
        _use_new_zipfile_serialization=False,
    )
    wanted, found = load_bundle(published("sd1")), load_bundle(tmp_path / "old.ckpt")
    for name, network in wanted.networks().items():
        state = found.networks()[name].state_dict()
        assert all(torch.equal(state[key], tensor) for key, tensor in network.state_dict().items()), name


def old_file(value: object, keys: list[str], storages: bytes, *, little: bool = True, version: int = 1001) -> bytes:
    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: object) -> object:
            return obj.reference if isinstance(obj, Stored) else None

    stream = io.BytesIO()
    for one in (0x1950A86A20F9469CFC6C, version, {"protocol_version": version, "little_endian": little}, value, keys):
        Pickler(stream, 2).dump(one)
    return stream.getvalue() + storages


class Stored:
    """A storage that pickles as a reference; the last entry names a view into it, as torch 0.3 wrote them."""

    def __init__(self, elements: int, view: tuple[str, int, int] | None = None) -> None:
        self.reference = ("storage", torch.FloatStorage, "7", "cuda:0", elements, view)


class Rebuilt:
    """A tensor that pickles as torch's does."""

    def __init__(self, *arguments: object) -> None:
        self.arguments = arguments

    def __reduce__(self) -> tuple[Any, tuple[object, ...]]:
        return torch._utils._rebuild_tensor, self.arguments


NUMBERS = struct.pack("<q6f", 6, *range(6))


def test_a_view_of_a_storage_begins_where_the_file_says(tmp_path: Path) -> None:
    value = {"w": Rebuilt(Stored(6, ("8", 2, 4)), 1, (3,), (1,))}
    (tmp_path / "a.pt").write_bytes(old_file(value, ["7"], NUMBERS))
    assert open_source(tmp_path / "a.pt").read("w").tolist() == [3.0, 4.0, 5.0]


RUINS: dict[str, dict[str, Any]] = {
    "cut off": {"storages": NUMBERS[:-3]},
    "no storage": {"keys": [], "storages": b""},
    "another storage": {"keys": ["8"]},
    "a shorter storage": {"storages": struct.pack("<q5f", 5, *range(5))},
    "a storage without end": {"storages": struct.pack("<q", -1) + NUMBERS[8:]},
    "the high byte first": {"little": False},
    "another version": {"version": 1002},
}


@pytest.mark.parametrize("name", RUINS)
def test_a_ruin_in_the_old_format_ends_in_a_typed_error(tmp_path: Path, name: str) -> None:
    options: dict[str, Any] = {"keys": ["7"], "storages": NUMBERS, **RUINS[name]}
    value = {"w": Rebuilt(Stored(6), 0, (2, 3), (3, 1))}
    (tmp_path / "a.pt").write_bytes(old_file(value, **options))
    with pytest.raises(CorruptCheckpoint, match=r"a\.pt"):
        open_header(tmp_path / "a.pt")


def test_every_truncation_of_the_old_format_is_found(tmp_path: Path) -> None:
    whole = old_file({"w": Rebuilt(Stored(6), 0, (2, 3), (3, 1))}, ["7"], NUMBERS)
    path = tmp_path / "a.pt"
    for length in range(2, len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(CorruptCheckpoint):
            open_header(path)


class Evil:
    """Pickles to a call; if anything ran it, the file would be there."""

    def __init__(self, call: Any, *arguments: Any) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call, self.arguments


def function_named(module: str, name: str) -> Any:
    made = class_named(module, "Holder")

    def function(*_: object) -> None: ...

    function.__module__, function.__qualname__, function.__name__ = module, name, name
    setattr(sys.modules[made.__module__], name, function)
    return function


HOSTILE: dict[str, Callable[[Path], Any]] = {
    "os.system": lambda mark: Evil(os.system, f"touch {mark}"),
    "in a defaultdict": lambda mark: collections.defaultdict(list, {"a": Evil(os.system, f"touch {mark}")}),
    "in a Namespace": lambda mark: argparse.Namespace(a=Evil(eval, f"open({str(mark)!r}, 'w')")),
    "in an array of objects": lambda mark: np.array([Evil(os.system, f"touch {mark}")], dtype=object),
    "as a defaultdict's factory": lambda mark: Evil(collections.defaultdict, Evil(os.system, f"touch {mark}")),
    "a function of a trainer's package": lambda _: Evil(
        function_named("pytorch_lightning.utilities.cloud_io", "load"), "https://example.org"
    ),
    "a class of a trainer's package with arguments": lambda _: Evil(
        class_named("pytorch_lightning.trainer.trainer", "Trainer"), "a", "b"
    ),
    "a class of the user's own": lambda _: Evil(Evil, os.system, "x"),
    "a path that is opened": lambda mark: Evil(pathlib.Path.touch, pathlib.Path(mark)),
    "numpy's own loader": lambda mark: Evil(np.load, str(mark)),
    "a tensor made by something else": lambda mark: Evil(
        torch._tensor._rebuild_from_type_v2, os.system, torch.Tensor, (f"touch {mark}",), {}
    ),
}


@pytest.mark.parametrize("modern", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("name", HOSTILE)
def test_code_stays_refused_by_name(tmp_path: Path, name: str, modern: bool) -> None:
    mark, path = tmp_path / "it ran", tmp_path / "evil.ckpt"
    stored = {"state_dict": {"w": WEIGHTS}, "x": HOSTILE[name](mark)}
    torch.save(stored, path, _use_new_zipfile_serialization=modern)
    with pytest.raises(UnsafeCheckpoint, match=r"evil\.ckpt: given .*nothing was executed"):
        open_header(path)
    assert not mark.exists()


def test_a_bare_pickle_of_arrays_is_read_and_one_of_code_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps({"w": WEIGHTS.numpy(), "name": "x"}))
    assert torch.equal(open_source(path).read("w"), WEIGHTS)
    path.write_bytes(pickle.dumps({"w": Evil(os.system, f"touch {tmp_path / 'ran'}")}))
    with pytest.raises(UnsafeCheckpoint, match="system"):
        open_header(path)
    assert not (tmp_path / "ran").exists()


def test_a_tar_is_named(tmp_path: Path) -> None:
    import tarfile

    with tarfile.open(tmp_path / "a.ckpt", "w", format=tarfile.USTAR_FORMAT) as archive:
        archive.addfile(tarfile.TarInfo("sys_info"), io.BytesIO())
    with pytest.raises(UnknownFamily, match=r"before 0\.1\.10"):
        open_header(tmp_path / "a.ckpt")
