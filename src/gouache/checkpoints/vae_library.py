"""Autoencoders on the disk, by name, and their loading beside a model.

They are looked for in the folders ``vae`` and ``vaes`` (any case) of `hub.models_folder`, and in folders inside them,
then among the models and in the hub's cache. A name from a request over HTTP is compared with that list and never
becomes a path.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from gouache.checkpoints import hub
from gouache.checkpoints.adapters.naming import folded
from gouache.checkpoints.detect import Identity, Part
from gouache.checkpoints.formats.header import Header, open_header, open_source
from gouache.checkpoints.identify import identify
from gouache.checkpoints.joined import SUFFIXES, with_vae
from gouache.checkpoints.shapes import tiny_blocks
from gouache.errors import IncompatibleCheckpoint, ModelNotFound, unknown_name
from gouache.files import existing

if TYPE_CHECKING:
    import torch

    from gouache.models.bundle import ModelBundle
    from gouache.models.vae import AutoencoderKL, WithTinyDecoder


def list_vaes(folder: Path | None = None) -> dict[str, Path]:
    """Every autoencoder in the folders of that name, by name (of its file without the suffix, or of its folder).

    Args:
        folder: the models folder; None takes `hub.models_folder()`.
    """
    root = folder or hub.models_folder()
    found: dict[str, Path] = {}
    for place in hub.weights_in(root, hub.VAE_FOLDERS, SUFFIXES):
        found.setdefault(place.name if place.is_dir() else place.stem, place)
    return found


def find_vae(name: str, *, paths: bool = True) -> Path:
    """The file or folder of an autoencoder.

    Args:
        name: its name, with or without its suffix; a model whose autoencoder is meant; or a path.
        paths: whether a path is taken.

    Raises:
        ModelNotFound: there is none; the nearest name is offered.
    """
    if paths and (path := existing(name)) is not None:
        return path
    known = list_vaes()
    short = name.rsplit(".", 1)[0] if name.lower().endswith(SUFFIXES) else name
    for one, place in known.items():
        if folded(one) in (folded(name), folded(short)):
            return place
    models = {model.name: model.path for model in hub.on_disk()}
    if name in models:
        return models[name]
    near = unknown_name("vae", name, known).cure if known else "None is there yet."
    raise ModelNotFound(
        f"vae {name!r}",
        given="no such autoencoder",
        expected=f"{'a path, or ' if paths else ''}a file or folder in the folder {hub.VAE_FOLDERS[0]} of the models",
        cure=near,
    )


def load_vae(
    path: Path, bundle: ModelBundle, *, device: torch.device, dtype: torch.dtype
) -> tuple[AutoencoderKL, tuple[str, ...]]:
    """Load an autoencoder for a model.

    Args:
        path: its file or folder, or a model whose autoencoder is taken; or a tiny decoder alone, as TAESD's are
            published: then the model's own autoencoder goes on encoding.
        bundle: the model; its family says the scale of latents that the file doesn't tell.
        device, dtype: where it goes, and the type of its numbers.

    Returns:
        The autoencoder, and notes on what was left out of its file.

    Raises:
        CheckpointError: it can't be loaded, or there is none.
        ConfigError: its latents have other channels than the model's.
    """
    from gouache.checkpoints.formats.safetensors import verify_sha256
    from gouache.checkpoints.networks import load_network, open_part
    from gouache.models.vae import AutoencoderKL

    if (header := _tiny_decoder_at(path)) is not None:
        return _with_tiny_decoder(header, bundle, device=device, dtype=dtype), ()
    other = identify(path)
    unet = Identity("model", bundle.family, "single-file", parts={})
    joined = with_vae(unet, other, path)
    part = joined.parts["vae"]
    if not part.header.files:
        verify_sha256(part.header)
    network, _ = load_network(part, open_part(part.header), bundle.family, device=device, dtype=dtype)
    assert isinstance(network, AutoencoderKL), "the config decides the class"
    return network.requires_grad_(False), joined.notes_on_loading()


_LAYER = re.compile(r"(\d+)\.")
_HALVES = {"decoder": ("1.weight", "3.conv.0.weight"), "encoder": ("0.weight", "1.conv.0.weight")}
"""Tensors by which the halves of a tiny autoencoder are told, in files of their own: its layers by their number."""


def _tiny_decoder_at(path: Path) -> Header | None:
    """Names and shapes of a tiny decoder in a file of its own, under diffusers' names; None for anything else.

    The published layer 0 squeezes the latents and has no tensors: `3.conv.0.weight` is `layers.2.conv.0.weight` there.

    Raises:
        IncompatibleCheckpoint: a tiny encoder alone.
    """
    if path.is_dir():
        return None
    found = open_header(path)
    if not all(_LAYER.match(name) for name in found.tensors):
        return None
    half = next((half for half, marks in _HALVES.items() if all(mark in found.tensors for mark in marks)), "")
    if half == "encoder":
        raise IncompatibleCheckpoint(
            str(path),
            given="the encoder of a tiny autoencoder (TAESD)",
            expected="its decoder, or an autoencoder",
            cure="Take the file taesd_decoder beside it, or diffusers' folder with both halves.",
        )
    if not half:
        return None
    from gouache.checkpoints.renamed import renamed

    return renamed(found, _decoder_names(found))


def _decoder_names(header: Header) -> dict[str, tuple[str, ...]]:
    """diffusers' name -> the published one."""
    return {_LAYER.sub(lambda at: f"layers.{int(at[1]) - 1}.", name, count=1): (name,) for name in header.tensors}


