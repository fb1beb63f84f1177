"""Captioned pictures in the forms that people have them, read through the `datasets` library.

A folder with `metadata.jsonl` or `.csv`, or `.txt` (or `.caption`) files next to the pictures; kohya's folders
`10_name`, whose name is the caption of pictures without one; parquet; webdataset shards (`.tar`); a data set on the
hub. Everything is streamed, one picture at a time; nothing is written. Alpha is kept. What can't be used is counted and
listed in a `ReadReport`, never left out silently.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gouache.data.buckets import Bucket, make_buckets, nearest_bucket
from gouache.data.caption_text import LEGACY, decode_text, known_encoding
from gouache.data.drawing import Picture
from gouache.errors import DataError, MissingDependency, PictureError
from gouache.pipeline.inputs.images import read_with_notes

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif")
CAPTION_SUFFIXES = (".txt", ".caption")
_KOHYA = re.compile(r"(\d{1,3})_(.+)")
CAPTION_COLUMNS = ("captions", "caption", "text", "prompt", "txt", "label_text", "description")
PICTURE_COLUMNS = ("image", "picture", "img", "jpg", "jpeg", "png", "webp")
FILE_COLUMNS = ("file_name", "file", "path", "image")
LISTED = 20
MOST_SIBLINGS = 500
"""Texts of a folder that are looked at to decide what one of them is in."""
LARGEST_SIDE = 16_384
Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class CaptionedPicture:
    """One usable picture.

    Attributes:
        key: its name in the source: a file, or a row number.
        picture: uint8 [H,W,4], straight alpha (255 where the file has none).
        captions: one or more, none empty.
        repeats: how often an epoch shows it beside others, 1 or more.
    """

    key: str
    picture: Picture
    captions: tuple[str, ...]
    repeats: int = 1


@dataclass
class ReadReport:
    """What a reader met so far.

    Attributes:
        good: usable pictures.
        broken: number that can't be decoded or found.
        empty: number without a caption.
        listed: the first 20 skipped ones as (key, reason).
        notes: what was concluded or left aside on the way -> how often: a legacy encoding, an animation's first frame.
    """

    good: int = 0
    broken: int = 0
    empty: int = 0
    listed: list[tuple[str, str]] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)

    def skip(self, key: str, reason: str, *, empty: bool = False) -> None:
        """Count one that can't be used."""
        self.empty += empty
        self.broken += not empty
        if len(self.listed) < LISTED:
            self.listed.append((key, reason))

    def summary(self) -> str:
        """A few lines for people."""
        lines = [f"{self.good} pictures, {self.broken} broken, {self.empty} without a caption"]
        lines += [f"  skipped {key}: {reason}" for key, reason in self.listed]
        left = self.broken + self.empty - len(self.listed)
        lines += [f"  and {left} more"] if left > 0 else []
        return "\n".join([*lines, *(f"  {count}: {note}" for note, count in self.notes.items())])


def read_pictures(
    source: str | Path, report: ReadReport, *, split: str = "train", encoding: str | None = None
) -> Iterator[CaptionedPicture]:
    """Stream the captioned pictures of a source, in its order.

    Args:
        source: a folder, a `.parquet` or `.tar` file, or the name of a data set on the hub (``"owner/name"``).
        report: filled while reading.
        split: of a data set on the hub.
        encoding: of texts in files (``"gbk"``, ``"cp1252"`` ...); None decides for each, see `caption_text`.

    Raises:
        DataError: no such source, it holds no pictures or no captions at all, none of its pictures is usable
            (raised at the end, with the report's first reason), or a caption's encoding can't be decided.
        MissingDependency: the package `datasets` is not installed.
    """
    texts = _Texts(report, None if encoding is None else known_encoding(encoding))
    for key, content, captions in _rows(source, split, texts):
        if not captions:
            report.skip(key, "no caption", empty=True)
            continue
        try:
            picture, notes = decode_with_notes(content)
        except DataError as error:
            report.skip(key, str(error.given))
            continue
        report.good += 1
        report.notes.update(notes)
        yield CaptionedPicture(key, picture, captions, repeats_of(key)[0])
    if report.good == 0:
        first = ": ".join(report.listed[0]) if report.listed else "nothing was read"
        given = f"{report.broken} broken and {report.empty} without a caption ({first})"
        raise DataError(str(source), given=given, expected="at least one captioned picture", cure="Check the source.")


