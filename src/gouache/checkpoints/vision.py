"""Loads CLIP's vision tower with its projection, as transformers saves `CLIPVisionModelWithProjection`, and what unCLIP
models have beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from gouache.checkpoints.adapters.kinds import find_adapter
from gouache.checkpoints.detect import Part
from gouache.checkpoints.diffusers.folder import read_json
from gouache.checkpoints.formats.header import Header, open_header
from gouache.checkpoints.networks import load_network, open_part
from gouache.checkpoints.renamed import Renamed, header_at, renamed
from gouache.diffusion.betas import cosine_betas
from gouache.errors import IncompatibleCheckpoint, ModelNotFound
from gouache.models.conditioning.image_encoder import ImageEncoder
from gouache.models.conditioning.unclip import EmbeddingNoise
from gouache.models.configs import ImageEncoderConfig

KIND = "image-encoder"
PREFIX = "vision_model."
EMBEDDER, AUGMENTOR = "embedder.model.visual.", "noise_augmentor."
"""Where single files of unCLIP have the vision tower, and the statistics of its embeddings."""
HEADS = {768: 12, 1024: 16, 1280: 16, 1664: 16}
"""Heads of the published towers by width: ViT-B, ViT-L, ViT-H, bigG."""
OPENAI = 1024
"""Towers up to this width are OpenAI's, with the quick form of GELU; wider ones OpenCLIP's."""


def load_image_encoder(
    path: Path, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> ImageEncoder:
    """Load a vision tower.

    Args:
        path: a file, or a folder with config.json and weights.
        device: where it goes.
        dtype: the type of its numbers; None keeps the file's.

    Raises:
        IncompatibleCheckpoint: something else, or tensors that don't fit.
        ModelNotFound, CorruptCheckpoint, UnsafeCheckpoint: as for a model.
    """
    header = header_at(path)
    names = _names(header)
    config = image_encoder_config(path, header)
    part = Part(KIND, renamed(header, names), "", "ours", config)
    network, _ = load_network(part, Renamed(open_part(header), names), "unknown", device=device, dtype=dtype)
    if not isinstance(network, ImageEncoder):
        raise IncompatibleCheckpoint(str(path), given=f"a {type(network).__name__}", expected="a vision tower")
    return network


def read_embedding_noise(folder: Path, width: int) -> EmbeddingNoise:
    """What an unCLIP model lays on a picture's embedding, from `image_normalizer` and `image_noising_scheduler`.

    Args:
        folder: of the model.
        width: of an embedding.

    Raises:
        ModelNotFound: one of the two is missing.
        IncompatibleCheckpoint: embeddings of another width, or levels of a kind that isn't known.
    """
    file = folder / "image_noising_scheduler" / "scheduler_config.json"
    if not file.is_file():
        raise ModelNotFound(str(file), given="no file there", expected="the levels of noise on a picture's embedding")
    told = {"beta_schedule": "linear", "num_train_timesteps": 1000, **read_json(file)}
    if told["beta_schedule"] != "squaredcos_cap_v2" or not isinstance(told["num_train_timesteps"], int):
        raise IncompatibleCheckpoint(
            str(file), given=f"beta_schedule {told['beta_schedule']!r}", expected="'squaredcos_cap_v2'"
        )
    header = header_at(folder / "image_normalizer")
    source = open_part(header)
    shapes = {name: info.shape for name, info in header.tensors.items()}
    if shapes != {"mean": (1, width), "std": (1, width)}:
        raise IncompatibleCheckpoint(str(header.path), given=f"{shapes}", expected=f"mean and std of [1, {width}]")
    mean, std = (source.read(name, mapped=False).float()[0] for name in ("mean", "std"))
    return EmbeddingNoise(mean, std, (1 - cosine_betas(told["num_train_timesteps"])).cumprod(0))


def has_embedder(header: Header) -> bool:
    """Whether a single file has unCLIP's vision tower and the statistics of its embeddings."""
    tower = ("conv1.weight", "positional_embedding", "proj", "transformer.resblocks.0.mlp.c_fc.weight")
    needed = (*(EMBEDDER + name for name in tower), *(AUGMENTOR + name for name in ("data_mean", "data_std")))
    return all(name in header.tensors for name in needed)


