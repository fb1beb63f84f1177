"""A pickle reader that can build tensors' descriptions and plain containers, and nothing else.

A pickle is a program. This machine knows the opcodes that `torch.save` writes for a dictionary of tensors and for what
trainers put beside it, looks names up in a closed table instead of importing them, and refuses everything else by name.
It never calls what it reads, and its work and memory are bounded by the pickle's length.
"""

from __future__ import annotations

import io
import pickletools
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from gouache.checkpoints.formats.header import DTYPE_BYTES, MAX_RANK
from gouache.checkpoints.formats.pickle_leftovers import Array, ArrayType, Opaque, is_leftover, may_be_called
from gouache.checkpoints.formats.pickle_names import (
    PLAIN,
    STORAGE_DTYPES,
    TORCH_DTYPES,
    GlobalName,
    Storage,
    StoredTensor,
)
from gouache.errors import CorruptCheckpoint, UnsafeCheckpoint

MAX_PICKLE_BYTES = 32 << 20
MAX_OPCODES = 500_000
MAX_NAME = 500

PickleValue = object
"""None, bool, int, float, str, bytes, list, tuple, dict, `GlobalName`, `Storage`, `StoredTensor`, `Array`, `ArrayType`
or `Opaque`."""


def read_pickle(data: bytes, path: Path) -> PickleValue:
    """Run a pickle on the restricted machine and return its value.

    Raises:
        UnsafeCheckpoint: it holds an opcode or a global outside the closed tables; the message names it.
        CorruptCheckpoint: it is not a whole pickle, or is over the limits.
    """
    if len(data) > MAX_PICKLE_BYTES:
        raise CorruptCheckpoint(
            str(path), given=f"a pickle of {len(data)} bytes", expected=f"at most {MAX_PICKLE_BYTES}"
        )
    return read_next_pickle(io.BytesIO(data), path)


def read_next_pickle(stream: io.BytesIO, path: Path, storages: dict[str, Storage] | None = None) -> PickleValue:
    """As `read_pickle`, from where a stream stands; it stands behind the pickle afterwards.

    Args:
        stream: the file's beginning.
        path: the file, for errors.
        storages: gets every storage that the pickle names, by key.
    """
    machine = _Machine(path, storages={} if storages is None else storages)
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            if count > MAX_OPCODES:
                raise machine.corrupt(f"more than {MAX_OPCODES} opcodes")
            if opcode.name == "STOP":
                return machine.pop()
            machine.run(opcode.name, argument)
    except (ValueError, IndexError, struct.error, OverflowError) as error:
        raise machine.corrupt(str(error)[:120]) from error
    raise machine.corrupt("a pickle without an end")