def decode(content: bytes | Path) -> Picture:
    """Decode a picture file as painting does: upright, sRGB, alpha kept; of an animation the first frame.
    uint8 [H,W,4]

    Raises:
        DataError: no picture, a truncated one, or one over 16,384 pixels a side.
    """
    return decode_with_notes(content)[0]


def decode_with_notes(content: bytes | Path) -> tuple[Picture, tuple[str, ...]]:
    """As `decode`, with notes on what was left aside."""
    try:
        picture, notes = read_with_notes(content, max_pixels=LARGEST_SIDE**2, first_frame=True)
    except PictureError as error:
        raise DataError("picture", given=error.given, expected=error.expected, cure="Remove or replace it.") from error
    if max(picture.size) > LARGEST_SIDE:
        raise DataError("picture", given=f"{picture.size} pixels", expected=f"at most {LARGEST_SIDE} a side")
    return np.asarray(picture.convert("RGBA")), notes


@dataclass
class _Texts:
    """Reads the text files of one source, and notes which encodings were concluded.

    Attributes:
        report: gets the notes.
        encoding: of all of them, if the user said so.
        siblings: text files of the same source; where a text alone doesn't tell, what the others are in decides.
    """

    report: ReadReport
    encoding: str | None
    siblings: tuple[Path, ...] = ()

    def read(self, path: Path) -> str:
        try:
            return self.decoded(path.read_bytes(), str(path))
        except OSError as error:
            raise DataError(str(path), given=error.strerror or str(error), expected="a readable text") from error

    def decoded(self, data: bytes, where: str) -> str:
        try:
            found = decode_text(data, where, self.encoding)
        except DataError:
            if self.encoding is not None or not self.siblings:
                raise
            found = decode_text(data, where, among=self._told_by_others())
        if found.is_legacy and self.encoding is None:
            self.report.notes[f"texts read as {found.encoding}, concluded from their bytes (--encoding names it)"] += 1
        return found.text

    def _told_by_others(self) -> tuple[str, ...]:
        """Legacy encodings of the source's other texts, as far as these tell theirs."""
        told = set()
        for path in self.siblings[:MOST_SIBLINGS]:
            with contextlib.suppress(DataError, OSError):
                told.add(decode_text(path.read_bytes(), str(path)).encoding)
        return tuple(name for name in LEGACY if name in told) or LEGACY


def _rows(source: str | Path, split: str, texts: _Texts) -> Iterator[tuple[str, bytes | Path, tuple[str, ...]]]:
    path = Path(source)
    if path.is_dir():
        return _folder_rows(path, texts)
    if path.suffix == ".parquet" or path.suffix == ".tar":
        if not path.is_file():
            raise DataError(str(path), given="no such file", expected="a data file", cure="Check the path.")
        return _table_rows("parquet" if path.suffix == ".parquet" else "webdataset", [path], texts)
    if path.exists() or str(source).count("/") != 1 or str(source).startswith((".", "/")):
        raise DataError(
            str(source), given="no such folder", expected="a folder, .parquet, .tar, or owner/name on the hub"
        )
    return _hub_rows(str(source), split, texts)


def _folder_rows(folder: Path, texts: _Texts) -> Iterator[tuple[str, bytes | Path, tuple[str, ...]]]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    tables = {kind: [path for path in files if path.suffix == kind] for kind in (".parquet", ".tar")}
    metadata = [path for path in files if path.name in ("metadata.jsonl", "metadata.csv")]
    if metadata:
        for path in metadata:
            yield from _metadata_rows(path, texts)
    elif tables[".parquet"]:
        yield from _table_rows("parquet", tables[".parquet"], texts)
    elif tables[".tar"]:
        yield from _table_rows("webdataset", tables[".tar"], texts)
    else:
        texts.siblings = tuple(path for path in files if path.suffix in CAPTION_SUFFIXES)
        yield from _text_rows(folder, files, texts)


