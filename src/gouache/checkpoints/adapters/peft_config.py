"""What PEFT says of an adapter beside its tensors: alpha, rank, scaling, in ``adapter_config.json`` or in the metadata.
No torch.

PEFT's own folder holds ``adapter_config.json`` and ``adapter_model.safetensors``; diffusers writes the same settings,
one set a network, into the file's metadata.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gouache.checkpoints.formats.header import Header
from gouache.errors import IncompatibleCheckpoint

CONFIG_FILE = "adapter_config.json"
WEIGHTS_STEM = "adapter_model"
DIFFUSERS_METADATA = "lora_adapter_metadata"
PEFT_WRAPPER = "base_model.model."
WEIGHTS = (".safetensors", ".bin", ".pt")
MAX_CONFIG_BYTES = 1 << 20
MAX_PATTERN = 300
_NESTED = re.compile(r"[)\]}*+?][*+?{]")
APPLIED = ("LORA", "LOHA", "LOKR", "IA3", "OFT", "BOFT")
"""PEFT's kinds that can be merged here."""


@dataclass(frozen=True, slots=True)
class RotationSettings:
    """How PEFT makes a rotation of what it stores; defaults as there.

    Attributes:
        terms: terms of the Neumann series that stands for (I - Q)^-1; 0 for the exact inverse.
        radius: largest norm of a block's Q ("COFT"); None for none.
        shared: one block for all.
    """

    terms: int = 5
    radius: float | None = None
    shared: bool = False


@dataclass(frozen=True, slots=True)
class LayerSettings:
    """What a file says of a layer beside its tensors.

    Attributes:
        factor: of the change, where the layer has no alpha of its own.
        whole_scaled: whether `factor` holds for a LoKr of whole factors too, as in PEFT.
        rotation: how rotations are made.
        whole: whether the layer's own weight and bias may stand in the file.
        feedforward: whether PEFT's IA3 scales the layer's inputs.
    """

    factor: float = 1.0
    whole_scaled: bool = False
    rotation: RotationSettings = field(default_factory=RotationSettings)
    whole: bool = False
    feedforward: bool = False


