"""The names that a weight file's pickle may hold, and the tensors' descriptions that come of them.

Nothing here is imported or called: a name is looked up in these tables, and any other is refused by the reader.
"""

from __future__ import annotations

from dataclasses import dataclass

STORAGE_DTYPES = {
    "DoubleStorage": "F64",
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
}
TORCH_DTYPES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "uint16": "U16",
    "uint32": "U32",
    "uint64": "U64",
    "bool": "BOOL",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
}
PLAIN = {
    ("collections", "OrderedDict"),
    ("torch", "Size"),
    ("collections", "defaultdict"),
    ("builtins", "set"),
    ("__builtin__", "set"),
    ("builtins", "frozenset"),
    ("__builtin__", "frozenset"),
    ("_codecs", "encode"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.numeric", "_frombuffer"),
    ("numpy._core.numeric", "_frombuffer"),
    ("torch.nn.modules.container", "ParameterDict"),
    ("torch._utils", "_rebuild_tensor"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_tensor_v3"),
    ("torch._utils", "_rebuild_parameter"),
    ("torch._utils", "_rebuild_parameter_with_state"),
    ("torch._tensor", "_rebuild_from_type_v2"),
    ("torch.storage", "UntypedStorage"),
}


@dataclass(frozen=True, slots=True)
class GlobalName:
    """A global that the pickle names; it was looked up in a table, not imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(frozen=True, slots=True)
class Storage:
    """A run of numbers that lies outside the pickle, under `key`. `dtype` is None where the tensor says it.

    Attributes:
        key: its name.
        dtype: safetensors' name of its type.
        elements: how many there are.
        start: where a view into another storage begins, as files from torch before 0.4 have them.
        inline: the numbers themselves, of an array that lies in the pickle.
    """

    key: str
    dtype: str | None
    elements: int
    start: int = 0
    inline: bytes | None = None


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor's place in a storage: `offset` and `stride` count elements."""

    storage: Storage
    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
