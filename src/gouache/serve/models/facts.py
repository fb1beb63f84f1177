"""What is known of a model without loading it: family, licence, styles, and all that `gouache inspect` says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from gouache.checkpoints.hub import shipped_model
from gouache.checkpoints.identify import identify, read_card
from gouache.cli.inspect import describe
from gouache.errors import CheckpointError, GouacheError, InvalidInput
from gouache.models.family import POCKET, family_label, family_named
from gouache.serve.models.catalog import ModelEntry

LICENCE_KEYS = ("modelspec.license", "modelspec.licence", "license", "licence")


@dataclass(frozen=True, slots=True)
class Facts:
    """What a model's headers say.

    Attributes:
        family: for people.
        family_name: the key of `models.family.FAMILIES`, or another program's family.
        kind: model, lora and so on.
        licence: as the file says it, empty if it doesn't.
        description: the same.
        parameters: of all networks.
        styles: that a request may name.
        side: of the pictures it likes, in pixels; 0 if it doesn't say.
        trained_side: the same, where the file doesn't say it its family's.
        upscaler: whether it brings an upscaler of its own.
        variant: what its U-Net is for; base is text to image.
        prediction: what its network predicts, if that is known.
        few_steps: the distillation that it is known or named as, in words; empty for none.
        error: why it can't be used.
        problem: the same in its parts; empty if it can be used.
    """

    family: str = ""
    family_name: str = ""
    kind: str = ""
    licence: str = ""
    description: str = ""
    parameters: int = 0
    styles: tuple[str, ...] = ()
    side: int = 0
    trained_side: int = 0
    upscaler: bool = False
    variant: str = "base"
    prediction: str = ""
    few_steps: str = ""
    error: str = ""
    problem: Mapping[str, str] = field(default_factory=dict)


def place(entry: ModelEntry) -> Path | None:
    """Where a model's weights lie; None for the shipped model in a build without it."""
    return entry.path or shipped_model()


def facts_of(entry: ModelEntry) -> Facts:
    """The facts of a model, read once until its file changes."""
    path = place(entry)
    if path is None:
        return Facts(family=POCKET.label, kind="model", error="not in this build: untrained weights stand in")
    return _facts(path, path.stat().st_mtime_ns if path.exists() else 0)


@lru_cache(maxsize=512)
def _facts(path: Path, _modified: int) -> Facts:
    try:
        identity = identify(path)
        card = read_card(path) if identity.layout == "gouache" else None
    except GouacheError as error:
        parts = {name: text.replace(str(path), path.name) for name, text in error.to_dict().items()}
        return Facts(error=parts["message"], problem=parts)
    except OSError as error:
        said = error.strerror or type(error).__name__
        problem = CheckpointError(path.name, given=said, expected="a file that can be read").to_dict()
        return Facts(error=f"{path.name}: {said}", problem=problem)
    metadata: Mapping[str, str] = next((part.header.metadata for part in identity.parts.values()), {})
    said = next((metadata[key] for key in LICENCE_KEYS if metadata.get(key)), "")
    return Facts(
        family=family_label(identity.family),
        family_name=identity.family,
        kind=identity.kind,
        licence=card.licence if card is not None else said,
        description=card.description if card is not None else metadata.get("modelspec.description", ""),
        parameters=sum(part.parameters for part in identity.parts.values()),
        styles=tuple(getattr(card, "styles", ())),
        side=card.defaults.width if card is not None else 0,
        trained_side=card.defaults.width if card is not None else _family_side(identity.family),
        upscaler="upscaler" in identity.parts,
        variant=identity.variant,
        prediction=identity.prediction or "",
        few_steps=identity.few_steps.summary if identity.few_steps else "",
    )


def _family_side(name: str) -> int:
    """Edge of the pictures that a family was trained on; the larger one where there are two."""
    try:
        family = family_named(name)
    except GouacheError:
        return 0
    return max(family.size, family.v_size or 0)


def inspect(entry: ModelEntry) -> dict[str, Any]:
    """What `gouache inspect --json` says, with names in place of paths.

    Raises:
        InvalidInput: the file can't be used.
    """
    path = place(entry)
    if path is None:
        return {"kind": "model", "family": POCKET.name, "parts": {}, "metadata": {}, "error": facts_of(entry).error}
    try:
        found = describe(path, identify(path))
    except GouacheError as error:
        said = (error.given, error.expected, error.cure)
        parts = [str(part).replace(str(path), entry.name) for part in said]
        raise InvalidInput(f"model {entry.name!r}", given=parts[0], expected=parts[1], cure=parts[2]) from error
    found["path"] = entry.name
    for part in found["parts"].values():
        part["file"] = Path(part["file"]).name
    return found