@dataclass(frozen=True, slots=True)
class PeftSettings:
    """PEFT's settings of a file.

    Attributes:
        configs: for each network (``"unet"``, ``"text_encoder"``, ...) its settings; under ``""`` those for all.
        beside: whether they stand in ``adapter_config.json``.
        notes: what was taken from there.
    """

    configs: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    beside: bool = False
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, header: Header) -> PeftSettings:
        """The settings of a file.

        Raises:
            IncompatibleCheckpoint: the settings are no JSON, or of a kind that can't be merged.
        """
        file = config_beside(header)
        if file is not None:
            return cls._from_file(file)
        values = _parsed(header.metadata.get(DIFFUSERS_METADATA, "{}"), f"{header.path} metadata {DIFFUSERS_METADATA}")
        configs: dict[str, dict[str, object]] = {}
        for key, value in values.items():
            part, _, setting = key.partition(".")
            configs.setdefault(part, {})[setting] = value
        alone = header.path.stem.startswith(WEIGHTS_STEM) and not configs
        notes = (f"no {CONFIG_FILE} lies beside {header.path.name}: alpha was taken to be the rank",)
        return cls(configs, notes=notes if alone else ())

    @classmethod
    def _from_file(cls, file: Path) -> PeftSettings:
        values = _parsed(file.read_text(encoding="utf-8-sig"), str(file))
        kind = str(values.get("peft_type") or "LORA").upper()
        if kind not in APPLIED:
            raise IncompatibleCheckpoint(
                str(file),
                given=f"peft_type {kind[:40]}",
                expected=f"one of {', '.join(APPLIED)}",
                cure="Merge it into the checkpoint with the program that trained it.",
            )
        told = ("lora_alpha", "alpha", "r", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern")
        said = [f"{key} {values[key]}" for key in told if values.get(key)]
        return cls({"": {**values, "peft_type": kind}}, True, (f"{CONFIG_FILE}: {kind}, {', '.join(said)}",))

    def layer(self, spelling: str, rank: int) -> LayerSettings:
        """The settings of one layer.

        Args:
            spelling: as the file spells it.
            rank: as its tensors have it; 0 where they don't show it.
        """
        path = spelling.removeprefix(PEFT_WRAPPER)
        part, _, rest = path.partition(".")
        config, name = (self.configs[part], rest) if part in self.configs else (self.configs.get("", {}), path)
        kind = str(config.get("peft_type", "LORA")).upper()
        alpha = config.get("lora_alpha") if kind == "LORA" else config.get("alpha")
        alpha = _by_pattern(config.get("alpha_pattern"), name, alpha)
        if kind in ("LOHA", "LOKR"):
            rank = _whole_number(_by_pattern(config.get("rank_pattern"), name, config.get("r"))) or rank
        factor = 1.0
        if isinstance(alpha, int | float) and rank:
            factor = alpha / (rank**0.5 if kind == "LORA" and config.get("use_rslora") else rank)
        wrapped = self.beside or spelling.startswith(PEFT_WRAPPER)
        feedforward = _is_feedforward(config.get("feedforward_modules"), name)
        return LayerSettings(factor, kind == "LOKR", self._rotation(config), wrapped, feedforward)

    def _rotation(self, config: Mapping[str, object]) -> RotationSettings:
        if not self.beside:
            return RotationSettings()
        series = config.get("use_cayley_neumann", True)
        radius = config.get("eps") if config.get("coft") else None
        return RotationSettings(
            terms=_whole_number(config.get("num_cayley_neumann_terms", 5)) if series else 0,
            radius=float(radius) if isinstance(radius, int | float) else None,
            shared=bool(config.get("block_share")),
        )


def weights_of(folder: Path) -> Path | None:
    """The weights in PEFT's own folder; None if it is none."""
    files = [folder / f"{WEIGHTS_STEM}{suffix}" for suffix in WEIGHTS]
    return next((file for file in files if file.is_file() and (folder / CONFIG_FILE).is_file()), None)


def config_beside(header: Header) -> Path | None:
    """PEFT's settings in a file's folder, if they are its own: it has PEFT's name, or PEFT's names and no neighbour."""
    file = header.path.parent / CONFIG_FILE
    if not file.is_file() or file.stat().st_size > MAX_CONFIG_BYTES:
        return None
    if header.path.stem.startswith(WEIGHTS_STEM):
        return file
    neighbours = [path for path in header.path.parent.iterdir() if path.suffix.lower() in WEIGHTS]
    return file if len(neighbours) == 1 and all(name.startswith(PEFT_WRAPPER) for name in header.tensors) else None


def _parsed(text: str, where: str) -> dict[str, object]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise IncompatibleCheckpoint(
            where, given="no JSON", expected="a JSON object of PEFT's settings", cure="Get the adapter again."
        ) from error
    return {str(key): value for key, value in values.items()} if isinstance(values, dict) else {}


def _by_pattern(patterns: object, name: str, default: object) -> object:
    """PEFT's rule: the first pattern, a regular expression, that is the end of the layer's name."""
    for pattern, value in patterns.items() if isinstance(patterns, dict) else ():
        try:
            matched = re.match(rf"(.*\.)?({_bounded(str(pattern))})$", name)
        except re.error:
            matched = None
        if matched:
            return value
    return default


def _is_feedforward(modules: object, name: str) -> bool:
    """PEFT's rule: a pattern of the whole name, or ends of names."""
    if isinstance(modules, str):
        return re.fullmatch(_bounded(modules), name) is not None
    return isinstance(modules, list) and any(name.endswith(str(end)) for end in modules)


def _bounded(pattern: str) -> str:
    """The pattern; as plain text if matching could take exponential time, since anybody may have written the file."""
    repeated = sum(map(pattern.count, "*+{?"))
    return re.escape(pattern) if len(pattern) > MAX_PATTERN or repeated > 2 or _NESTED.search(pattern) else pattern


def _whole_number(value: object) -> int:
    return value if isinstance(value, int) and value > 0 else 0
