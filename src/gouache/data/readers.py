"""Captioned pictures in the forms that people have them, read through the `datasets` library.

A folder with `metadata.jsonl` or `.csv`, or `.txt` (or `.caption`) files next to the pictures; kohya's folders
`10_name`, whose name is the caption of pictures without one; parquet; webdataset shards (`.tar`); a data set on the
hub; each with masks and conditions, if it has any. Everything is streamed, one picture at a time; nothing is written.
Alpha is kept. What can't be used is counted and listed in a `ReadReport`, never left out silently.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from gouache.colours import Picture
from gouache.data.buckets import Bucket, make_buckets, nearest_bucket
from gouache.data.caption_text import known_encoding
from gouache.data.subsets.planes import CAPTION_SUFFIXES, Mask, MaskSource, Planes, in_folder
from gouache.data.tables import Row, checked, fetched, hub, load
from gouache.data.texts import Texts
from gouache.errors import DataError, PictureError
from gouache.pipeline.inputs.images import read_with_notes

_KOHYA = re.compile(r"(\d{1,3})_(.+)")
INSTRUCTION_COLUMNS = ("edit_prompt", "instruction", "edit")
CAPTION_COLUMNS = ("captions", "caption", *INSTRUCTION_COLUMNS, "text", "prompt", "txt", "label_text", "description")
EDITED_COLUMNS = ("edited_image", "target_image", "target_img", "output_image")
PICTURE_COLUMNS = (*EDITED_COLUMNS, "image", "picture", "img", "jpg", "jpeg", "png", "webp")
FILE_COLUMNS = ("file_name", "file", "path", "image", *EDITED_COLUMNS)
CONDITION_COLUMNS = (
    "conditioning_image",
    "condition",
    "control_image",
    "input_image",
    "original_image",
    "source_image",
    "source_img",
)
MASK_COLUMNS = ("mask", "mask_image", "mask_img", "loss_mask")
REGULARISATION = ("reg", "regularisation", "regularization")
"""Folders of pictures of the class, which are kept from being forgotten (Ruiz et al. 2023, section 3.2)."""
SAY_NOTHING = ("images", "image", "img", "imgs", "pictures", "photos", "data", "dataset", "train", "test", "validation")
"""Names of folders that say nothing about their pictures."""
LISTED = 20
LARGEST_SIDE = 16_384
Content = bytes | Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How a source is read.

    Attributes:
        split: of a data set on the hub.
        encoding: of texts in files (``"gbk"``, ``"cp1252"`` ...); None decides for each, see `caption_text`.
        caption_suffixes: of the texts beside pictures, the first that is there counts.
        missing: caption of pictures without one; ``{folder}`` in it is the name of the folder they are in.
        masks: where masks come from.
        conditions: a folder that holds a condition for every picture, by name; None looks beside the pictures.
        table: kohya's JSON of captions by file.
    """

    split: str = "train"
    encoding: str | None = None
    caption_suffixes: tuple[str, ...] = CAPTION_SUFFIXES
    missing: str = ""
    masks: MaskSource = "files"
    conditions: Path | None = None
    table: Path | None = None


AS_USUAL = Reading()


@dataclass(frozen=True, slots=True)
class Found:
    """A picture that a source names, not yet decoded; `Content` is its bytes or where they are."""

    key: str
    content: Content
    captions: tuple[str, ...]
    mask: Content | None = None
    condition: Content | None = None


@dataclass(frozen=True, slots=True)
class CaptionedPicture:
    """One usable picture.

    Attributes:
        key: its name in the source: a file, or a row number.
        picture: uint8 [H,W,4], straight alpha (255 where the file has none).
        captions: one or more, none empty.
        repeats: how often an epoch shows it beside others, 1 or more.
        mask: where the loss counts, 255 wholly and 0 not at all, uint8 [H,W] of the picture's shape at any size.
        condition: what it is painted from, uint8 [H,W,4] likewise.
        regularisation: it is a picture of the class, not of what is to be learnt.
    """

    key: str
    picture: Picture
    captions: tuple[str, ...]
    repeats: int = 1
    mask: Mask | None = None
    condition: Picture | None = None
    regularisation: bool = False


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


