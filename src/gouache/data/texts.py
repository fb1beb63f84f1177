"""The captions of a source: files and cells in whatever encoding they are."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gouache.data.caption_text import LEGACY, decode_text
from gouache.errors import DataError

MOST_SIBLINGS = 500
"""Texts of a folder that are looked at to decide what one of them is in."""


@dataclass
class Texts:
    """Reads the text files of one source, and notes which encodings were concluded.

    Attributes:
        notes: what was concluded -> how often.
        encoding: of all of them, if the user said so.
        siblings: text files of the same source; where a text alone doesn't tell, what the others are in decides.
    """

    notes: Counter[str]
    encoding: str | None = None
    siblings: tuple[Path, ...] = ()

    def read(self, path: Path) -> str:
        """The text of a file.

        Raises:
            DataError: it can't be read, or what it is in can't be told.
        """
        try:
            return self.decoded(path.read_bytes(), str(path))
        except OSError as error:
            raise DataError(str(path), given=error.strerror or str(error), expected="a readable text") from error

    def decoded(self, data: bytes, where: str) -> str:
        """The text of bytes; `where` names them in errors."""
        try:
            found = decode_text(data, where, self.encoding)
        except DataError:
            if self.encoding is not None or not self.siblings:
                raise
            found = decode_text(data, where, among=self._told_by_others())
        if found.is_legacy and self.encoding is None:
            self.notes[f"texts read as {found.encoding}, concluded from their bytes (--encoding names it)"] += 1
        return found.text

    def _told_by_others(self) -> tuple[str, ...]:
        """Legacy encodings of the source's other texts, as far as these tell theirs."""
        told = set()
        for path in self.siblings[:MOST_SIBLINGS]:
            with contextlib.suppress(DataError, OSError):
                told.add(decode_text(path.read_bytes(), str(path)).encoding)
        return tuple(name for name in LEGACY if name in told) or LEGACY

    @contextlib.contextmanager
    def in_utf8(self, path: Path) -> Iterator[Path]:
        """The table itself if it is plain UTF-8, else a copy that is."""
        data = path.read_bytes()
        text = self.decoded(data, str(path))
        if data == (plain := text.encode("utf-8")):
            yield path
            return
        with tempfile.TemporaryDirectory(prefix="gouache-") as folder:
            copy = Path(folder) / path.name
            copy.write_bytes(plain)
            yield copy

    def captions(self, value: object, where: str) -> tuple[str, ...]:
        """The captions that a text, a list of texts or a JSON list of them holds; empty ones are left out."""
        if isinstance(value, bytes):
            value = self.decoded(value, where)
        if isinstance(value, str):
            value = value.removeprefix("\ufeff")
        if isinstance(value, str) and value.startswith("["):
            try:
                value = json.loads(value)
            except ValueError:
                value = [value]
        several = value if isinstance(value, list | tuple) else [value]
        return tuple(text.strip() for text in several if isinstance(text, str) and text.strip())
