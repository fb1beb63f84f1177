"""Rows of tables of pictures, through the `datasets` library: parquet, webdataset, JSON, CSV, the hub."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from gouache.environment import Variable
from gouache.errors import DataError, MissingDependency

Row = Mapping[str, Any]


def load(kind: str, paths: list[Path]) -> Iterable[Row]:
    """The rows of files of one kind, as `datasets` names them: parquet, webdataset, json, csv."""
    library = datasets_library()
    try:
        rows = library.load_dataset(kind, data_files=[str(path) for path in paths], split="train", streaming=True)
        return _undecoded(rows)
    except (OSError, ValueError, library.exceptions.DatasetsError) as error:
        raise DataError(str(paths[0]), given=str(error).splitlines()[0], expected=f"a {kind} file") from error


def _undecoded(rows: Any) -> Iterable[Row]:
    """The rows with pictures as bytes: a broken one must not stop the reader, and alpha must stay."""
    found: Iterable[Row] = rows.decode(False) if rows.features else rows
    return found


def checked(rows: Iterable[Row], path: Path) -> Iterator[Row]:
    """The rows, with a damaged table turned into a typed error."""
    library = datasets_library()
    try:
        yield from rows
    except UnicodeDecodeError as error:
        cure = "Unpack it into a folder, whose texts may have other encodings, or write its texts in UTF-8."
        given = f"a text that isn't {error.encoding}: {error.reason}"
        raise DataError(str(path), given=given, expected="texts in UTF-8", cure=cure) from error
    except (OSError, ValueError, NotImplementedError, library.exceptions.DatasetsError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(str(path), given=reason, expected="a readable table of pictures") from error


def datasets_library() -> Any:
    """The package `datasets`, which is optional."""
    try:
        import datasets
    except ImportError as error:
        cure = "Install it with `pip install 'gouache[data]'`."
        raise MissingDependency("datasets", given=str(error), expected="the package datasets", cure=cure) from error
    return datasets


def hub(name: str, split: str) -> Iterator[Row]:
    """The rows of a data set on the hub.

    Raises:
        DataError: offline, or no such data set.
    """
    if Variable.OFFLINE.is_on or Variable.HF_HUB_OFFLINE.is_on:
        raise DataError(name, given="offline mode", expected="a local folder, or leave to use the hub")
    library = datasets_library()
    try:
        rows = library.load_dataset(name, split=split, streaming=True)
    except (OSError, ValueError, library.exceptions.DatasetsError) as error:
        raise DataError(name, given=str(error).splitlines()[0], expected="a data set on the hub") from error
    return checked(_undecoded(rows), Path(name))


def fetched(address: str) -> bytes:
    """A file of a data set on the hub, by the address that `datasets` gives it."""
    import fsspec

    try:
        with fsspec.open(address, "rb") as stream:
            content: bytes = stream.read()
    except Exception as error:  # of whichever library carries the protocol
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(address, given=reason, expected="an answer from the hub", cure="Try again.") from error
    return content
