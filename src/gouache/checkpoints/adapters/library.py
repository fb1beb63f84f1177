"""Adapters on the disk: LoRA files and textual inversions under the models folder. Headers only, and no torch.

They are looked for in the folders ``adapters``, ``loras`` and ``embeddings`` (any case, also ``Lora``) of
`hub.models_folder`, and in folders inside them. A prompt names them by their file's name without the suffix (by their
folder's, if the file has a name that every file of its program has, as PEFT's ``adapter_model``), or by the name that
their trainer wrote into them; a name from a prompt is compared with that list and never becomes a path.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from unicodedata import normalize

from gouache.checkpoints import hub
from gouache.checkpoints.adapters import peft_config
from gouache.checkpoints.adapters.embedding_names import embedding_names
from gouache.checkpoints.adapters.keys import lora_summary
from gouache.checkpoints.adapters.kinds import find_adapter
from gouache.checkpoints.adapters.naming import folded
from gouache.checkpoints.formats.header import Header, open_header
from gouache.checkpoints.formats.png_embedding import PngEmbedding
from gouache.errors import GouacheError, InvalidInput, ModelNotFound, unknown_name
from gouache.models.few_steps import FewSteps, few_steps_of

PICTURE = ".png"
SUFFIXES = (".safetensors", ".pt", ".pti", ".bin", ".ckpt", PICTURE)
LORA, EMBEDDING = "lora", "textual-inversion"
GENERIC_STEMS = ("learned_embeds", "embeddings")
"""Names that programs give every embedding; the token inside is its name then."""
GENERIC_LORA_STEMS = (
    "adapter_model",
    "pytorch_lora_weights",
    "pytorch_model",
    "diffusion_pytorch_model",
    "model",
    "lora",
    "lora_weight",
    "lora_weights",
)
"""Names that programs give every LoRA; the folder it lies in is its name then."""
PART_FOLDERS = ("unet", "text_encoder", "text_encoder_2", "transformer")
"""Folders that are named for a part of the model, inside an adapter's own; the name has both then."""
NAMELESS_FOLDERS = ("default", "lora", "adapter", "weights")
NUMBERED_FOLDER = re.compile(r"(checkpoint|step|epoch)[-_]?\d+", re.IGNORECASE)
"""Folders of an adapter's states while it was trained; its name has the number too."""


@dataclass(frozen=True, slots=True)
class AdapterFile:
    """An adapter on the disk.

    Attributes:
        name: what a prompt calls it.
        aliases: further names: the trainer's own, the token of a textual inversion.
        kind: ``"lora"`` or ``"textual-inversion"``.
        family: of the models it belongs to: sd1, sd2, sdxl, or "unknown".
        label: a few words for people; why it can't be used, if it can't.
        path: the file.
        bytes: its size.
        few_steps: the distillation that a LoRA's metadata or name tells of.
    """

    name: str
    aliases: tuple[str, ...]
    kind: str
    family: str
    label: str
    path: Path
    bytes: int
    few_steps: FewSteps | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that a prompt may use."""
        return (self.name, *self.aliases)


def list_adapters(folder: Path | None = None) -> list[AdapterFile]:
    """Every LoRA and textual inversion on the disk, by name.

    Args:
        folder: the models folder; None takes `hub.models_folder()`.
    """
    return AdapterFolder(folder).files()


@dataclass
class AdapterFolder:
    """The adapters under one models folder. What headers say is remembered until a file changes.

    Attributes:
        folder: the models folder; None takes `hub.models_folder()`.
    """

    folder: Path | None = None
    _known: dict[tuple[Path, int, int], AdapterFile | None] = field(default_factory=dict)

    def files(self) -> list[AdapterFile]:
        """Every LoRA and textual inversion, by name."""
        return sorted(self._found(), key=lambda file: (file.kind, file.name.casefold(), file.path))

    def lora(self, name: str) -> AdapterFile:
        """The LoRA of a name.

        Raises:
            ModelNotFound: there is none; the nearest name is offered.
            InvalidInput: several files have it.
        """
        loras = [file for file in self.files() if file.kind == LORA]
        matches = [file for file in loras if file.name == name] or [file for file in loras if name in file.aliases]
        matches = matches or [file for file in loras if folded(name) in map(folded, file.names)]
        if len(matches) > 1:
            raise InvalidInput(
                f"adapter {name!r}",
                given=f"{len(matches)} files: {', '.join(str(file.path) for file in matches)}",
                expected="one file of this name",
                cure="Rename one of them.",
            )
        if not matches:
            known = [file.name for file in loras]
            near = unknown_name("adapter", name, known).cure if known else "No LoRA is there yet."
            raise ModelNotFound(
                f"adapter {name!r}",
                given="no such LoRA",
                expected=f"a file in {self._root() / 'adapters'}",
                cure=near,
            )
        return matches[0]

    def embeddings(self) -> Mapping[str, AdapterFile]:
        """Textual inversions by every name they have, as `folded`; the first file of a name has it."""
        found: dict[str, AdapterFile] = {}
        for file in self.files():
            for name in file.names if file.kind == EMBEDDING else ():
                found.setdefault(folded(name), file)
        return found

    def embedding(self, name: str, only: Collection[str] | None = None) -> AdapterFile | None:
        """The textual inversion of a name: the file that is written so, else the first whose name is the same `folded`.

        Args:
            name: as a prompt or a recipe writes it.
            only: names of files that may be found; None = all.
        """
        files = [file for file in self.files() if file.kind == EMBEDDING and (only is None or file.name in only)]
        written = normalize("NFC", name)
        exact = (file for file in files if written in {normalize("NFC", one) for one in file.names})
        alike = (file for file in files if folded(name) in map(folded, file.names))
        return next(exact, None) or next(alike, None)

    def _root(self) -> Path:
        return self.folder or hub.models_folder()

    def _found(self) -> Iterator[AdapterFile]:
        try:
            yield from self._files_below(self._root())
        except OSError as error:
            raise InvalidInput(
                str(error.filename or self._root()),
                given=(error.strerror or str(error)).lower(),
                expected="a folder of adapters that can be read",
                cure="Change its permissions, or point GOUACHE_MODELS elsewhere.",
            ) from error

    def _files_below(self, root: Path) -> Iterator[AdapterFile]:
        tops = (
            [path for path in sorted(root.iterdir()) if path.name.lower() in hub.ADAPTER_FOLDERS]
            if root.is_dir()
            else []
        )
        for top in (path for path in tops if path.is_dir()):
            for path in sorted(top.rglob("*")):
                if path.suffix.lower() in SUFFIXES and path.is_file() and not path.name.startswith("."):
                    status = path.stat()
                    key = (path, status.st_size, status.st_mtime_ns)
                    if key not in self._known:
                        self._known[key] = _described(path, top, status.st_size)
                    file = self._known[key]
                    if file is not None:
                        yield file


def _described(path: Path, top: Path, size: int) -> AdapterFile | None:
    """What a file is, by what it holds; where that doesn't tell, by the folder it lies in. None for a mere picture."""
    by_folder = EMBEDDING if top.name.lower() == "embeddings" else LORA
    try:
        if path.suffix.lower() == PICTURE:
            # Pictures lie beside many adapters to show what they do; pixels are only searched where embeddings belong.
            header = PngEmbedding(path, pixels=by_folder == EMBEDDING and not path.stem.endswith(".preview")).header
        else:
            header = open_header(path)
    except GouacheError as error:
        if path.suffix.lower() == PICTURE:
            return None
        return AdapterFile(path.stem, (), by_folder, "unknown", f"unusable: {error.given}", path, size)
    adapter = find_adapter(header.tensors, header.metadata)
    kind = adapter.kind if adapter else by_folder
    name, aliases = _names(path, top, header, kind)
    family, label = (adapter.family, adapter.label) if adapter else ("unknown", "")
    few_steps = _few_steps(header, (name, *aliases), family) if kind == LORA else None
    more = (lora_summary(header.tensors) if kind == LORA else "", few_steps.summary if few_steps else "")
    label = ", ".join(part for part in (label, *more) if part)
    return AdapterFile(name, aliases, kind, family, label, path, size, few_steps)