def _text_rows(folder: Path, files: list[Path], texts: _Texts) -> Iterator[tuple[str, bytes | Path, tuple[str, ...]]]:
    """Pictures with a text of their name next to them, one caption a line, or in a folder that says what they are."""
    pictures = [path for path in files if path.suffix.lower() in PICTURE_SUFFIXES]
    if not pictures:
        raise DataError(str(folder), given="no picture", expected="pictures, parquet or webdataset shards")
    if not any(text_beside(path) or repeats_of(path.relative_to(folder).as_posix())[1] for path in pictures):
        cure = "Add metadata.jsonl with file_name and text, or a .txt beside each picture."
        raise DataError(str(folder), given=f"{len(pictures)} pictures, no caption", expected="captions", cure=cure)
    for path in pictures:
        text, key = text_beside(path), path.relative_to(folder).as_posix()
        said = texts.read(text).splitlines() if text is not None else repeats_of(key)[1] or None
        yield key, path, _captions(said, texts, str(text or path))


def text_beside(picture: Path) -> Path | None:
    """The file with a picture's captions."""
    named = (picture.with_suffix(suffix) for suffix in CAPTION_SUFFIXES)
    return next((path for path in named if path.is_file()), None)


def repeats_of(key: str) -> tuple[int, str]:
    """What the folder of a picture says, as kohya's sd-scripts name them: "10_blue cat/1.png" gives (10, "blue cat").

    Another folder gives (1, "").
    """
    parts = key.split("/")
    found = _KOHYA.fullmatch(parts[-2]) if len(parts) > 1 else None
    return (max(int(found[1]), 1), found[2].strip()) if found else (1, "")


def _metadata_rows(path: Path, texts: _Texts) -> Iterator[tuple[str, bytes | Path, tuple[str, ...]]]:
    kind = "json" if path.suffix == ".jsonl" else "csv"
    with _in_utf8(path, texts) as table:
        yield from _named_rows(path, _load(kind, [table]), texts)


@contextlib.contextmanager
def _in_utf8(path: Path, texts: _Texts) -> Iterator[Path]:
    """The table itself if it is plain UTF-8, else a copy that is."""
    data = path.read_bytes()
    text = texts.decoded(data, str(path))
    if data == (plain := text.encode("utf-8")):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="gouache-") as folder:
        copy = Path(folder) / path.name
        copy.write_bytes(plain)
        yield copy


def _named_rows(path: Path, rows: Iterable[Row], texts: _Texts) -> Iterator[tuple[str, bytes | Path, tuple[str, ...]]]:
    for number, row in enumerate(_checked(rows, path)):
        name, captions = _first(row, FILE_COLUMNS), _first(row, CAPTION_COLUMNS)
        if number == 0 and (name is None or captions is None):
            given = f"columns {', '.join(row)}"
            raise DataError(str(path), given=given, expected="columns file_name and text (or caption, captions)")
        # Resolved, so that a metadata file can't reach out of its folder.
        picture = (path.parent / str(name)).resolve()
        inside = picture.is_relative_to(path.parent.resolve())
        yield str(name), picture if inside else b"", _captions(captions, texts, str(path))


def _table_rows(kind: str, paths: list[Path], texts: _Texts) -> Iterator[tuple[str, bytes | Path, tuple[str, ...]]]:
    yield from _columns(_checked(_load(kind, paths), paths[0]), str(paths[0]), texts)


def _hub_rows(name: str, split: str, texts: _Texts) -> Iterator[tuple[str, bytes | Path, tuple[str, ...]]]:
    offline = {os.environ.get(key, "") for key in ("GOUACHE_OFFLINE", "HF_HUB_OFFLINE")} - {"", "0"}
    if offline:
        raise DataError(name, given="offline mode", expected="a local folder, or leave to use the hub")
    library = _datasets()
    try:
        rows = library.load_dataset(name, split=split, streaming=True)
    except (OSError, ValueError, library.exceptions.DatasetsError) as error:
        raise DataError(name, given=str(error).splitlines()[0], expected="a data set on the hub") from error
    yield from _columns(_checked(_undecoded(rows), Path(name)), name, texts)


