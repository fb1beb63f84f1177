"""What trainers leave in a pickle beside its tensors: settings, callbacks, paths, numpy arrays. None of it is run.

Names are compared with closed tables and never imported. An object of a known class becomes an `Opaque`: a thing with a
name, whose contents are read past. Numpy arrays lie inside the pickle and are described as tensors are, so that a
state dict of arrays can be read like one of tensors.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass

NUMBER_FORMATS = {
    "f2": "<e",
    "f4": "<f",
    "f8": "<d",
    "i1": "<b",
    "i2": "<h",
    "i4": "<i",
    "i8": "<q",
    "u1": "<B",
    "u2": "<H",
    "u4": "<I",
    "u8": "<Q",
    "b1": "<?",
}
"""numpy's code of a type -> that of `struct`."""
ARRAY_DTYPES = {
    "f2": "F16",
    "f4": "F32",
    "f8": "F64",
    "i1": "I8",
    "i2": "I16",
    "i4": "I32",
    "i8": "I64",
    "u1": "U8",
    "u2": "U16",
    "u4": "U32",
    "u8": "U64",
    "b1": "BOOL",
}
"""numpy's code of a type -> safetensors' name of it."""

BUILTIN_TYPES = [
    "bool",
    "bytearray",
    "bytes",
    "complex",
    "dict",
    "float",
    "frozenset",
    "int",
    "list",
    "object",
    "range",
    "set",
    "slice",
    "str",
    "tuple",
    "unicode",
    "long",
]
FACTORIES = {
    *((module, name) for module in ("builtins", "__builtin__") for name in BUILTIN_TYPES if "set" not in name),
    ("argparse", "Namespace"),
    ("collections", "Counter"),
    ("collections", "deque"),
    ("types", "SimpleNamespace"),
    *(
        (module, name)
        for module in ("pathlib", "pathlib._local")
        for name in ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")
    ),
    *(("datetime", name) for name in ("date", "datetime", "time", "timedelta", "timezone")),
    ("decimal", "Decimal"),
    ("fractions", "Fraction"),
    ("uuid", "UUID"),
    ("torch", "device"),
    ("easydict", "EasyDict"),
    ("addict.addict", "Dict"),
    ("attrdict.dictionary", "AttrDict"),
    ("diffusers.configuration_utils", "FrozenDict"),
}
"""Classes whose objects are plain values; what they hold is of no use here."""
NAMES = {
    *(("typing", name) for name in ("Any", "Dict", "List", "Optional", "Tuple", "Union")),
    ("enum", "Enum"),
    ("numpy", "ndarray"),
    *(("numpy", name) for name in ("float16", "float32", "float64", "int32", "int64", "uint8", "bool_", "bool")),
    ("torch", "Tensor"),
    ("torch.nn.parameter", "Parameter"),
    ("torch", "strided"),
}
"""Types that stay names."""
PACKAGES = (
    "hydra",
    "lightning",
    "lightning_fabric",
    "lightning_utilities",
    "ml_collections",
    "omegaconf",
    "pytorch_lightning",
    "torch.optim",
    "yacs",
)
"""Trainers' packages. Their classes are known; their functions are refused as any other."""


@dataclass(frozen=True, slots=True)
class Opaque:
    """An object of a known class; `name` is the class. What it holds was read past."""

    name: str


@dataclass(slots=True)
class ArrayType:
    """numpy's description of a type.

    Attributes:
        code: for example ``"f4"``; a type without a name in the tables holds no numbers.
        big: whether the high byte comes first.
    """

    code: str
    big: bool = False

    @property
    def dtype(self) -> str | None:
        """safetensors' name; None for text, objects and records, and for numbers with the high byte first."""
        return None if self.big else ARRAY_DTYPES.get(self.code)

    def number(self, data: bytes) -> int | float | Opaque:
        """One number from its bytes.

        Raises:
            struct.error: too few bytes, or too many.
        """
        layout = NUMBER_FORMATS.get(self.code)
        if layout is None:
            return Opaque(f"numpy.{self.code[:20]}")
        value: int | float = struct.unpack(layout.replace("<", ">") if self.big else layout, data)[0]
        return value


@dataclass(slots=True)
class Array:
    """A numpy array; its numbers lie in the pickle.

    Attributes:
        shape: its sizes.
        dtype: safetensors' name of its type; None for an array that holds no numbers.
        data: the numbers, the last axis fastest unless `fortran`.
        fortran: whether the first axis is the fastest.
    """

    shape: tuple[int, ...] = ()
    dtype: str | None = None
    data: bytes = b""
    fortran: bool = False

    def fill(self, shape: tuple[int, ...], kind: ArrayType, data: object, *, fortran: bool) -> bool:
        """Set what an array holds; False where shape, type and bytes don't fit each other."""
        self.shape, self.fortran = shape, fortran
        if kind.dtype is None or not isinstance(data, bytes | bytearray | str):
            return True  # of text or objects: a list lies there
        self.dtype = kind.dtype
        # Python 2 wrote bytes as text of latin-1.
        self.data = data.encode("latin-1") if isinstance(data, str) else bytes(data)
        return len(self.data) == math.prod(shape) * int(kind.code[1:])

    @property
    def stride(self) -> tuple[int, ...]:
        """Elements from one index to the next along each axis."""
        sizes = self.shape if self.fortran else self.shape[::-1]
        steps = [math.prod(sizes[:axis]) for axis in range(len(sizes))]
        return tuple(steps if self.fortran else steps[::-1])


def is_leftover(module: str, name: str) -> bool:
    """Whether a global is one that trainers leave beside the tensors: a class, never a function."""
    known = (module, name) in FACTORIES or (module, name) in NAMES
    package = any(module == one or module.startswith(f"{one}.") for one in PACKAGES)
    return known or (package and name.isidentifier() and name.lstrip("_")[:1].isupper())


def may_be_called(module: str, name: str, arguments: tuple[object, ...]) -> bool:
    """Whether a pickle may make an object of such a class by a call: plain values, and members of enumerations."""
    member = len(arguments) == 1 and isinstance(arguments[0], str | int)
    return (module, name) in FACTORIES or (is_leftover(module, name) and (module, name) not in NAMES and member)
