"""Loads IP-Adapters: their authors' files, whatever the suffix, and what diffusers saves of a U-Net that has one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch

from gouache.checkpoints.adapters.kinds import Adapter, find_adapter
from gouache.checkpoints.detect import Part
from gouache.checkpoints.formats.header import Header
from gouache.checkpoints.networks import load_network, open_part
from gouache.checkpoints.renamed import Renamed, header_at, renamed
from gouache.errors import IncompatibleCheckpoint
from gouache.models.conditioning.ip_adapter import HEAD_WIDTH, IPAdapter
from gouache.models.configs import IPAdapterConfig

KIND = "ip-adapter"
Names = Mapping[str, tuple[str, ...]]
SAVED = "encoder_hid_proj.image_projection_layers.0."
_SAVED_BLOCK = re.compile(r"(down_blocks|up_blocks|mid_block)\..*\.attn2\.processor\.(to_[kv]_ip)\.0\.weight")
_SAVED_PROJECTION = (
    (re.compile(r"image_embeds\.(\w+)"), r"proj.\1"),
    (re.compile(r"ff\.net\.0\.proj\.(\w+)"), r"proj.0.\1"),
    (re.compile(r"ff\.net\.2\.(\w+)"), r"proj.2.\1"),
    (re.compile(r"layers\.(\d+)\.ln0\.(\w+)"), r"layers.\1.0.norm1.\2"),
    (re.compile(r"layers\.(\d+)\.ln1\.(\w+)"), r"layers.\1.0.norm2.\2"),
    (re.compile(r"layers\.(\d+)\.attn\.to_q\.(\w+)"), r"layers.\1.0.to_q.\2"),
    (re.compile(r"layers\.(\d+)\.attn\.to_[kv]\.(\w+)"), r"layers.\1.0.to_kv.\2"),
    (re.compile(r"layers\.(\d+)\.attn\.to_out\.0\.(\w+)"), r"layers.\1.0.to_out.\2"),
    (re.compile(r"layers\.(\d+)\.ff\.0\.(\w+)"), r"layers.\1.1.0.\2"),
    (re.compile(r"layers\.(\d+)\.ff\.1\.net\.0\.proj\.(\w+)"), r"layers.\1.1.1.\2"),
    (re.compile(r"layers\.(\d+)\.ff\.1\.net\.2\.(\w+)"), r"layers.\1.1.3.\2"),
)
"""diffusers' names of a projection -> the authors'."""


def load_ip_adapter(path: Path, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> IPAdapter:
    """Load an IP-Adapter for SD 1.x, 2.x or SDXL: plain, plus (also plus-face) or full-face.

    Args:
        path: a file, or a folder with config.json and weights.
        device: where it goes.
        dtype: the type of its numbers; None keeps the file's.

    Raises:
        IncompatibleCheckpoint: something else, a kind that can't be used, or tensors that don't fit.
        ModelNotFound, CorruptCheckpoint, UnsafeCheckpoint, UnknownFamily: as for a model.
    """
    header = header_at(path)
    adapter = find_adapter(header.tensors, header.metadata)
    _check(path, adapter)
    names = _names(header, str(path))
    ours = renamed(header, names)
    part = Part(KIND, ours, "", "ours", ip_adapter_config(ours))
    network, _ = load_network(part, Renamed(open_part(header), names), "unknown", device=device, dtype=dtype)
    if not isinstance(network, IPAdapter):
        raise IncompatibleCheckpoint(str(path), given=f"a {type(network).__name__}", expected="an IP-Adapter")
    return network


def _check(path: Path, adapter: Adapter | None) -> None:
    if adapter is None or adapter.kind != KIND:
        given = "another kind of file" if adapter is None else f"a {adapter.kind}, {adapter.label}"
        raise IncompatibleCheckpoint(str(path), given=given, expected="an IP-Adapter")
    if adapter.label.startswith("FaceID"):
        raise IncompatibleCheckpoint(
            str(path),
            given="an IP-Adapter of the FaceID kind, which reads InsightFace's vector of a face",
            expected="one that sees the picture: plain, plus, plus-face or full-face",
            cure="For faces take ip-adapter-plus-face or ip-adapter-full-face.",
        )
    if adapter.label.startswith("of an unknown kind"):
        raise IncompatibleCheckpoint(
            str(path), given="an IP-Adapter with another projection", expected="plain, plus, plus-face or full-face"
        )


def _names(header: Header, where: str) -> Names:
    """The authors' names of every tensor -> what the file has for it."""
    if any(name.startswith("ip_adapter.") for name in header.tensors):
        return {name: (name,) for name in header.tensors}
    several = sorted(name for name in header.tensors if re.search(r"image_projection_layers\.[1-9]", name))
    if several:
        raise IncompatibleCheckpoint(
            where, given="several IP-Adapters in one file", expected="one", cure="Save each by itself."
        )
    found: dict[str, tuple[str, ...]] = {}
    blocks = [name for name in header.tensors if _SAVED_BLOCK.fullmatch(name)]
    places = list(dict.fromkeys(name.partition(".processor.")[0] for name in sorted(blocks, key=_place)))
    for i, place in enumerate(places):
        for kind in ("to_k_ip", "to_v_ip"):
            found[f"ip_adapter.{2 * i + 1}.{kind}.weight"] = (f"{place}.processor.{kind}.0.weight",)
    for name in header.tensors:
        if name.startswith(SAVED):
            ours = _authors_name(name.removeprefix(SAVED), full=f"{SAVED}ff.net.0.proj.weight" in header.tensors)
            # Keys stand above values.
            found[f"image_proj.{ours}"] = tuple(sorted((*found.get(f"image_proj.{ours}", ()), name)))
        elif name not in blocks:
            found[name] = (name,)
    return found


