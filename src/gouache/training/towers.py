"""The two towers that the stage `clip` trains: text and picture to one space of unit vectors."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from gouache.checkpoints.formats.header import read_header
from gouache.checkpoints.formats.safetensors import load_tensors, save_tensors
from gouache.config import Config
from gouache.errors import CheckpointError, ConfigError
from gouache.models.configs import SentenceEncoderConfig
from gouache.models.text.clip import TextEncoding
from gouache.models.text.sentence import SentenceEncoder
from gouache.models.text.tokenizers import WordPieceTokenizer
from gouache.nn.resnet import ResnetBlock

COMPONENT = "clip"
WORDS = "embeddings.word_embeddings.weight"
NORM_GROUPS = 8


class TowersConfig(Config):
    """Sizes of both towers."""

    text: SentenceEncoderConfig = SentenceEncoderConfig()
    """Sizes of the text tower, `added` not counted."""
    added: int = Field(default=0, ge=0)
    """Rows added behind the text tower's vocabulary."""
    embedding_dim: int = Field(default=256, gt=0)
    channels: tuple[int, ...] = Field(default=(48, 96, 192, 256), min_length=1)
    blocks: int = Field(default=1, ge=1)
    image_size: int = Field(default=0, ge=0)
    """Side in pixels of the pictures that were trained on; 0 = not known."""


class ImageTower(nn.Module):
    """A small convolutional network with group norms: RGB [B,3,H,W] in [-1,1] -> features [B,C]."""

    def __init__(self, channels: Sequence[int], blocks: int) -> None:
        super().__init__()
        if any(width % NORM_GROUPS for width in channels):
            raise ConfigError("clip.image_channels", given=tuple(channels), expected=f"multiples of {NORM_GROUPS}")
        self.stem = nn.Conv2d(3, channels[0], 7, stride=4, padding=3)
        layers: list[nn.Module] = []
        before = channels[0]
        for level, width in enumerate(channels):
            if level:
                layers.append(nn.Conv2d(before, before, 3, stride=2, padding=1))
            for _ in range(blocks):
                layers.append(ResnetBlock(before, width, groups=NORM_GROUPS))
                before = width
        self.layers = nn.Sequential(*layers)
        self.norm = nn.GroupNorm(NORM_GROUPS, before)

    def forward(self, image: Tensor) -> Tensor:
        features: Tensor = F.silu(self.norm(self.layers(self.stem(image))))
        return features.mean((2, 3))


class Towers(nn.Module):
    """Text tower and image tower with their projections.

    Args:
        config: sizes.
        vocabulary: the text tower's pieces, the added ones last.
        text: the text tower to start from; none makes one with random weights.
    """

    def __init__(self, config: TowersConfig, vocabulary: Sequence[str], text: SentenceEncoder | None = None) -> None:
        super().__init__()
        if len(vocabulary) != config.text.vocabulary_size + config.added:
            raise ConfigError(
                "towers: vocabulary",
                given=f"{len(vocabulary)} pieces",
                expected=f"{config.text.vocabulary_size} + {config.added} added",
            )
        self.config, self.vocabulary = config, tuple(vocabulary)
        self.tokenizer = WordPieceTokenizer(
            vocabulary, max_length=config.text.max_tokens, lowercase=config.text.lowercase
        )
        self.text = text or SentenceEncoder(config.text)
        self.added_embeddings = nn.Parameter(self.text.get_parameter(WORDS).detach().mean(0).repeat(config.added, 1))
        self.image = ImageTower(config.channels, config.blocks)
        self.text_projection = nn.Linear(config.text.width, config.embedding_dim, bias=False)
        self.image_projection = nn.Linear(config.channels[-1], config.embedding_dim, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(2.6593))  # log(1 / 0.07), Radford et al. 2021, section 2.5

    def tokens(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids and mask of the first chunk of each text, as long as the longest. [B,L], [B,L]"""
        chunks = [self.tokenizer.ids(text)[: self.tokenizer.chunk_length] for text in texts]
        lengths = torch.tensor([len(chunk) + 2 for chunk in chunks])
        longest = int(lengths.max())
        ids = torch.tensor([self.tokenizer.frame(chunk)[:longest] for chunk in chunks])
        return ids, torch.arange(longest) < lengths[:, None]

    def read(self, ids: Tensor, mask: Tensor) -> TextEncoding:
        """The text tower's states, with the added rows behind its table."""
        if not self.config.added:
            plain: TextEncoding = self.text(ids, mask)
            return plain
        words = torch.cat([self.text.get_parameter(WORDS), self.added_embeddings])
        encoding: TextEncoding = functional_call(self.text, {WORDS: words}, (ids, mask))
        return encoding

    def embed_text(self, pooled: Tensor) -> Tensor:
        """Pooled text states [B,D] to unit vectors [B,E]."""
        return F.normalize(self.text_projection(pooled), dim=1)

    def embed_features(self, features: Tensor) -> Tensor:
        """Features of pictures [B,C] to unit vectors [B,E]."""
        return F.normalize(self.image_projection(features), dim=1)

    def merged_text(self) -> SentenceEncoder:
        """The text tower alone, with the added rows in its own table."""
        config = self.config.text.model_copy(update={"vocabulary_size": len(self.vocabulary)})
        words = torch.cat([self.text.get_parameter(WORDS), self.added_embeddings]).detach()
        with torch.device("meta"):
            encoder = SentenceEncoder(config)
        encoder.load_state_dict({**self.text.state_dict(), WORDS: words}, assign=True)
        return encoder.eval().requires_grad_(False)

    def save(self, path: Path) -> None:
        """Write both towers with their vocabulary to one file."""
        metadata = {
            "component": COMPONENT,
            "config": self.config.to_json(),
            "vocabulary": "\n".join(self.vocabulary),
        }
        save_tensors(path, {name: value.contiguous() for name, value in self.state_dict().items()}, metadata)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote, ready to use.

        Raises:
            CheckpointError: the file holds something else.
        """
        metadata = read_header(path).metadata
        if metadata.get("component") != COMPONENT:
            raise CheckpointError(
                str(path),
                given=f"component {metadata.get('component')!r}",
                expected="towers of the stage clip",
                cure="Pass the file that `gouache train clip` left.",
            )
        config = TowersConfig.from_json(metadata["config"], where=str(path))
        towers = cls(config, metadata["vocabulary"].split("\n"))
        towers.load_state_dict(load_tensors(path))
        return towers.eval().requires_grad_(False)


def write_sentence_encoder(encoder: SentenceEncoder, vocabulary: Sequence[str], folder: Path) -> None:
    """Write a sentence encoder in its published form, which the table [text] of a config takes.

    The weights come last: their file tells that the folder is whole.
    """
    config = encoder.config
    folder.mkdir(parents=True, exist_ok=True)
    published = {
        "model_type": "bert",
        "vocab_size": config.vocabulary_size,
        "hidden_size": config.width,
        "intermediate_size": config.inner_width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "max_position_embeddings": config.positions,
        "layer_norm_eps": config.norm_eps,
        "type_vocab_size": 2,
        "hidden_act": "gelu",
    }
    (folder / "config.json").write_text(json.dumps(published, indent=1) + "\n", encoding="utf-8")
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    metadata = {"component": "text_encoder", "config": config.to_json()}
    save_tensors(folder / "model.safetensors", {k: v.contiguous() for k, v in encoder.state_dict().items()}, metadata)