@dataclass
class _Machine:
    path: Path
    stack: list[PickleValue] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)
    memo: dict[int, PickleValue] = field(default_factory=dict)
    storages: dict[str, Storage] = field(default_factory=dict)
    copied: int = 0

    def spend(self, items: int) -> None:
        """Count what calls copy: a short pickle could ask for the same long list again and again."""
        self.copied += items
        if self.copied > MAX_OPCODES:
            raise self.corrupt("a pickle that copies without end")

    def corrupt(self, given: str) -> CorruptCheckpoint:
        return CorruptCheckpoint(
            str(self.path), given=given, expected="the pickle of a dictionary of tensors", cure="Download it again."
        )

    def unsafe(self, given: str) -> UnsafeCheckpoint:
        return UnsafeCheckpoint(
            str(self.path),
            given=given,
            expected="tensors and plain containers only; nothing was executed",
            cure="Don't load this file anywhere. Get the model as .safetensors from a publisher you trust.",
        )

    def pop(self) -> PickleValue:
        if not self.stack or (self.marks and self.marks[-1] >= len(self.stack)):
            raise self.corrupt("a pickle that takes more than it put down")
        return self.stack.pop()

    def pop_mark(self) -> list[PickleValue]:
        if not self.marks:
            raise self.corrupt("a pickle without a mark where one is needed")
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def run(self, opcode: str, argument: PickleValue) -> None:
        if opcode in _CONSTANTS:
            self.stack.append(_CONSTANTS[opcode])
        elif opcode in _LITERALS:
            self.stack.append(argument)
        elif opcode in _EMPTY:
            self.stack.append(_EMPTY[opcode]())
        elif opcode in _ACTIONS:
            _ACTIONS[opcode](self, argument)
        elif opcode not in _NOTHING:
            raise self.unsafe(f"the pickle opcode {opcode}")

    # --- containers -------------------------------------------------------------------------------------------------

    def set_items(self, target: PickleValue, items: list[PickleValue]) -> None:
        if isinstance(target, Opaque):
            return
        if not isinstance(target, dict) or len(items) % 2:
            raise self.corrupt("items set on something that is no dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # A nested tuple as a key can take exponential time to hash.
            if not isinstance(key, str | int | float | bytes | GlobalName | Opaque | None):
                raise self.unsafe(f"a dictionary key of type {type(key).__name__}")
            if isinstance(key, str | bytes) and len(key) > MAX_NAME:
                raise self.corrupt(f"a dictionary key of {len(key)} characters")
            target[key] = value

    def extend(self, target: PickleValue, items: list[PickleValue]) -> None:
        if isinstance(target, Opaque):
            return
        if not isinstance(target, list):
            raise self.corrupt("items appended to something that is no list")
        target.extend(items)

    # --- names and calls --------------------------------------------------------------------------------------------

    def push_name(self, module: PickleValue, name: PickleValue) -> None:
        known = (module, name) in PLAIN or is_leftover(str(module), str(name))
        storage_or_dtype = module == "torch" and (name in STORAGE_DTYPES or name in TORCH_DTYPES)
        if not (isinstance(module, str) and isinstance(name, str) and (known or storage_or_dtype)):
            raise self.unsafe(f"the global {str(module)[:100]}.{str(name)[:100]}")
        self.stack.append(GlobalName(module, name))

    def call(self) -> None:
        arguments, function = self.pop(), self.pop()
        if not isinstance(function, GlobalName) or not isinstance(arguments, tuple):
            raise self.unsafe(f"a call of {type(function).__name__}")
        if function.name in _CALLS and (function.module, function.name) in PLAIN:
            self.stack.append(_CALLS[function.name](self, *arguments[:10]))
        elif may_be_called(function.module, function.name, arguments):
            self.stack.append(Opaque(str(function)))
        else:
            raise self.unsafe(f"a call of {function}")

    def new(self) -> None:
        """An object whose `__init__` isn't run: a trainer's leftovers, and torch's ParameterDict, where old embedding
        files keep their vectors."""
        arguments, kind = self.pop(), self.pop()
        if isinstance(kind, GlobalName) and is_leftover(kind.module, kind.name):
            self.stack.append(Opaque(str(kind)))
        elif isinstance(kind, GlobalName) and kind.name == "ParameterDict" and arguments == ():
            self.stack.append({})
        else:
            raise self.unsafe(f"an object of {kind}" if isinstance(kind, GlobalName) else "an object of no known class")

    def build(self) -> None:
        """State set on an object: a state dict's `_metadata` is left out, as is all that an `Opaque` holds."""
        state = self.pop()
        target = self.stack[-1] if self.stack else None
        if isinstance(target, dict):
            parameters = state.get("_parameters") if isinstance(state, dict) else None
            if isinstance(parameters, dict):
                self.spend(len(parameters))
                target.update(parameters)
        elif isinstance(target, ArrayType):
            target.big = isinstance(state, tuple) and ">" in state[1:2]
        elif isinstance(target, Array):
            self.fill(target, state)
        elif not isinstance(target, Opaque):
            raise self.unsafe(f"state set on a {type(target).__name__}")

    def fill(self, target: Array, state: PickleValue) -> None:
        """An array's state: version, shape, type, whether the first axis is the fastest, bytes."""
        if not isinstance(state, tuple) or len(state) != 5 or not isinstance(state[2], ArrayType):
            raise self.corrupt("a numpy array without shape, type and bytes")
        if not target.fill(self.counts(state[1]), state[2], state[4], fortran=bool(state[3])):
            raise self.corrupt(f"a numpy array of shape {str(target.shape)[:80]} whose bytes are more or fewer")

    def load_storage(self, reference: PickleValue) -> None:
        if not isinstance(reference, tuple) or len(reference) < 5 or reference[0] != "storage":
            raise self.corrupt("a reference outside the pickle that is no storage")
        _, kind, key, _, elements = reference[:5]
        view = reference[5] if len(reference) > 5 else None
        if not isinstance(kind, GlobalName) or type(elements) is not int or elements < 0 or not isinstance(key, str):
            raise self.corrupt("a storage without type, key or length")
        start = view[1] if isinstance(view, tuple) and len(view) == 3 else 0
        if type(start) is not int or start < 0:
            raise self.corrupt("a view of a storage without a start")
        storage = Storage(key, STORAGE_DTYPES.get(kind.name), elements, start)
        self.storages[key] = storage
        self.stack.append(storage)

    def tensor(self, arguments: tuple[PickleValue, ...], dtype: str | None) -> StoredTensor:
        storage, offset, shape, stride = arguments[:4]
        if not isinstance(storage, Storage) or type(offset) is not int or offset < 0:
            raise self.corrupt("a tensor without a storage")
        offset += storage.start
        sizes, steps = self.counts(shape), self.counts(stride)
        dtype = dtype or storage.dtype
        if dtype is None or len(sizes) != len(steps) or len(sizes) > MAX_RANK:
            raise self.corrupt("a tensor whose type, shape and strides do not fit each other")
        elements, last = 1, offset
        for size, step in zip(sizes, steps, strict=True):
            elements, last = elements * size, last + (size - 1) * step
        # Strides of 0 would let a small file describe an enormous tensor.
        capacity = storage.elements if storage.dtype else storage.elements // DTYPE_BYTES[dtype]
        if elements and (last >= capacity or elements > capacity):
            raise self.corrupt(f"a tensor of shape {str(sizes)[:80]} that reaches past its storage of {capacity}")
        return StoredTensor(storage, dtype, sizes, steps, offset)

    def counts(self, values: PickleValue) -> tuple[int, ...]:
        if not isinstance(values, tuple) or not all(type(value) is int and 0 <= value < 1 << 62 for value in values):
            raise self.corrupt("a shape that is no tuple of sizes")
        return values


def _ordered_dict(machine: _Machine, *arguments: PickleValue) -> PickleValue:
    target: dict[PickleValue, PickleValue] = {}
    pairs = arguments[0] if arguments else []
    if not isinstance(pairs, list):
        raise machine.corrupt("a dictionary made of something else than a list")
    machine.spend(len(pairs))
    if not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
        raise machine.corrupt("a dictionary made of something else than pairs")
    machine.set_items(target, [item for pair in pairs for item in pair])
    return target


def _default_dict(machine: _Machine, *arguments: PickleValue) -> PickleValue:
    if arguments and not isinstance(arguments[0], GlobalName | None):
        raise machine.unsafe("a defaultdict whose factory is no name")
    return _ordered_dict(machine, *arguments[1:])


def _tuple_of(machine: _Machine, *arguments: PickleValue) -> PickleValue:
    if len(arguments) != 1 or not isinstance(arguments[0], list | tuple):
        raise machine.corrupt("a container made of something else than a list")
    machine.spend(len(arguments[0]))
    return tuple(arguments[0])


def _encode(machine: _Machine, *arguments: PickleValue) -> PickleValue:
    if len(arguments) != 2 or not isinstance(arguments[0], str) or arguments[1] != "latin1":
        raise machine.unsafe("a call of _codecs.encode with another encoding than latin1")
    machine.spend(len(arguments[0]))
    return arguments[0].encode("latin1")


def _array_type(machine: _Machine, *arguments: PickleValue) -> PickleValue:
    code = arguments[0] if arguments else None
    if not isinstance(code, str):
        raise machine.unsafe(f"the numpy type {str(code)[:40]!r}")
    return ArrayType(code)


def _numpy_scalar(machine: _Machine, *arguments: PickleValue) -> PickleValue:
    if len(arguments) != 2 or not isinstance(arguments[0], ArrayType):
        raise machine.corrupt("a numpy number without type or bytes")
    return arguments[0].number(arguments[1]) if isinstance(arguments[1], bytes) else Opaque("numpy.object_")


def _array(_machine: _Machine, *_arguments: PickleValue) -> PickleValue:
    """An array that a state fills later."""
    return Array()


def _array_from_buffer(machine: _Machine, *arguments: PickleValue) -> PickleValue:
    if len(arguments) != 4 or not isinstance(arguments[1], ArrayType):
        raise machine.corrupt("a numpy array without bytes, type, shape and order")
    array = Array()
    machine.fill(array, (1, arguments[2], arguments[1], arguments[3] == "F", arguments[0]))
    return array


def _tensor(machine: _Machine, *arguments: PickleValue) -> PickleValue:
    if len(arguments) < 4:
        raise machine.corrupt("a tensor without storage, offset, shape or strides")
    return machine.tensor(arguments, None)


def _typed_tensor(machine: _Machine, *arguments: PickleValue) -> PickleValue:
    kind = arguments[6] if len(arguments) > 6 else None
    if not isinstance(kind, GlobalName) or kind.name not in TORCH_DTYPES:
        raise machine.corrupt("a tensor of unknown type")
    return machine.tensor(arguments, TORCH_DTYPES[kind.name])


def _parameter(machine: _Machine, *arguments: PickleValue) -> PickleValue:
    if not arguments or not isinstance(arguments[0], StoredTensor):
        raise machine.corrupt("a parameter that is no tensor")
    return arguments[0]


def _tensor_of_type(machine: _Machine, *arguments: PickleValue) -> PickleValue:
    """A tensor with attributes of its own, which are left out: function, class, arguments, state."""
    if len(arguments) != 4 or not isinstance(arguments[2], tuple) or not isinstance(arguments[0], GlobalName):
        raise machine.corrupt("a tensor without function and arguments")
    if not arguments[0].name.startswith("_rebuild_tensor"):
        raise machine.unsafe(f"a tensor made by {arguments[0]}")
    return _CALLS[arguments[0].name](machine, *arguments[2][:10])


_CALLS: dict[str, Callable[..., PickleValue]] = {
    "OrderedDict": _ordered_dict,
    "ParameterDict": _ordered_dict,
    "Size": _tuple_of,
    "set": _tuple_of,
    "frozenset": _tuple_of,
    "defaultdict": _default_dict,
    "encode": _encode,
    "dtype": _array_type,
    "scalar": _numpy_scalar,
    "_reconstruct": _array,
    "_frombuffer": _array_from_buffer,
    "_rebuild_tensor": _tensor,
    "_rebuild_tensor_v2": _tensor,
    "_rebuild_tensor_v3": _typed_tensor,
    "_rebuild_parameter": _parameter,
    "_rebuild_parameter_with_state": _parameter,
    "_rebuild_from_type_v2": _tensor_of_type,
}


def _put(machine: _Machine, key: PickleValue) -> None:
    if not machine.stack or not isinstance(key, int):
        raise machine.corrupt("a memo of nothing")
    machine.memo[key] = machine.stack[-1]


def _get(machine: _Machine, key: PickleValue) -> None:
    if not isinstance(key, int) or key not in machine.memo:
        raise machine.corrupt(f"memo entry {str(key)[:20]}, which was never written")
    machine.stack.append(machine.memo[key])


def _global(machine: _Machine, argument: PickleValue) -> None:
    machine.push_name(*str(argument).split(" ", 1))


def _stack_global(machine: _Machine, _: PickleValue) -> None:
    name, module = machine.pop(), machine.pop()
    machine.push_name(module, name)


def _set_item(machine: _Machine, _: PickleValue) -> None:
    value, key = machine.pop(), machine.pop()
    machine.set_items(machine.stack[-1], [key, value])


def _set_items(machine: _Machine, _: PickleValue) -> None:
    items = machine.pop_mark()
    machine.set_items(machine.stack[-1], items)


def _dict(machine: _Machine, _: PickleValue) -> None:
    items = machine.pop_mark()
    target: dict[PickleValue, PickleValue] = {}
    machine.set_items(target, items)
    machine.stack.append(target)


def _append(machine: _Machine, _: PickleValue) -> None:
    value = machine.pop()
    machine.extend(machine.stack[-1], [value])


def _appends(machine: _Machine, _: PickleValue) -> None:
    items = machine.pop_mark()
    machine.extend(machine.stack[-1], items)


def _tuple_of_last(count: int) -> Callable[[_Machine, PickleValue], None]:
    def action(machine: _Machine, _: PickleValue) -> None:
        items = [machine.pop() for _ in range(count)]
        machine.stack.append(tuple(reversed(items)))

    return action


_CONSTANTS: dict[str, PickleValue] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = {
    "BININT",
    "BININT1",
    "BININT2",
    "LONG1",
    "BINFLOAT",
    "BINUNICODE",
    "SHORT_BINUNICODE",
    "BINUNICODE8",
    "LONG4",
    "BINBYTES",
    "BINBYTES8",
    "BYTEARRAY8",
    "SHORT_BINBYTES",
    "BINSTRING",
    "SHORT_BINSTRING",
}
# A set is kept as a list: what it holds need not be hashable here.
_EMPTY: dict[str, Callable[[], PickleValue]] = {
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_SET": list,
    "EMPTY_TUPLE": tuple,
}
_NOTHING = {"PROTO", "FRAME"}
_ACTIONS: dict[str, Callable[[_Machine, PickleValue], None]] = {
    "MARK": lambda machine, _: machine.marks.append(len(machine.stack)),
    "POP": lambda machine, _: (machine.pop(), None)[1],
    "BINPUT": _put,
    "LONG_BINPUT": _put,
    "MEMOIZE": lambda machine, _: _put(machine, len(machine.memo)),
    "BINGET": _get,
    "LONG_BINGET": _get,
    "GLOBAL": _global,
    "STACK_GLOBAL": _stack_global,
    "SETITEM": _set_item,
    "SETITEMS": _set_items,
    "APPEND": _append,
    "APPENDS": _appends,
    "ADDITEMS": _appends,
    "TUPLE": lambda machine, _: machine.stack.append(tuple(machine.pop_mark())),
    "TUPLE1": _tuple_of_last(1),
    "TUPLE2": _tuple_of_last(2),
    "TUPLE3": _tuple_of_last(3),
    "LIST": lambda machine, _: machine.stack.append(machine.pop_mark()),
    "FROZENSET": lambda machine, _: machine.stack.append(tuple(machine.pop_mark())),
    "DICT": _dict,
    "POP_MARK": lambda machine, _: (machine.pop_mark(), None)[1],
    "REDUCE": lambda machine, _: machine.call(),
    "NEWOBJ": lambda machine, _: machine.new(),
    "BUILD": lambda machine, _: machine.build(),
    "BINPERSID": lambda machine, _: machine.load_storage(machine.pop()),
}