def _few_steps(header: Header, names: Collection[str], family: str) -> FewSteps | None:
    """The distillation that a LoRA's metadata, else its names tell of; its weights look like any other's."""
    found = few_steps_of(dict.fromkeys(names, "its name"), header.metadata, family=family)
    # A LoRA sets no default: what its metadata tell is as much worth as its name.
    return None if found is None else replace(found, source="name")


def few_steps_of_lora(path: Path) -> FewSteps | None:
    """The distillation that a LoRA's file, or its folder, tells of.

    Raises:
        CheckpointError: it can't be read.
    """
    file = (peft_config.weights_of(path) or path) if path.is_dir() else path
    generic = file.stem.lower() in GENERIC_LORA_STEMS
    name = path.name if path.is_dir() else file.parent.name if generic else file.stem
    header = open_header(file)
    adapter = find_adapter(header.tensors, header.metadata)
    return _few_steps(header, (name,), "" if adapter is None else adapter.family)


def _names(path: Path, top: Path, header: Header, kind: str) -> tuple[str, tuple[str, ...]]:
    if kind == EMBEDDING:
        tokens = tokens_of(header)
        if len(tokens) == 1 and path.stem.lower() in GENERIC_STEMS:
            return tokens[0], ()
        return path.stem, tuple(token for token in tokens if token != path.stem)
    name = _folder_name(path, top) if path.stem.lower() in GENERIC_LORA_STEMS else path.stem
    recorded = header.metadata.get("ss_output_name", "") if kind == LORA else ""
    return name, tuple(alias for alias in dict.fromkeys((recorded, path.stem)) if alias and alias != name)


def _folder_name(path: Path, top: Path) -> str:
    """What a file is called by its folder, below the folder of all adapters; its stem where there is no such folder."""
    folders = list(path.relative_to(top).parts[:-1])
    part = ""
    while len(folders) > 1 and (
        folders[-1].lower() in (*PART_FOLDERS, *NAMELESS_FOLDERS) or NUMBERED_FOLDER.fullmatch(folders[-1])
    ):
        last = folders.pop()
        part = part if last.lower() in NAMELESS_FOLDERS else f"-{last}{part}"
    return f"{folders[-1]}{part}" if folders else path.stem


def tokens_of(header: Header) -> tuple[str, ...]:
    """The words of a textual inversion, where its layout has any."""
    return tuple(word for word in embedding_names(header.tensors).words if word)
