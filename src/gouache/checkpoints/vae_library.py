"""Autoencoders on the disk, by name, and their loading beside a model.

They are looked for in the folders ``vae`` and ``vaes`` (any case) of `hub.models_folder`, and in folders inside them,
then among the models and in the hub's cache. A name from a request over HTTP is compared with that list and never
becomes a path.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gouache.checkpoints import hub
from gouache.checkpoints.adapters.naming import folded
from gouache.checkpoints.detect import Identity
from gouache.checkpoints.identify import identify
from gouache.checkpoints.joined import SUFFIXES, with_vae
from gouache.errors import ModelNotFound, unknown_name
from gouache.files import existing

if TYPE_CHECKING:
    import torch

    from gouache.models.bundle import ModelBundle
    from gouache.models.vae import AutoencoderKL


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
        path: its file or folder, or a model whose autoencoder is taken.
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

    other = identify(path)
    unet = Identity("model", bundle.family, "single-file", parts={})
    joined = with_vae(unet, other, path)
    part = joined.parts["vae"]
    if not part.header.files:
        verify_sha256(part.header)
    network, _ = load_network(part, open_part(part.header), bundle.family, device=device, dtype=dtype)
    assert isinstance(network, AutoencoderKL), "the config decides the class"
    return network.requires_grad_(False), joined.notes_on_loading()