def read_pictures(source: str | Path, report: ReadReport, reading: Reading = AS_USUAL) -> Iterator[CaptionedPicture]:
    """Stream the captioned pictures of a source, in its order.

    Args:
        source: a folder, a `.parquet` or `.tar` file, or the name of a data set on the hub (``"owner/name"``).
        report: filled while reading.
        reading: how captions, masks and conditions are found.

    Raises:
        DataError: no such source, it holds no pictures or no captions at all, none of its pictures is usable
            (raised at the end, with the report's first reason), or a caption's encoding can't be decided.
        MissingDependency: the package `datasets` is not installed.
    """
    before = report.good
    opened = _Opened(report, reading, Texts(report.notes, reading.encoding and known_encoding(reading.encoding)))
    for found in _rows(source, opened):
        captions = found.captions
        if not captions and reading.missing:
            folder = Path(source).joinpath(found.key).parent.name
            captions = (reading.missing.replace("{folder}", folder_words(folder) or folder),)
            report.notes[f"without a caption of their own, captioned {captions[0]!r}"] += 1
        if not captions:
            report.skip(found.key, "no caption", empty=True)
            continue
        try:
            picture, notes = decode_with_notes(found.content)
            mask, condition, picture = _planes(found, picture, reading)
        except DataError as error:
            report.skip(found.key, str(error.given))
            continue
        report.good += 1
        report.notes.update((*notes, *_belonging(mask, condition)))
        is_class = any(part in REGULARISATION for part in found.key.split("/")[:-1])
        if is_class:
            report.notes["regularisation pictures"] += 1
        yield CaptionedPicture(found.key, picture, captions, repeats_of(found.key)[0], mask, condition, is_class)
    if report.good == before:
        first = ": ".join(report.listed[0]) if report.listed else "nothing was read"
        given = f"{report.broken} broken and {report.empty} without a caption ({first})"
        raise DataError(str(source), given=given, expected="at least one captioned picture", cure="Check the source.")


def _belonging(mask: Mask | None, condition: Picture | None) -> tuple[str, ...]:
    return (*(["with a mask"] if mask is not None else []), *(["with a condition"] if condition is not None else []))


