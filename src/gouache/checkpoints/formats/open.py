"""Opens a weight file by what it holds, never by its suffix."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gouache.checkpoints.formats.header import DOWNLOAD_AGAIN, Header, read_header
from gouache.errors import CorruptCheckpoint, GouacheError, ModelNotFound, UnknownFamily, UnsafeCheckpoint

if TYPE_CHECKING:
    from gouache.checkpoints.formats.safetensors import WeightSource

ZIP = b"PK\x03\x04"
LEGACY_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""`torch.save` before 1.6 starts with this pickled number."""


def open_header(path: Path) -> Header:
    """Names and shapes of a weight file of any kind; no tensor is read, and torch is not needed.

    Raises:
        ModelNotFound: there is no such file.
        CorruptCheckpoint: it is damaged, or no weight file at all.
        UnsafeCheckpoint: it would have to be unpickled.
        UnknownFamily: a format that gouache doesn't read.
    """
    if _is_zip(path):
        from gouache.checkpoints.formats.torch_zip import TensorZip

        return TensorZip(path).header
    return read_header(path)


def open_source(path: Path) -> WeightSource:
    """Open a weight file for reading tensors; errors as in `open_header`."""
    if _is_zip(path):
        from gouache.checkpoints.formats.torch_zip import TensorZip

        return TensorZip(path)
    from gouache.checkpoints.formats.safetensors import SafetensorsFile

    return SafetensorsFile(path)


def _is_zip(path: Path) -> bool:
    """True for a torch zip, False for what may be safetensors; other formats are named in the error."""
    if not path.is_file():
        raise ModelNotFound(str(path), given="no file there", expected="a weight file", cure="Check the path.")
    with path.open("rb") as file:
        start = file.read(256)
    error = _other_format(start, path)
    if error is not None:
        raise error
    return start.startswith(ZIP)


def _other_format(start: bytes, path: Path) -> GouacheError | None:
    where, expected = str(path), "a .safetensors or .ckpt file"
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
    if start.startswith(b"GGUF"):
        return UnknownFamily(where, given="a GGUF file", expected=expected, cure="Get the .safetensors of this model.")
    if start.startswith(LEGACY_TORCH) or start[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        return UnsafeCheckpoint(
            where,
            given="a bare pickle, as torch wrote before 1.6",
            expected=f"{expected}; nothing was executed",
            cure="Get the model as .safetensors. If you wrote the file yourself, save it again with a newer torch.",
        )
    if not start:
        return CorruptCheckpoint(where, given="an empty file", expected=expected, cure=DOWNLOAD_AGAIN)
    return None
