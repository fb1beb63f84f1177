"""IP-Adapters on the disk, by name, and the vision towers beside them. Headers only, and no torch.

IP-Adapters are looked for in the folders of ControlNets and in ``ipadapter``, ``ip-adapter`` and ``ip_adapter`` (any
case) of `hub.models_folder`, at any depth. A tower lies beside its adapter as ``image_encoder``, or anywhere in those
folders, or in ``clip_vision``, or is the model's own. Names from a request over HTTP never become a path.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from gouache.checkpoints import hub
from gouache.checkpoints.adapters.conditioning_files import ConditioningFile, bytes_at, named_weights
from gouache.checkpoints.adapters.naming import folded
from gouache.checkpoints.identify import identify
from gouache.errors import GouacheError, InvalidInput, ModelNotFound, unknown_name
from gouache.files import existing

KIND = "ip-adapter"
TOWER = "image-encoder"
SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".ckpt")
FOLDERS = (*hub.CONTROL_FOLDERS, *hub.IP_ADAPTER_FOLDERS)
TOWERS_BESIDE = ("image_encoder", "clip_vision")
"""Folders beside an adapter in which its tower may lie."""


def list_ip_adapters(folder: Path | None = None) -> list[ConditioningFile]:
    """Every IP-Adapter on the disk, by name.

    Args:
        folder: the models folder; None takes `hub.models_folder()`.
    """
    found = [_described(name, path) for name, path in _named(folder or hub.models_folder())]
    there = [file for file in found if file is not None]
    return sorted(there, key=lambda file: (file.name.casefold(), file.path))


def find_ip_adapter(name: str, folder: Path | None = None, *, paths: bool = True) -> ConditioningFile:
    """The IP-Adapter of a name.

    Args:
        name: its name, with or without its suffix; or a path.
        folder: the models folder; None takes `hub.models_folder()`.
        paths: whether a path is taken.

    Raises:
        ModelNotFound: there is none; the nearest name is offered.
        InvalidInput: several files have it.
    """
    if paths and (path := existing(name)) is not None:
        file = _described(path.stem, path)
        if file is None:
            raise InvalidInput(f"image prompt {path.name!r}", given="another kind of file", expected="an IP-Adapter")
        return file
    root = folder or hub.models_folder()
    short = name.rsplit(".", 1)[0] if name.lower().endswith(SUFFIXES) else name
    known = _named(root)
    alike = [(one, path) for one, path in known if folded(one) in (folded(name), folded(short))]
    files = [file for one, path in alike if (file := _described(one, path)) is not None]
    # A tensor file and its safetensors copy lie side by side in the published repository.
    safe = [file for file in files if file.path.suffix.lower() == ".safetensors"]
    files = safe if len(safe) == 1 else files
    if len(files) == 1:
        return files[0]
    if files:
        raise InvalidInput(
            f"image prompt {name!r}",
            given=f"{len(files)} files: {', '.join(str(file.path) for file in files)}",
            expected="one file of this name",
            cure="Rename one of them.",
        )
    names = [file.name for file in list_ip_adapters(root)]
    raise ModelNotFound(
        f"image prompt {name!r}",
        given="no such IP-Adapter",
        expected=f"a file in {root / hub.IP_ADAPTER_FOLDERS[0]} or {root / hub.CONTROL_FOLDERS[0]}",
        cure=unknown_name("adapter", name, names).cure if names else "None is there yet.",
    )


def towers(adapter: Path | None = None, model: Path | None = None, folder: Path | None = None) -> Iterator[Path]:
    """Vision towers, those that lie nearest first: beside an adapter, in the folders, the model's own.

    Args:
        adapter: the file or folder of an IP-Adapter.
        model: the folder of the model.
        folder: the models folder; None takes `hub.models_folder()`.
    """
    root = folder or hub.models_folder()
    beside = [] if adapter is None else [adapter.parent / name for name in TOWERS_BESIDE]
    near = [place for top in beside for place in (top, *(top.with_suffix(suffix) for suffix in SUFFIXES))]
    near += [file for top in beside if top.is_dir() for file in sorted(top.iterdir()) if file.suffix in SUFFIXES]
    far = hub.weights_in(root, (*FOLDERS, *hub.TOWER_FOLDERS), SUFFIXES)
    own = [] if model is None else [model / "image_encoder"]
    seen: set[Path] = set()
    for place in (*near, *far, *own):
        if place not in seen and place.exists() and _is_tower(place):
            seen.add(place)
            yield place


def _is_tower(path: Path) -> bool:
    try:
        return identify(path).kind == TOWER
    except GouacheError:
        return False


def _named(root: Path) -> list[tuple[str, Path]]:
    return named_weights(root, FOLDERS, SUFFIXES, "IP-Adapters")


def _described(name: str, path: Path) -> ConditioningFile | None:
    """The adapter at a path; None for what is something else, such as a ControlNet."""
    try:
        identity = identify(path)
    except GouacheError:
        return None
    if identity.kind != KIND:
        return None
    return ConditioningFile(name, identity.family, identity.label, path, bytes_at(path))
