"""The judge: towers trained apart from the generator, or a published CLIP, used as a measuring instrument."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from gouache.checkpoints.hub import file_sha256
from gouache.errors import CheckpointError, MissingDependency
from gouache.models.conditioning.image_encoder import CLIP_MEAN, CLIP_STD
from gouache.models.text.tokenizers import END_ID, START_ID, ClipTokenizer
from gouache.pipeline.inputs.tensors import rgba_to_tensor
from gouache.training.stage import batched
from gouache.training.towers import Towers


class Instrument(Protocol):
    """What compares pictures with captions and with one another."""

    sha256: str

    def features(self, pictures: NDArray[np.uint8]) -> Tensor:
        """Features of pictures on white, for KID: uint8 [N,S,S,4] with straight alpha -> [N,C]."""
        ...

    def pictures(self, pictures: NDArray[np.uint8]) -> Tensor:
        """Unit vectors of pictures on white: uint8 [N,S,S,4] with straight alpha -> [N,E]."""
        ...

    def captions(self, captions: Sequence[str]) -> Tensor:
        """Unit vectors of captions [N,E]."""
        ...


class Judge:
    """Unit vectors and features of pictures and captions.

    Args:
        towers: from the stage `clip`; pictures of another size than theirs are brought to it.
        sha256: of its file, or empty.
    """

    def __init__(self, towers: Towers, sha256: str = "") -> None:
        self.towers, self.sha256 = towers.eval().requires_grad_(False), sha256

    @torch.no_grad()
    def features(self, pictures: NDArray[np.uint8]) -> Tensor:
        """Features of pictures on white: uint8 [N,S,S,4] with straight alpha -> [N,C]."""
        parts = [self.towers.image(self._image(pictures[part])) for part in batched(len(pictures))]
        return torch.cat(parts)

    def pictures(self, pictures: NDArray[np.uint8]) -> Tensor:
        """Unit vectors of pictures on white: uint8 [N,S,S,4] with straight alpha -> [N,E]."""
        return self.towers.embed_features(self.features(pictures))

    @torch.no_grad()
    def captions(self, captions: Sequence[str]) -> Tensor:
        """Unit vectors of captions [N,E]."""
        # A batch is as long as its longest caption, so captions of like length go together.
        order = sorted(range(len(captions)), key=lambda i: len(captions[i]))
        vectors = torch.empty(len(captions), self.towers.config.embedding_dim)
        for part in batched(len(captions)):
            places = [order[k] for k in part]
            ids, mask = self.towers.tokens([captions[i] for i in places])
            pooled = self.towers.read(ids, mask).pooled
            assert pooled is not None, "a sentence encoder always pools"
            vectors[places] = self.towers.embed_text(pooled)
        return vectors

    def _image(self, pictures: NDArray[np.uint8]) -> Tensor:
        image, size = rgba_to_tensor(pictures)[:, :3], self.towers.config.image_size
        if size in (0, image.shape[-1]):
            return image
        return F.interpolate(image, size=(size, size), mode="bilinear", antialias=True, align_corners=False)


class ClipJudge:
    """A published CLIP (Radford et al. 2021), as `transformers` reads it. Its features are its unscaled vectors.

    Args:
        model: a `transformers.CLIPModel` with OpenAI's vocabulary.
        sha256: of its weights, or empty.
    """

    def __init__(self, model: Any, sha256: str = "") -> None:
        self.model, self.sha256 = model.eval().requires_grad_(False), sha256
        self.tokenizer = ClipTokenizer(max_length=model.config.text_config.max_position_embeddings)

    @torch.no_grad()
    def features(self, pictures: NDArray[np.uint8]) -> Tensor:
        """Vectors of pictures on white: uint8 [N,S,S,4] with straight alpha -> [N,E]."""
        side = self.model.config.vision_config.image_size
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
        found = []
        for part in batched(len(pictures), 16):
            image = rgba_to_tensor(pictures[part])[:, :3] / 2 + 0.5
            image = F.interpolate(image, size=(side, side), mode="bicubic", antialias=True, align_corners=False)
            pooled = self.model.vision_model(pixel_values=(image.clamp(0, 1) - mean) / std).pooler_output
            found.append(self.model.visual_projection(pooled))
        return torch.cat(found)

    def pictures(self, pictures: NDArray[np.uint8]) -> Tensor:
        """Unit vectors of pictures on white: uint8 [N,S,S,4] with straight alpha -> [N,E]."""
        return F.normalize(self.features(pictures), dim=-1)

    @torch.no_grad()
    def captions(self, captions: Sequence[str]) -> Tensor:
        """Unit vectors of captions [N,E]; what is longer than 75 tokens is cut."""
        length = self.tokenizer.max_length
        rows = []
        for caption in captions:
            row = [START_ID, *self.tokenizer.ids(caption)[: length - 2], END_ID]
            rows.append(row + [END_ID] * (length - len(row)))
        ids = torch.tensor(rows)
        pooled = [self.model.text_model(input_ids=ids[part]).pooler_output for part in batched(len(rows))]
        return F.normalize(self.model.text_projection(torch.cat(pooled)), dim=-1)


def _load_clip(folder: Path) -> ClipJudge:
    try:
        from transformers import CLIPModel
    except ImportError as error:
        raise MissingDependency(
            "--judge", given=f"a CLIP at {folder}", expected="the package transformers", cure="pip install transformers"
        ) from error
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise CheckpointError(str(folder), given="no model.safetensors", expected="a CLIP's weights")
    model = CLIPModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)  # nosec B615
    return ClipJudge(model, file_sha256(weights))


def open_instrument(path: Path) -> Instrument:
    """What `--judge` names: the file that stage `clip` left, or the folder of a published CLIP.

    Raises:
        CheckpointError: neither, or damaged.
        MissingDependency: a CLIP, and transformers is not installed.
    """
    if not path.is_dir():
        return load_judge(path)
    config = path / "config.json"
    kind = json.loads(config.read_text(encoding="utf-8")).get("model_type") if config.is_file() else None
    if kind != "clip":
        raise CheckpointError(
            str(path), given=f"a folder of kind {kind}", expected="a CLIP's (config.json, model.safetensors), or a file"
        )
    return _load_clip(path)


def load_judge(path: Path) -> Judge:
    """Load what the stage `clip` left.

    Raises:
        CheckpointError: not such a file, or damaged.
    """
    towers = Towers.load(path)
    with path.open("rb") as file:
        return Judge(towers, hashlib.file_digest(file, "sha256").hexdigest())
