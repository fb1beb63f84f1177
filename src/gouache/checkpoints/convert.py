"""Reads a model from any layout and writes it in another, tensor by tensor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from gouache.checkpoints.detect import Identity, Part
from gouache.checkpoints.formats.header import TensorInfo
from gouache.checkpoints.formats.safetensors import TORCH_DTYPES, WeightSource, dtype_name, verify_sha256
from gouache.checkpoints.identify import identify, read_card, synonyms_of, vocabulary_of
from gouache.checkpoints.load import (
    check_loadable,
    denoiser_config,
    model_name,
    with_recorded_latents,
)
from gouache.checkpoints.model_defaults import generation_defaults
from gouache.checkpoints.networks import build_on_meta, open_part, plan, read_planned
from gouache.checkpoints.save import Format, ModelToWrite, NetworkToWrite, write_model
from gouache.checkpoints.t5_vocabulary import t5_tokenizer
from gouache.errors import IncompatibleCheckpoint
from gouache.models.configs import SentenceEncoderConfig, T5Config

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
"""Types that weights can be written in, by the names that people use."""


def convert(
    source: str | Path,
    target: str | Path,
    to: Format,
    *,
    dtype: torch.dtype | None = None,
    on_tensor: Callable[[str], None] = lambda _: None,
) -> Identity:
    """Write the model at `source` to `target` in another layout.

    Args:
        source: a file or folder of any layout that loads.
        target: a path where nothing is yet.
        to: ``"diffusers"``, ``"single-file"`` or ``"gouache"`` (one file if `target` ends in ``.safetensors``).
        dtype: what floating-point tensors become; None keeps them, bit for bit.
        on_tensor: is called with each tensor's name as it is written.

    Returns:
        what the source was.

    Raises:
        The errors of `load_bundle`, and those of `write_model`.
    """
    identity, model = model_at(source, dtype=dtype, on_tensor=on_tensor)
    write_model(model, target, to)
    return identity


def model_at(
    source: str | Path, *, dtype: torch.dtype | None = None, on_tensor: Callable[[str], None] = lambda _: None
) -> tuple[Identity, ModelToWrite]:
    """A model on the disk that can be written: its tensors are read when they are asked for, one at a time.

    Args:
        source: a file or folder of any layout that loads.
        dtype: what floating-point tensors become; None keeps them.
        on_tensor: is called with each tensor's name as it is read.

    Raises:
        The errors of `load_bundle`.
    """
    source = Path(source)
    identity = with_recorded_latents(identify(source))
    check_loadable(identity, str(source))
    if identity.variant in ("unclip", "variation"):
        raise IncompatibleCheckpoint(
            str(source),
            given=f"{'an unCLIP' if identity.variant == 'unclip' else 'an Image Variations'} model, which has an image "
            "encoder",
            expected="a model that paints from words",
            cure="Copy its folder as it is.",
        )
    opened: dict[Path, WeightSource] = {}
    networks = {}
    for name, part in identity.parts.items():
        if part.header.path not in opened:
            if not part.header.files:
                verify_sha256(part.header)
            opened[part.header.path] = open_part(part.header)
        networks[name] = _network(part, opened[part.header.path], identity.family, dtype, on_tensor)
    denoiser = denoiser_config(source, identity, None, networks["unet"].tensor_of)
    sentences = any(isinstance(part.config, SentenceEncoderConfig) for part in identity.parts.values())
    t5 = identity.parts.get("text_encoder_3")
    own = read_card(source) if identity.layout == "gouache" else None
    model = ModelToWrite(
        family=identity.family,
        variant=identity.variant,
        name=model_name(source, identity),
        denoiser=denoiser,
        defaults=generation_defaults(source, identity, denoiser),
        networks=networks,
        vocabulary=vocabulary_of(source) if sentences else (),
        t5_tokenizer=t5_tokenizer(source, t5.config) if t5 and isinstance(t5.config, T5Config) else None,
        styles=own.styles if own else (),
        synonyms=synonyms_of(source) if own else {},
        description=own.description if own else "",
        licence=own.licence if own else "",
    )
    return identity, model


def _network(
    part: Part, source: WeightSource, family: str, dtype: torch.dtype | None, on_tensor: Callable[[str], None]
) -> NetworkToWrite:
    planned = plan(part, build_on_meta(part.config), family)
    planned.report.check(str(part.header.path), part.name)
    infos = {}
    for name, shape in planned.shapes.items():
        found = part.header.tensors[planned.spellings[name].name].dtype
        floating = TORCH_DTYPES[found].is_floating_point
        infos[name] = TensorInfo(dtype_name(dtype) if dtype and floating else found, shape)

    def tensor_of(name: str) -> Tensor:
        on_tensor(f"{part.name}.{name}")
        wanted = TORCH_DTYPES[infos[name].dtype]
        return read_planned(source, planned, name, wanted, mapped=False)

    return NetworkToWrite(part.config, infos, tensor_of)