def _planes(found: Found, picture: Picture, reading: Reading) -> tuple[Mask | None, Picture | None, Picture]:
    """Mask, condition, and the picture itself, which is opaque where its alpha is a mask."""
    condition = decode(found.condition) if found.condition is not None else None
    if reading.masks == "alpha":
        return picture[..., 3], condition, np.concatenate([picture[..., :3], np.full_like(picture[..., 3:], 255)], 2)
    if reading.masks == "conditions":
        return (None if condition is None else condition[..., 0]), None, picture
    if reading.masks == "none" or found.mask is None:
        return None, condition, picture
    # As a picture on black: white or opaque counts, black or transparent does not.
    mask = decode(found.mask).astype(np.uint16)
    return ((mask[..., :3].max(axis=2) * mask[..., 3] + 127) // 255).astype(np.uint8), condition, picture


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


@dataclass(frozen=True, slots=True)
class _Opened:
    """What the rows of one source are read with."""

    report: ReadReport
    reading: Reading
    texts: Texts


def _rows(source: str | Path, opened: _Opened) -> Iterator[Found]:
    path = Path(source)
    if path.is_dir():
        return _folder_rows(path, opened)
    if path.suffix == ".parquet" or path.suffix == ".tar":
        if not path.is_file():
            raise DataError(str(path), given="no such file", expected="a data file", cure="Check the path.")
        return _table_rows("parquet" if path.suffix == ".parquet" else "webdataset", [path], opened)
    if path.exists() or str(source).count("/") != 1 or str(source).startswith((".", "/")):
        raise DataError(
            str(source), given="no such folder", expected="a folder, .parquet, .tar, or owner/name on the hub"
        )
    return _columns(hub(str(source), opened.reading.split), str(source), opened)


def _folder_rows(folder: Path, opened: _Opened) -> Iterator[Found]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    tables = {kind: [path for path in files if path.suffix == kind] for kind in (".parquet", ".tar")}
    metadata = [path for path in files if path.name in ("metadata.jsonl", "metadata.csv")]
    if opened.reading.table is not None:
        yield from _listed_rows(folder, opened.reading.table, files, opened)
    elif metadata:
        for path in metadata:
            yield from _metadata_rows(path, files, opened)
    elif tables[".parquet"]:
        yield from _table_rows("parquet", tables[".parquet"], opened)
    elif tables[".tar"]:
        yield from _table_rows("webdataset", tables[".tar"], opened)
    else:
        opened.texts.siblings = tuple(path for path in files if path.suffix in opened.reading.caption_suffixes)
        yield from _text_rows(folder, files, opened)


def _text_rows(folder: Path, files: list[Path], opened: _Opened) -> Iterator[Found]:
    """Pictures with a text of their name next to them, one caption a line, or in a folder that says what they are."""
    planes, suffixes = Planes(folder, files), opened.reading.caption_suffixes
    pictures, alone = planes.pictures()
    if alone:
        opened.report.notes["masks and conditions without a picture, left aside"] += alone
    if not pictures:
        raise DataError(str(folder), given="no picture", expected="pictures, parquet or webdataset shards")
    kohya = any(repeats_of(path.relative_to(folder).as_posix())[1] for path in pictures)
    named = not kohya and not any(text_beside(path, suffixes) for path in pictures)
    if named and not opened.reading.missing and not any(_folder_name(path, folder) for path in pictures):
        cure = (
            "Add metadata.jsonl with file_name and text, or a .txt beside each picture (`gouache data caption` writes "
            "them), or name the folder as kohya does: 10_what it shows."
        )
        raise DataError(str(folder), given=f"{len(pictures)} pictures, no caption", expected="captions", cure=cure)
    for path in pictures:
        text, key = text_beside(path, suffixes), path.relative_to(folder).as_posix()
        said: list[str] | str | None = None
        if text is not None:
            said = opened.texts.read(text).splitlines()
        elif not opened.reading.missing:
            said = _folder_name(path, folder) if named else repeats_of(key)[1]
            if said:
                opened.report.notes["captioned by the name of their folder"] += 1
        found = Found(key, path, opened.texts.captions(said, str(text or path)))
        yield _with_planes(found, path, planes, opened.reading)


def _with_planes(found: Found, path: Path, planes: Planes, reading: Reading) -> Found:
    """With the mask and the condition that lie beside the picture's file, where its row names none."""
    mask = found.mask if found.mask is not None else planes.mask(path)
    if reading.conditions is None:
        condition = found.condition if found.condition is not None else planes.condition(path)
    else:
        condition = in_folder(reading.conditions, found.key) or b""  # which can't be decoded: a picture must have one
    return Found(found.key, found.content, found.captions, mask, condition)


def folder_words(name: str) -> str:
    """What a folder's name says about its pictures; nothing if it is a number or a word for pictures in general."""
    found = _KOHYA.fullmatch(name)
    words = " ".join((found[2] if found else name).replace("_", " ").split())
    return "" if name.lower() in SAY_NOTHING or not any(map(str.isalpha, words)) else words


def _folder_name(picture: Path, root: Path) -> str:
    """The name of the folder in `root` that a picture is in, if it says something."""
    return "" if picture.parent == root or picture.parent.name in REGULARISATION else folder_words(picture.parent.name)


def text_beside(picture: Path, suffixes: tuple[str, ...] = CAPTION_SUFFIXES) -> Path | None:
    """The file with a picture's captions."""
    named = (picture.with_suffix(suffix) for suffix in suffixes)
    return next((path for path in named if path.is_file()), None)


def repeats_of(key: str) -> tuple[int, str]:
    """What the folder of a picture says, as kohya's sd-scripts name them: "10_blue cat/1.png" gives (10, "blue cat").

    Another folder gives (1, "").
    """
    parts = key.split("/")
    found = _KOHYA.fullmatch(parts[-2]) if len(parts) > 1 else None
    return (max(int(found[1]), 1), found[2].strip()) if found else (1, "")


def _metadata_rows(path: Path, files: list[Path], opened: _Opened) -> Iterator[Found]:
    kind = "json" if path.suffix == ".jsonl" else "csv"
    planes = Planes(path.parent, [file for file in files if file.is_relative_to(path.parent)])
    with opened.texts.in_utf8(path) as table:
        yield from _named_rows(path, load(kind, [table]), planes, opened)


def _named_rows(path: Path, rows: Iterable[Row], planes: Planes, opened: _Opened) -> Iterator[Found]:
    for number, row in enumerate(checked(rows, path)):
        name, captions = _first(row, FILE_COLUMNS), _first(row, CAPTION_COLUMNS)
        if name is None:
            name = _first(row, _file_columns((*EDITED_COLUMNS, "image")))
        if number == 0 and (name is None or (captions is None and not opened.reading.missing)):
            given = f"columns {', '.join(row)}"
            raise DataError(str(path), given=given, expected="columns file_name and text (or caption, captions)")
        content = _inside(path.parent, name)
        mask, condition = (
            None if (file := _first(row, (*columns, *_file_columns(columns)))) is None else _inside(path.parent, file)
            for columns in (MASK_COLUMNS, CONDITION_COLUMNS)
        )
        found = Found(str(name), content, opened.texts.captions(captions, str(path)), mask, condition)
        yield found if isinstance(content, bytes) else _with_planes(found, content, planes, opened.reading)


def _file_columns(columns: tuple[str, ...]) -> tuple[str, ...]:
    """As the image folders of `datasets` name columns of files."""
    return tuple(f"{column}_file_name" for column in columns) + tuple(
        f"{column.removesuffix('_image')}_file_name" for column in columns
    )


def _inside(folder: Path, name: object) -> Content:
    """A file that a table names; nothing if it lies outside the table's folder, out of which a table can't reach."""
    path = (folder / str(name)).resolve()
    return path if path.is_relative_to(folder.resolve()) else b""


def _listed_rows(folder: Path, table: Path, files: list[Path], opened: _Opened) -> Iterator[Found]:
    """kohya's `metadata_file`: JSON of file, or file without its suffix -> caption and tags."""
    try:
        listed = json.loads(opened.texts.read(table))
    except ValueError as error:
        raise DataError(str(table), given=str(error), expected="JSON of captions by file") from error
    if not isinstance(listed, dict) or not all(isinstance(said, dict) for said in listed.values()):
        raise DataError(str(table), given="another shape", expected='{"FILE": {"caption": "...", "tags": "..."}, ...}')
    planes, root = Planes(folder, files), folder.resolve()
    for name, said in listed.items():
        path = (folder / name).resolve()
        content = path if path.is_file() else in_folder(path.parent, path.name)
        caption = ", ".join(said[part] for part in ("caption", "tags") if said.get(part))
        if content is None or not content.is_relative_to(root):
            yield Found(name, b"", opened.texts.captions(caption, str(table)))
            continue
        found = Found(content.relative_to(root).as_posix(), content, opened.texts.captions(caption, str(table)))
        yield _with_planes(found, folder / found.key, planes, opened.reading)


def _table_rows(kind: Literal["parquet", "webdataset"], paths: list[Path], opened: _Opened) -> Iterator[Found]:
    yield from _columns(checked(load(kind, paths), paths[0]), str(paths[0]), opened)


def _columns(rows: Iterable[Row], where: str, opened: _Opened) -> Iterator[Found]:
    for number, row in enumerate(rows):
        content, captions = _bytes(_first(row, PICTURE_COLUMNS)), _first(row, CAPTION_COLUMNS)
        mask, condition = (_bytes(_first(row, columns)) for columns in (MASK_COLUMNS, CONDITION_COLUMNS))
        if captions is None and isinstance(row.get("json"), dict):
            captions = _first(row["json"], CAPTION_COLUMNS)
        if number == 0 and content is None:
            given = f"columns {', '.join(row)}"
            raise DataError(where, given=given, expected="a picture column: " + ", ".join(PICTURE_COLUMNS))
        key = str(row.get("__key__", number))
        yield Found(key, content or b"", opened.texts.captions(captions, where), mask, condition)


def _bytes(value: object) -> bytes | Path | None:
    if isinstance(value, Mapping):
        held, path = value.get("bytes"), value.get("path")
        if held is not None or not path:
            return held
        return fetched(path) if "://" in path else Path(path)
    return value if isinstance(value, bytes) else None


def _first(row: Row, names: tuple[str, ...]) -> Any:
    return next((row[name] for name in names if row.get(name) is not None), None)


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
    source: str | Path, report: ReadReport, reading: Reading = AS_USUAL, *, size: int = 512
) -> Inspection:
    """Read every picture once and count.

    Args:
        source, reading: as for `read_pictures`, whose errors it raises.
        report: filled with what was skipped.
        size: side of the square bucket.
    """
    buckets, counts = make_buckets(size), Counter[Bucket]()
    captions = with_alpha = 0
    for item in read_pictures(source, report, reading):
        captions += len(item.captions)
        with_alpha += bool((item.picture[..., 3] < 255).any())
        counts[nearest_bucket(item.picture.shape[1], item.picture.shape[0], buckets)] += 1
    return Inspection(captions, with_alpha, dict(counts.most_common()))