def load_embedder(
    path: Path, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> tuple[ImageEncoder, EmbeddingNoise]:
    """What an unCLIP model in a single file reads pictures with; arguments and errors as in `load_image_encoder`."""
    header = open_header(path)
    if not has_embedder(header):
        raise IncompatibleCheckpoint(
            str(path), given="no image encoder in it", expected=f"tensors under {EMBEDDER} and {AUGMENTOR}"
        )
    config = embedder_config(header)
    source = open_part(header)
    part = Part(KIND, header, EMBEDDER, "open_clip", config)
    network, _ = load_network(part, source, "unknown", device=device, dtype=dtype)
    assert isinstance(network, ImageEncoder), "the config decides the class"
    wanted = (1, config.projection_width)
    statistics = []
    for name in (f"{AUGMENTOR}data_mean", f"{AUGMENTOR}data_std"):
        if header.tensors[name].shape != wanted:
            given = f"{name} of {list(header.tensors[name].shape)}"
            raise IncompatibleCheckpoint(str(path), given=given, expected=f"{list(wanted)}, as the embedding")
        statistics.append(source.read(name, mapped=False).float()[0])
    table = f"{AUGMENTOR}alphas_cumprod"
    usual = EmbeddingNoise.plain(config.projection_width).alphas_cumprod
    levels = source.read(table, mapped=False).double() if table in header.tensors else usual
    return network, EmbeddingNoise(statistics[0], statistics[1], levels)


def embedder_config(header: Header) -> ImageEncoderConfig:
    """The sizes of the vision tower in a single file; errors as in `tower_config`."""
    shapes = {
        name.removeprefix(EMBEDDER): info.shape for name, info in header.tensors.items() if name.startswith(EMBEDDER)
    }
    ours = {
        "embeddings.patch_embedding.weight": shapes["conv1.weight"],
        "embeddings.position_embedding.weight": shapes["positional_embedding"],
        "encoder.layers.0.mlp.fc1.weight": shapes["transformer.resblocks.0.mlp.c_fc.weight"],
        "visual_projection.weight": shapes["proj"][::-1],
    }
    layers = {name.split(".")[2] for name in shapes if name.startswith("transformer.resblocks.")}
    return tower_config({**ours, **{f"encoder.layers.{one}": () for one in layers}}, {}, str(header.path))


def image_encoder_config(path: Path, header: Header) -> ImageEncoderConfig:
    """The tower's sizes, from shapes and the config.json beside them; nothing else is read.

    Raises:
        IncompatibleCheckpoint: it is no vision tower.
    """
    found = find_adapter(header.tensors, header.metadata)
    if found is None or found.kind != KIND:
        given = "another kind of file" if found is None else f"a {found.kind}"
        raise IncompatibleCheckpoint(str(path), given=given, expected="CLIP's vision tower with its projection")
    shapes = {ours: header.tensors[theirs].shape for ours, (theirs,) in _names(header).items()}
    told = read_json(path / "config.json") if path.is_dir() and (path / "config.json").is_file() else {}
    inner = told.get("vision_config")
    return tower_config(shapes, {**told, **(inner if isinstance(inner, dict) else {})}, str(path))


def tower_config(shapes: Mapping[str, tuple[int, ...]], told: Mapping[str, object], where: str) -> ImageEncoderConfig:
    """Rebuild a tower's config.

    Args:
        shapes: of its tensors, under our names.
        told: what a config.json says of it, under transformers' keys.
        where: the file, for errors.

    Raises:
        ConfigError: sizes that don't go together.
    """
    patch, places = shapes["embeddings.patch_embedding.weight"], shapes["embeddings.position_embedding.weight"][0]
    width, activation = patch[0], told.get("hidden_act")
    usual = "quick_gelu" if width <= OPENAI else "gelu"
    return ImageEncoderConfig.from_dict(
        {
            "image_size": round((places - 1) ** 0.5) * patch[2],
            "patch_size": patch[2],
            "width": width,
            "inner_width": shapes["encoder.layers.0.mlp.fc1.weight"][0],
            "layers": len({name.split(".")[2] for name in shapes if name.startswith("encoder.layers.")}),
            "heads": told.get("num_attention_heads") or HEADS.get(width, max(1, width // 64)),
            "activation": activation if activation in ("gelu", "quick_gelu") else usual,
            "projection_width": shapes["visual_projection.weight"][0],
        },
        where=where,
    )


def _names(header: Header) -> dict[str, tuple[str, ...]]:
    """Our names -> the file's; constant buffers are left out."""
    return {
        name.removeprefix(PREFIX): (name,)
        for name in header.tensors
        if not name.endswith(".position_ids") and name != "logit_scale"
    }