def _with_tiny_decoder(
    header: Header, bundle: ModelBundle, *, device: torch.device, dtype: torch.dtype
) -> WithTinyDecoder:
    from torch import device as torch_device

    from gouache.checkpoints.formats.safetensors import verify_sha256
    from gouache.checkpoints.networks import fill, plan
    from gouache.checkpoints.renamed import Renamed
    from gouache.models.tiny_vae import TinyDecoder
    from gouache.models.turns import turns_of
    from gouache.models.vae import WithTinyDecoder

    whole, where = bundle.vae, str(header.path)
    if not bundle.has_vae or turns_of(whole) is not None:
        raise IncompatibleCheckpoint(
            where,
            given="a decoder alone, beside "
            + ("networks that take turns (--sequential)" if bundle.has_vae else "none"),
            expected="a model with an autoencoder in memory, which encodes",
            cure="Name an autoencoder with both halves, such as diffusers' folder of this one.",
        )
    shapes = {name: info.shape for name, info in header.tensors.items()}
    blocks = tiny_blocks(shapes, "layers.", 2)
    first, last = shapes["layers.0.weight"], shapes.get(f"layers.{2 * len(blocks) + sum(blocks)}.weight", (0,))
    config = whole.config
    wanted = (config.latent_channels, config.image_channels, config.downscale)
    given = (first[1], last[0], 2 ** (len(blocks) - 1))
    if given != wanted:
        raise IncompatibleCheckpoint(
            where,
            given="a tiny decoder of {} latent channels, {} of the picture, {} times as large".format(*given),
            expected="{}, {} and {}, as this model's autoencoder".format(*wanted),
            cure="Take the one that was trained for this family of models.",
        )
    with torch_device("meta"):
        decoder = TinyDecoder(first[1], last[0], first[0], blocks)
    part = Part("vae", header, "", "ours", config)
    planned = plan(part, decoder, bundle.family)
    planned.report.check(where, "tiny decoder")
    source = open_source(header.path)
    verify_sha256(source.header)
    fill(decoder, planned, Renamed(source, _decoder_names(source.header)), device=device, dtype=dtype)
    return WithTinyDecoder(whole, decoder).eval().requires_grad_(False)
