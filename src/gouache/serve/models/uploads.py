"""Weight files that are sent to the studio in pieces: kept aside until they are whole, told by what they hold, and
moved into the folder of their kind. An upload that stopped goes on where it was, also after the server started anew."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from gouache.checkpoints import hub
from gouache.checkpoints.detect import Identity
from gouache.checkpoints.formats.header import MAX_HEADER_BYTES, file_format
from gouache.checkpoints.identify import identify, known_sha256
from gouache.config import Config
from gouache.errors import CheckpointError, Conflict, CorruptCheckpoint, GouacheError, InvalidInput, NotFound
from gouache.files import atomic_write
from gouache.models.family import SD3
from gouache.serve.models.catalog import SUFFIXES
from gouache.serve.store.file_store import NoRoom

if TYPE_CHECKING:
    from hashlib import _Hash

PIECE = 32 * 2**20
"""Most bytes of one piece."""
MOST_BYTES = 256 * 2**30
"""Of a whole file."""
KEPT_SECONDS = 7 * 24 * 3600.0
"""An upload of which nothing came for so long is given up."""
MOST_OPEN = 20
TAKEN = (".safetensors", ".ckpt", ".gguf", ".pt", ".pth", ".bin")
_FOLDER = ".uploads"
_STRANGE = re.compile(r'[\x00-\x1f\x7f/\\:*?"<>|]')
_ID = re.compile(r"[0-9a-f]{32}")
_PLACES: dict[str, tuple[str, ...]] = {
    "lora": ("loras", "lora", "adapters"),
    "textual-inversion": ("embeddings",),
    "controlnet": hub.CONTROL_FOLDERS,
    "t2i-adapter": ("t2i_adapter", "t2i_adapters"),
    "ip-adapter": hub.IP_ADAPTER_FOLDERS,
    "image-encoder": hub.TOWER_FOLDERS,
    "vae": hub.VAE_FOLDERS,
    "text-encoder": ("text_encoders",),
}
"""Folders of what is no model; the first that is there, else the first is made."""


class Upload(Config):
    """A weight file on its way, as it is written down beside its bytes."""

    id: str
    name: str
    """Of the file, as it was called where it came from."""
    size: Annotated[int, Field(ge=1)]
    modified: int
    """When it was last changed there, in ms since 1970: an upload goes on only with the same file."""
    sha256: str = ""
    """Of the whole file, if whoever sends it said so."""
    received: int = 0
    """Bytes that are here."""
    kind: str = ""
    """What its header says that it is; empty until that was read."""


@dataclass(frozen=True, slots=True)
class Placed:
    """A file that arrived.

    Attributes:
        kind: as `Identity.kind`.
        family: name of its family.
        name: what requests call it.
        path: where it lies.
        sha256: of the file.
        recorded: whether the file tells another hash of its weights, by which recipes know it.
    """

    kind: str
    family: str
    name: str
    path: Path
    sha256: str
    recorded: bool


class Uploads:
    """The weight files on their way.

    Args:
        models: the folder of models.
        reserve: bytes on the disk that nothing new may take.
        arrived: called when a file was put in its place.

    What a method raises names the file and no place on this machine.
    """

    def __init__(self, models: Path, reserve: int, arrived: Callable[[Placed], None]) -> None:
        self.models, self.reserve, self.arrived = models, reserve, arrived
        self._aside = models / _FOLDER
        self._guard = threading.Lock()
        self._busy: set[str] = set()
        self._sums: dict[str, tuple[int, _Hash]] = {}

    def listing(self) -> list[Upload]:
        """Those that are not whole, by name. What was given up is removed."""
        found = []
        for path in self._aside.glob("*.json") if self._aside.is_dir() else []:
            with contextlib.suppress(OSError, GouacheError):
                if path.stat().st_mtime < time.time() - KEPT_SECONDS:
                    self._forget(path.stem)
                else:
                    found.append(Upload.from_json(path.read_text(encoding="utf-8")))
        return sorted(found, key=lambda upload: upload.name)

    def open(self, name: str, size: int, modified: int, sum_of: str = "") -> Upload:
        """Begin with a file, or go on with it: the answer says how much of it is here.

        Args:
            name: of the file.
            size: its bytes.
            modified: when it was last changed, in ms since 1970.
            sum_of: its sha256 in hexadecimal, to be compared in the end; empty for none.

        Raises:
            InvalidInput: no name or size that a weight file may have.
            Conflict: a file of this name is here, or too many are on their way.
            NoRoom: it would fill the disk.
        """
        name = _checked_name(name)
        if not 16 <= size <= MOST_BYTES:
            raise InvalidInput("size", given=f"{size} bytes", expected=f"16 to {MOST_BYTES} bytes")
        for folder in {self.models, *(hub.models_folder() / one for names in _PLACES.values() for one in names)}:
            if (folder / name).exists():
                cure = "Rename the file, or remove the other one from the models folder."
                raise Conflict(name, given="a name that is taken", expected="a new one", cure=cure)
        key = sha256(f"{name}\n{size}\n{modified}".encode()).hexdigest()[:32]
        others = self.listing()
        known = next((upload for upload in others if upload.id == key), None)
        self._check_room(size - (known.received if known else 0))
        if known is not None:
            return known
        if len(others) >= MOST_OPEN:
            cure = "Finish or cancel one of them."
            raise Conflict("uploads", given=f"{len(others)} on their way", expected=f"at most {MOST_OPEN}", cure=cure)
        self._aside.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self._part(key).open("wb") as file:
            file.truncate(size)  # Headers are compared with the size that the file will have.
        upload = Upload(id=key, name=name, size=size, modified=modified, sha256=sum_of.lower())
        self._write(upload)
        return upload

    def write(self, key: str, offset: int, piece: bytes) -> Upload | Placed:
        """Take a piece; the last one puts the file in its place.

        Args:
            key: the upload's id.
            offset: where the piece belongs: all before it must be here.
            piece: at most `PIECE` bytes.

        Raises:
            NotFound: no such upload.
            Conflict: the piece belongs elsewhere (the error tells how much is here), or another is being written.
            CheckpointError: it is no weight file that gouache can use; nothing of it is kept.
        """
        with self._alone(key):
            upload = self.get(key)
            if offset != upload.received:
                raise Conflict("offset", given=offset, expected=str(upload.received), cure="Go on from there.")
            if not 0 < len(piece) <= min(PIECE, upload.size - offset):
                most = min(PIECE, upload.size - offset)
                raise InvalidInput("body", given=f"{len(piece)} bytes", expected=f"1 to {most} bytes")
            self._check_room(len(piece))
            with self._part(key).open("r+b") as file:
                file.seek(offset)
                file.write(piece)
                if offset + len(piece) == upload.size:
                    file.flush()
                    os.fsync(file.fileno())
            self._add_to_sum(key, offset, piece)
            upload = upload.model_copy(update={"received": offset + len(piece)})
            with self._named(upload):
                if not upload.kind:
                    upload = upload.model_copy(update={"kind": self._kind_so_far(upload)})
                if upload.received == upload.size:
                    return self._finish(upload)
            self._write(upload)
            return upload

    def get(self, key: str) -> Upload:
        """One of them.

        Raises:
            NotFound: there is none.
        """
        path = self._aside / f"{key}.json"
        if not _ID.fullmatch(key) or not path.is_file():
            raise NotFound("upload", given=repr(key)[:60], expected="an upload that was begun", cure="Begin it anew.")
        return Upload.from_json(path.read_text(encoding="utf-8"))

    def cancel(self, key: str) -> None:
        """Give one up and remove what is here of it; errors as `get`."""
        with self._alone(key):
            self.get(key)
            self._forget(key)

    def _finish(self, upload: Upload) -> Placed:
        part = self._part(upload.id)
        digest = self._sum(upload)
        if upload.sha256 and digest != upload.sha256:
            raise CorruptCheckpoint(
                str(part), given=f"sha256 {digest[:16]}...", expected=f"{upload.sha256[:16]}...", cure="Send it again."
            )
        identity = identify(part)
        target = self._target(upload.name, identity, part)
        _move(part, target)
        placed = Placed(
            kind=identity.kind,
            family=identity.family,
            name=target.name if identity.kind == "model" else target.stem,
            path=target,
            sha256=digest,
            recorded=bool(known_sha256(identity)),
        )
        self._forget(upload.id)
        self.arrived(placed)
        return placed

    def _kind_so_far(self, upload: Upload) -> str:
        """What the file is, as soon as its header is here; a file of another format is told at once.

        A zip tells what it holds at its end, so that it is only known to be one before.
        """
        part = self._part(upload.id)
        if file_format(part) != "safetensors":
            return ""
        with part.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
        if 8 + length > upload.received and length <= min(MAX_HEADER_BYTES, upload.size - 8):
            return ""
        identity = identify(part)
        self._target(upload.name, identity, part)
        return identity.kind

    def _target(self, name: str, identity: Identity, part: Path) -> Path:
        """Where a file belongs.

        Raises:
            CheckpointError: nowhere.
        """
        if identity.kind == "model" or (identity.kind == "unet" and identity.family == SD3.name):
            suffix = Path(name).suffix
            return self.models / (name if suffix.lower() in SUFFIXES else name.removesuffix(suffix) + ".ckpt")
        names = _PLACES.get(identity.kind)
        if names is None:
            raise CheckpointError(
                str(part),
                given=f"{identity.kind}, alone" if identity.kind != "parts" else "parts of a model",
                expected="a whole model, or a LoRA, an embedding, a ControlNet, an IP-Adapter or an autoencoder",
            )
        root = hub.models_folder()
        there = [path for path in sorted(root.iterdir()) if path.is_dir()] if root.is_dir() else []
        named = {path.name.lower(): path for path in there}
        return next((named[one] for one in names if one in named), root / names[0]) / name

    def _check_room(self, size: int) -> None:
        free = free_bytes(self.models)
        if free - size < self.reserve:
            raise NoRoom(
                "disk",
                given=f"{free // 2**20} MiB free",
                expected=f"{(size + self.reserve) // 2**20 + 1} MiB for this file and what must stay free",
                cure="Make room on the disk of the models.",
            )

    def _add_to_sum(self, key: str, offset: int, piece: bytes) -> None:
        at, summed = self._sums.get(key, (0, sha256()))
        if at == offset:
            summed.update(piece)
            self._sums[key] = offset + len(piece), summed

    def _sum(self, upload: Upload) -> str:
        """Of the whole file; read again where pieces of it came before this server started."""
        at, summed = self._sums.get(upload.id, (0, None))
        if summed is not None and at == upload.size:
            return str(summed.hexdigest())
        return hub.file_sha256(self._part(upload.id))

    @contextmanager
    def _alone(self, key: str) -> Iterator[None]:
        with self._guard:
            if key in self._busy:
                raise Conflict("upload", given="a piece that is being written", expected="one at a time")
            self._busy.add(key)
        try:
            yield
        finally:
            with self._guard:
                self._busy.discard(key)

    @contextmanager
    def _named(self, upload: Upload) -> Iterator[None]:
        """Errors name the file as its user knows it; one that can't be used is not kept."""
        try:
            yield
        except GouacheError as error:
            if not isinstance(error, Conflict):
                self._forget(upload.id)
            part = str(self._part(upload.id))
            parts = {
                name: text.replace(part, upload.name).replace(Path(part).name, upload.name)
                for name, text in error.to_dict().items()
            }
            raise type(error).from_dict(parts) from error

    def _part(self, key: str) -> Path:
        return self._aside / f"{key}.part"

    def _write(self, upload: Upload) -> None:
        with atomic_write(self._aside / f"{upload.id}.json") as file:
            file.write(upload.to_json().encode())

    def _forget(self, key: str) -> None:
        self._sums.pop(key, None)
        for path in (self._part(key), self._aside / f"{key}.json"):
            path.unlink(missing_ok=True)


def free_bytes(folder: Path) -> int:
    """What the disk has that a folder lies on, or will lie on."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(there).free


def _checked_name(name: str) -> str:
    name = name.strip()
    suffix = Path(name).suffix.lower()
    if suffix not in TAKEN:
        raise InvalidInput("name", given=repr(name)[:200], expected=f"a file that ends in {', '.join(TAKEN)}")
    if name.startswith(".") or _STRANGE.search(name) or len(name.encode()) > 200 or not name.removesuffix(suffix):
        raise InvalidInput("name", given=repr(name)[:200], expected="a plain file name of at most 200 bytes")
    return name


def _move(part: Path, target: Path) -> None:
    """Whole or not at all, and never over another file."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        try:
            os.link(part, target)
        except FileExistsError:
            raise
        except OSError:  # A file system without links, or another one.
            with part.open("rb") as source, atomic_write(target, force=False) as file:
                shutil.copyfileobj(source, file, PIECE)
    except FileExistsError as error:
        raise Conflict(target.name, given="a name that is taken", expected="a new one", cure="Rename it.") from error
