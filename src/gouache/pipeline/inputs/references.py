"""The pictures that a request names: found, checked, and with the hash that a recipe keeps."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

from PIL import Image

from gouache.errors import PictureError
from gouache.pipeline.inputs.images import read_picture

HASH = "sha256:"


class References:
    """Reads each picture of a request once.

    Args:
        attachments: bytes by name, or by hexadecimal sha256 for names of the form `sha256:...`.
    """

    def __init__(self, attachments: Mapping[str, bytes] | None = None) -> None:
        self._given = dict(attachments or {})
        self._bytes: dict[str, bytes] = {}

    def picture(self, name: str) -> Image.Image:
        """The picture, mode RGB or RGBA.

        Raises:
            PictureError: it is not there, or no picture.
        """
        return read_picture(self.data(name), where=name)

    def data(self, name: str) -> bytes:
        """The file's bytes; errors as `picture`."""
        if name not in self._bytes:
            self._bytes[name] = self._found(name)
        return self._bytes[name]

    def digests(self) -> dict[str, str]:
        """sha256 of every picture that was read."""
        return {name: sha256(data).hexdigest() for name, data in self._bytes.items()}

    def _found(self, name: str) -> bytes:
        for key in (name, name.removeprefix(HASH)):
            if key in self._given:
                return self._given[key]
        if name.startswith(HASH):
            raise PictureError(
                name,
                given="no bytes for this hash",
                expected="the picture beside the request",
                cure="Pass it in `attachments`.",
            )
        try:
            return Path(name).expanduser().read_bytes()
        except OSError as error:
            raise PictureError(
                name, given=(error.strerror or str(error)).lower(), expected="a readable file", cure="Check the path."
            ) from error