def _authors_name(name: str, *, full: bool) -> str:
    if full and name.startswith("norm."):
        return name.replace("norm.", "proj.3.")
    for pattern, authors in _SAVED_PROJECTION:
        if pattern.fullmatch(name):
            return pattern.sub(authors, name)
    return name


def _place(name: str) -> tuple[int, list[int]]:
    """Way down, way up, middle; then by the numbers in the name."""
    order = ("down_blocks", "up_blocks", "mid_block").index(name.partition(".")[0])
    return order, [int(number) for number in re.findall(r"\.(\d+)\.", name.partition(".attn2")[0] + ".")]


def ip_adapter_config(header: Header) -> IPAdapterConfig:
    """Rebuild an IP-Adapter's config from the shapes under its authors' names.

    Raises:
        IncompatibleCheckpoint: tensors that every one of its kind has are missing.
    """
    shapes = {name.removeprefix("image_proj."): info.shape for name, info in header.tensors.items()}
    numbers = sorted(
        int(name.split(".")[1]) for name in shapes if re.fullmatch(r"ip_adapter\.\d+\.to_k_ip\.weight", name)
    )
    widths = {number: shapes[f"ip_adapter.{number}.to_k_ip.weight"] for number in numbers}
    if not numbers or numbers != list(range(1, 2 * len(numbers), 2)):
        raise IncompatibleCheckpoint(
            str(header.path), given=f"attentions numbered {numbers[:6]}", expected="1, 3, 5 and so on without a gap"
        )
    shared = {"context_width": widths[1][1], "block_widths": tuple(shape[0] for shape in widths.values())}
    context = widths[1][1]
    try:
        if "proj.weight" in shapes:
            rows, picture = shapes["proj.weight"]
            values: dict[str, object] = {"kind": "plain", "tokens": rows // context, "picture_width": picture}
        elif "proj.3.weight" in shapes:
            values = {"kind": "full", "picture_width": shapes["proj.0.weight"][1]}
        else:
            values = {
                "kind": "plus",
                "tokens": shapes["latents"][1],
                "width": shapes["latents"][2],
                "picture_width": shapes["proj_in.weight"][1],
                "inner_width": shapes["layers.0.1.1.weight"][0],
                "heads": shapes["layers.0.0.to_q.weight"][0] // HEAD_WIDTH,
                "layers": len({name.split(".")[1] for name in shapes if name.startswith("layers.")}),
            }
    except (KeyError, ValueError, IndexError) as error:
        raise IncompatibleCheckpoint(
            str(header.path), given=f"a projection without {error}", expected="every tensor of it"
        ) from error
    return IPAdapterConfig.from_dict({**shared, **values}, where=str(header.path))
