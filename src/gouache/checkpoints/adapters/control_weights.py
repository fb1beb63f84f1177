"""Loads ControlNets: diffusers folders, single files in either naming, and whole checkpoints that hold one."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from gouache.checkpoints.adapters.kinds import Adapter, find_adapter
from gouache.checkpoints.detect import LEFT_OUT, Part, part_tensors
from gouache.checkpoints.diffusers import component_config as diffusers_config
from gouache.checkpoints.diffusers.folder import joined_header, read_json, weight_files
from gouache.checkpoints.formats.header import Header, open_header
from gouache.checkpoints.networks import LoadReport, load_network, open_part
from gouache.checkpoints.shapes import Naming, controlnet_config
from gouache.errors import IncompatibleCheckpoint
from gouache.models.conditioning.controlnet import ControlNet

KIND = "controlnet"
# (prefix in the file, naming, a tensor that is there if the network is)
MARKS: tuple[tuple[str, Naming, str], ...] = (
    ("control_model.", "ldm", "input_hint_block.0.weight"),
    ("", "ldm", "input_hint_block.0.weight"),
    ("", "ours", "controlnet_cond_embedding.conv_in.weight"),
)
BASE_MODEL = re.compile(r"^(model|first_stage_model|cond_stage_model|conditioner)\.")
"""The first ControlNets lie in whole checkpoints, beside the model that they were trained with."""
REFUSED = {
    "lora_controlnet": "a control-LoRA, which is a difference to its base model",
    "difference": "a difference to its base model",
    "task_embedding": "a union of several ControlNets",
    "control_add_embedding.linear_1.weight": "a union of several ControlNets",
}


def control_header(path: Path) -> Header:
    """Names and shapes of a ControlNet's file, or of the weights in its folder; errors as in `open_header`."""
    return joined_header(weight_files(path)) if path.is_dir() else open_header(path)


def load_controlnet(path: Path, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> ControlNet:
    """Load a ControlNet for SD 1.x, 2.x or SDXL.

    Args:
        path: a file, or a folder with config.json and weights.
        device: where it goes.
        dtype: the type of its numbers; None keeps the file's.

    Raises:
        IncompatibleCheckpoint: something else, a kind that can't be used, or tensors that don't fit.
        ModelNotFound, CorruptCheckpoint, UnsafeCheckpoint, UnknownFamily: as for a model.
    """
    header = control_header(path)
    adapter = find_adapter(header.tensors, header.metadata)
    part = _part(path, header, adapter)
    _refuse_strangers(part)
    network, _ = load_network(
        part, open_part(header), adapter.family if adapter else "unknown", device=device, dtype=dtype
    )
    if not isinstance(network, ControlNet):
        raise IncompatibleCheckpoint(str(path), given=f"a {type(network).__name__}", expected="a ControlNet")
    return network


def _part(path: Path, header: Header, adapter: Adapter | None) -> Part:
    where = str(path)
    if adapter is None or adapter.kind != KIND:
        given = "another kind of file" if adapter is None else f"a {adapter.kind}, {adapter.label}"
        raise IncompatibleCheckpoint(where, given=given, expected="a ControlNet")
    for mark, what in REFUSED.items():
        if mark in header.tensors:
            raise IncompatibleCheckpoint(
                where, given=what, expected="a ControlNet of its own", cure="Get the full network."
            )
    for prefix, naming, mark in MARKS:
        if prefix + mark in header.tensors:
            shapes = {name: info.shape for name, info in part_tensors(header.tensors, prefix).items()}
            config = controlnet_config(shapes, naming, where)
            beside = path / "config.json"
            if path.is_dir() and beside.is_file():
                config = diffusers_config.controlnet_from_json(read_json(beside), config, str(beside))
            return Part(KIND, header, prefix, naming, config)
    raise IncompatibleCheckpoint(where, given=adapter.label, expected="a ControlNet with its own hint convolutions")


def _refuse_strangers(part: Part) -> None:
    """Beside the network only the model that it was trained with may stand in its file."""
    if part.prefix:
        strange = [name for name in part.header.tensors if not name.startswith(part.prefix) and not _is_base(name)]
        LoadReport(unexpected=strange).check(str(part.header.path), "ControlNet")


def _is_base(name: str) -> bool:
    return bool(BASE_MODEL.match(name)) or any(pattern.search(name) for pattern, _ in LEFT_OUT)
