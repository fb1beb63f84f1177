"""Latents of what a set's pictures were before, encoded once: what a network that changes pictures begins with."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gouache.checkpoints.formats.safetensors import SafetensorsFile, load_tensors, save_tensors
from gouache.data.packed import PackedPictures
from gouache.errors import CorruptCheckpoint
from gouache.models.vae import AutoencoderKL
from gouache.pipeline.inputs.tensors import rgba_to_tensor
from gouache.training.batches.store import SHARD, Encoders, shard_file, shards_of
from gouache.training.batches.tuning_set import EachView, Shown, TuningSet
from gouache.training.stage import Preparing


class ConditionStore:
    """Latents of the conditions of a set's views, as the autoencoder gives them.

    Args:
        folder: where `encoded_conditions` wrote them.
        views: what lies where in it.
    """

    def __init__(self, folder: Path, views: EachView) -> None:
        self._shards = [SafetensorsFile(shard_file(folder, numbers)) for numbers in shards_of(len(views))]
        self._places = {view: place for place, view in enumerate(views.views)}

    def latents(self, shown: Sequence[Shown]) -> Tensor:
        """Latents [B,C,h,w] in fp32, not normalised."""
        places = [self._places[one.row, one.mirrored] for one in shown]
        return torch.stack([self._shards[place // SHARD].read(str(place)) for place in places])


def encoded_conditions(run: Path, data: TuningSet, encoders: Encoders) -> Generator[Preparing, None, ConditionStore]:
    """Encode the condition of every view of a set that has some, unless that is done.

    Each is encoded alone and kept in fp32, so that its numbers are those of encoding it in every step.

    Args:
        run: folder of the whole training, where they are stored.
        data: the set.
        encoders: of the model.
    """
    views = data.views
    key = hashlib.sha256(f"{views.fingerprint}/{encoders.sha256}".encode()).hexdigest()[:16]
    folder = run / f"conditions-{key}"
    folder.mkdir(parents=True, exist_ok=True)
    for numbers in shards_of(len(views)):
        path, found = shard_file(folder, numbers), dict[str, Tensor]()
        if _is_whole(path):
            continue
        for number in numbers:
            image = condition_image(data.pictures, *views.views[number], encoders.vae)
            found[str(number)] = _latent(encoders.vae, image)
            yield Preparing(number + 1, len(views))
        save_tensors(path, found)
    return ConditionStore(folder, views)


def condition_image(pictures: PackedPictures, row: int, mirrored: bool, vae: AutoencoderKL) -> Tensor:
    """What a picture was before, with the channels that an autoencoder takes. [C,H,W] in [-1, 1]"""
    own = pictures.condition(row)
    assert own is not None, "a set without conditions is refused before"
    return rgba_to_tensor(np.array(own[:, ::-1] if mirrored else own)[None])[0, : vae.config.image_channels]


@torch.no_grad()
def _latent(vae: AutoencoderKL, image: Tensor) -> Tensor:
    """[C,h,w] in fp32, on the CPU."""
    place = next(vae.parameters())
    return vae.encode(image[None].to(place)).mode()[0].float().cpu()


def _is_whole(path: Path) -> bool:
    try:
        if path.exists():
            load_tensors(path)
            return True
    except CorruptCheckpoint:
        pass
    return False
