"""ControlNets and T2I-Adapters on the disk, by name. Headers only, and no torch.

They are looked for in the folders ``controlnet``, ``controlnets`` and ``t2i_adapter`` (any case) of
`hub.models_folder`, at any depth, then among the models and in the hub's cache. A name from a request is compared with
that list and never becomes a path.
"""

from __future__ import annotations

from pathlib import Path

from gouache.checkpoints import hub
from gouache.checkpoints.adapters.conditioning_files import ConditioningFile, bytes_at, named_weights
from gouache.checkpoints.adapters.naming import folded
from gouache.checkpoints.identify import identify
from gouache.errors import GouacheError, InvalidInput, ModelNotFound, unknown_name

KIND = "controlnet"
KINDS = (KIND, "t2i-adapter")
NEIGHBOURS = ("ip-adapter", "image-encoder")
"""Kinds that lie in the same folders and are listed by themselves; see `ip_adapter_library`."""
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
UNUSABLE = "unusable"
"""How the label of a file begins that can't be used."""


def list_controls(folder: Path | None = None) -> list[ConditioningFile]:
    """Every ControlNet in the folders of that name, by name.

    Args:
        folder: the models folder; None takes `hub.models_folder()`.
    """
    found = [_described(name, path) for name, path in _named(folder or hub.models_folder())]
    neighbours = tuple(f"{UNUSABLE}: a {kind}" for kind in NEIGHBOURS)
    found = [file for file in found if file.label not in neighbours]
    return sorted(found, key=lambda file: (file.name.casefold(), file.path))


def usable_controls(folder: Path | None = None) -> list[ConditioningFile]:
    """Every ControlNet that a request may name, by name; those among the models and in the hub's cache too.

    Args:
        folder: the models folder; None takes `hub.models_folder()`.
    """
    found = [file for file in list_controls(folder) if not file.label.startswith(UNUSABLE)]
    named = {file.name for file in found}
    elsewhere = [_described(model.name, model.path) for model in hub.on_disk() if model.name not in named]
    return found + [file for file in elsewhere if not file.label.startswith(UNUSABLE)]


def find_control(name: str, folder: Path | None = None) -> ConditioningFile:
    """The ControlNet of a name.

    Raises:
        ModelNotFound: there is none; the nearest name is offered.
        InvalidInput: several files have it.
    """
    root = folder or hub.models_folder()
    known = _named(root)
    places = [path for one, path in known if one == name]
    places = places or [path for one, path in known if folded(one) == folded(name)]
    if len(places) > 1:
        raise InvalidInput(
            f"control {name!r}",
            given=f"{len(places)} files: {', '.join(map(str, places))}",
            expected="one file of this name",
            cure="Rename one of them.",
        )
    places = places or [model.path for model in hub.on_disk() if model.name == name]
    if places:
        return _described(name, places[0])
    near = unknown_name("control", name, [one for one, _ in known]).cure if known else "None is there yet."
    fetch = f" Or fetch it: gouache pull {name}" if name.count("/") == 1 else ""
    raise ModelNotFound(
        f"control {name!r}",
        given="no such ControlNet",
        expected=f"a file or folder in {root / hub.CONTROL_FOLDERS[0]}",
        cure=near + fetch,
    )


def _named(root: Path) -> list[tuple[str, Path]]:
    return named_weights(root, hub.CONTROL_FOLDERS, SUFFIXES, "ControlNets")


def _described(name: str, path: Path) -> ConditioningFile:
    size = bytes_at(path)
    try:
        identity = identify(path)
    except GouacheError as error:
        return ConditioningFile(name, "unknown", f"{UNUSABLE}: {error.given}", path, size)
    label = identity.label if identity.kind in KINDS else f"{UNUSABLE}: a {identity.kind}"
    return ConditioningFile(name, identity.family, label, path, size)