def _columns(rows: Iterable[Row], where: str, texts: _Texts) -> Iterator[tuple[str, bytes | Path, tuple[str, ...]]]:
    for number, row in enumerate(rows):
        content, captions = _bytes(_first(row, PICTURE_COLUMNS)), _first(row, CAPTION_COLUMNS)
        if captions is None and isinstance(row.get("json"), dict):
            captions = _first(row["json"], CAPTION_COLUMNS)
        if number == 0 and content is None:
            given = f"columns {', '.join(row)}"
            raise DataError(where, given=given, expected="a picture column: " + ", ".join(PICTURE_COLUMNS))
        yield str(row.get("__key__", number)), content or b"", _captions(captions, texts, where)


def _bytes(value: object) -> bytes | Path | None:
    if isinstance(value, Mapping):
        held, path = value.get("bytes"), value.get("path")
        if held is not None or not path:
            return held
        return _fetched(path) if "://" in path else Path(path)
    return value if isinstance(value, bytes) else None


def _fetched(address: str) -> bytes:
    """A file of a data set on the hub, by the address that `datasets` gives it."""
    import fsspec

    try:
        with fsspec.open(address, "rb") as stream:
            content: bytes = stream.read()
    except Exception as error:  # of whichever library carries the protocol
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(address, given=reason, expected="an answer from the hub", cure="Try again.") from error
    return content


def _captions(value: object, texts: _Texts, where: str) -> tuple[str, ...]:
    if isinstance(value, bytes):
        value = texts.decoded(value, where)
    if isinstance(value, str):
        value = value.removeprefix("\ufeff")
    if isinstance(value, str) and value.startswith("["):
        try:
            value = json.loads(value)
        except ValueError:
            value = [value]
    several = value if isinstance(value, list | tuple) else [value]
    return tuple(text.strip() for text in several if isinstance(text, str) and text.strip())


def _first(row: Row, names: tuple[str, ...]) -> Any:
    return next((row[name] for name in names if row.get(name) is not None), None)


def _load(kind: str, paths: list[Path]) -> Iterable[Row]:
    library = _datasets()
    try:
        rows = library.load_dataset(kind, data_files=[str(path) for path in paths], split="train", streaming=True)
        return _undecoded(rows)
    except (OSError, ValueError, library.exceptions.DatasetsError) as error:
        raise DataError(str(paths[0]), given=str(error).splitlines()[0], expected=f"a {kind} file") from error


def _undecoded(rows: Any) -> Iterable[Row]:
    """The rows with pictures as bytes: a broken one must not stop the reader, and alpha must stay."""
    found: Iterable[Row] = rows.decode(False) if rows.features else rows
    return found


def _checked(rows: Iterable[Row], path: Path) -> Iterator[Row]:
    """The rows, with a damaged table turned into a typed error."""
    library = _datasets()
    try:
        yield from rows
    except UnicodeDecodeError as error:
        cure = "Unpack it into a folder, whose texts may have other encodings, or write its texts in UTF-8."
        given = f"a text that isn't {error.encoding}: {error.reason}"
        raise DataError(str(path), given=given, expected="texts in UTF-8", cure=cure) from error
    except (OSError, ValueError, NotImplementedError, library.exceptions.DatasetsError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(str(path), given=reason, expected="a readable table of pictures") from error


def _datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        cure = "Install it with `pip install 'gouache[data]'`."
        raise MissingDependency("datasets", given=str(error), expected="the package datasets", cure=cure) from error
    return datasets


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a source holds.

    Attributes:
        captions: of all usable pictures together.
        with_alpha: pictures that are transparent somewhere.
        buckets: pictures by aspect-ratio bucket, the fullest first.
    """

    captions: int
    with_alpha: int
    buckets: dict[Bucket, int]


def inspect_pictures(
    source: str | Path, report: ReadReport, *, size: int = 512, encoding: str | None = None
) -> Inspection:
    """Read every picture once and count.

    Args:
        source: as for `read_pictures`, whose errors it raises.
        report: filled with what was skipped.
        size: side of the square bucket.
        encoding: of captions in text files, as for `read_pictures`.
    """
    buckets, counts = make_buckets(size), Counter[Bucket]()
    captions = with_alpha = 0
    for item in read_pictures(source, report, encoding=encoding):
        captions += len(item.captions)
        with_alpha += bool((item.picture[..., 3] < 255).any())
        counts[nearest_bucket(item.picture.shape[1], item.picture.shape[0], buckets)] += 1
    return Inspection(captions, with_alpha, dict(counts.most_common()))
