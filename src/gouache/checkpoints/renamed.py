"""A weight file under other names, for layouts that no table of spellings covers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from gouache.checkpoints.diffusers.folder import joined_header, weight_files
from gouache.checkpoints.formats.header import Header, TensorInfo, open_header
from gouache.checkpoints.formats.safetensors import WeightSource


class Renamed:
    """A source whose tensors have other names, or are several of the file's, one below the other.

    Args:
        source: the file.
        names: name here -> those of the file.
    """

    def __init__(self, source: WeightSource, names: Mapping[str, tuple[str, ...]]) -> None:
        self.source, self.names = source, dict(names)
        self.header = renamed(source.header, names)

    def read(self, name: str, *, mapped: bool = True) -> Tensor:
        """One tensor."""
        rows = [self.source.read(one, mapped=mapped and len(self.names[name]) == 1) for one in self.names[name]]
        return rows[0] if len(rows) == 1 else torch.cat(rows)


def renamed(header: Header, names: Mapping[str, tuple[str, ...]]) -> Header:
    """The header as `Renamed` has it."""
    tensors = {}
    for name, own in names.items():
        infos = [header.tensors[one] for one in own]
        shape = infos[0].shape if len(infos) == 1 else (sum(one.shape[0] for one in infos), *infos[0].shape[1:])
        tensors[name] = infos[0] if len(infos) == 1 else TensorInfo(infos[0].dtype, shape)
    return replace(header, tensors=tensors)


def header_at(path: Path) -> Header:
    """Names and shapes of a file, or of the weights in a network's folder; errors as in `open_header`."""
    return joined_header(weight_files(path)) if path.is_dir() else open_header(path)
