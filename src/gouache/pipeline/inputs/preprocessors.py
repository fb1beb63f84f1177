"""Control pictures that a network draws from a photograph: depth, and what is where; and masks from words.

The networks are transformers' (the extra ``gouache[preprocess]``); users put their weights into the models folder.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from gouache.checkpoints.adapters.preprocessor_library import MASK, field_of, find_preprocessor
from gouache.errors import IncompatibleCheckpoint, InvalidInput, MissingDependency

FAR_IS_LARGE = ("ZoeDepth", "GLPN")
"""Networks that give distances; the others give their inverse, so that near is large, as control pictures have it."""
COLOURS = bytes.fromhex(
    "787878b4787806e6e650323204c8037878508c8c8ccc05ffe6e6e604fa07e005ffebff0796053d78784608ff33ff06528fff8cccff04"
    "ff3307cc46030066c83de6faff06330b66ffff0747ff09e00907e6dcdcdcff095c7009ff08ffd607ffe0ffb8060aff47ff290a07ffff"
    "e0ff086608ffff3d06ffc207ff7a0800ff14ff0829ff05990633ffeb0cffa0961400a3ff8c8c8cfa0a0f14ff001fff00ff1f00ffe000"
    "99ff000000ffff470000ebff00adff1f00ff0bc8c8ff520000fff5003dff00ff7000ff85ff0000ffa300ff6600c2ff00008fff33ff00"
    "0052ff00ff2900ffad0a00ffadff0000ff99ff5c00ff00ffff00f5ff0066ffad00ff0014ffb8b8001fff00ff3d0047ffff00cc00ffc2"
    "00ff52000aff0070ff3300ff00c2ff007aff00ffa3ff990000ff0aff70008fff005200ffa3ff00ffeb0008b8aa8500ff00ff5cb800ff"
    "ff001f00b8ff00d6ffff00705cff0000e0ff70e0ff46b8a0a300ff9900ff47ff00ff00a3ffcc00ff008f00ffeb85ff00ff00ebf500ff"
    "ff007afff5000abed4d6ff0000ccff1400ffffff000099ff0029ff00ffcc2900ff29ff00ad00ff00f5ff4700ff7a00ff00ffb8005cff"
    "b8ff000085ffffd60019c2c266ff005c00ff"
)
"""Colours of ADE20K's 150 classes (Zhou et al. 2017), with which ControlNets for segments were trained."""


def drawn(kind: str, picture: Image.Image, folder: Path | None = None) -> Image.Image:
    """What a network draws of a picture, at the picture's size.

    Args:
        kind: ``"depth"`` (white is near) or ``"segmentation"`` (a colour for each of ADE20K's classes).
        picture: mode RGB.
        folder: the models folder; None takes the usual one.

    Raises:
        ModelNotFound, InvalidInput: as `find_preprocessor`.
        MissingDependency: transformers isn't installed.
        IncompatibleCheckpoint: transformers can't load the folder, or its classes aren't ADE20K's.
    """
    path = find_preprocessor(kind, folder)
    network, processor = _opened(kind, path, _written(path))
    inputs = processor(images=picture.convert("RGB"), return_tensors="pt")
    with torch.inference_mode():
        found = network(**inputs)
    if kind == "depth":
        far = any(name.startswith(FAR_IS_LARGE) for name in network.config.architectures or ())
        return _grey(-found.predicted_depth if far else found.predicted_depth, picture)
    return _coloured(found.logits, picture, path)


LIKELY = 128
"""Level from which a mask from words is white where the request names none: as likely as not."""


def mask_from_words(text: str, picture: Image.Image, threshold: int | None, folder: Path | None = None) -> Image.Image:
    """Where words are seen in a picture, by CLIPSeg (Luddecke and Ecker, arXiv:2112.10003).

    Args:
        text: a few words, such as ``"the sofa"``.
        picture: mode RGB.
        threshold: level of the likelihood, 1..255, from which a pixel is white; None takes `LIKELY`.
        folder: the models folder; None takes the usual one.

    Returns:
        A mask of the picture's size, mode L, 255 where the words are seen, else 0.

    Raises:
        ModelNotFound, InvalidInput: as `find_preprocessor`.
        InvalidInput: the text is too long for the network, or nothing in the picture is so likely.
        MissingDependency, IncompatibleCheckpoint: as `drawn`.
    """
    path = find_preprocessor(MASK, folder)
    network, processor = _opened(MASK, path, _written(path))
    inputs = processor(text=[text], images=[picture.convert("RGB")], return_tensors="pt")
    tokens, most = inputs["input_ids"].shape[1], network.config.text_config.max_position_embeddings
    if tokens > most:
        raise InvalidInput(
            field_of(MASK), given=f"{tokens} tokens", expected=f"at most {most}", cure="Name the thing in a few words."
        )
    with torch.inference_mode():
        logits = network(**inputs).logits
    size = (picture.height, picture.width)
    full = F.interpolate(logits.float()[None], size=size, mode="bilinear", align_corners=False)  # [1,1,H,W]
    levels = (full[0, 0].sigmoid() * 255).round()
    cut_at, highest = LIKELY if threshold is None else threshold, int(levels.max())
    if highest < cut_at:
        raise InvalidInput(
            field_of(MASK),
            given=f"{text!r}, which is seen nowhere: the likeliest place has {highest} of 255",
            expected=f"a place with {cut_at} or more",
            cure="Use other words, or a lower mask.threshold (--mask-threshold).",
        )
    return Image.fromarray(((levels >= cut_at) * 255).to(torch.uint8).numpy(), "L")


def _written(path: Path) -> int:
    return max(file.stat().st_mtime_ns for file in path.iterdir())


def _grey(depth: Tensor, picture: Image.Image) -> Image.Image:
    """depth [1,h,w], near is large -> mode L, stretched to 0..255."""
    size = (picture.height, picture.width)
    full = F.interpolate(depth[None].float(), size=size, mode="bicubic", align_corners=False)[0, 0]
    low, high = full.min(), full.max()
    levels = ((full - low) / (high - low).clamp_min(1e-6) * 255).round()
    return Image.fromarray(levels.to(torch.uint8).numpy(), "L")


def _coloured(logits: Tensor, picture: Image.Image, path: Path) -> Image.Image:
    """logits [1,classes,h,w] -> mode RGB."""
    colours = np.frombuffer(COLOURS, np.uint8).reshape(-1, 3)
    if logits.shape[1] != len(colours):
        raise IncompatibleCheckpoint(
            str(path),
            given=f"a network of {logits.shape[1]} classes",
            expected=f"one of ADE20K's {len(colours)}, whose colours ControlNets know",
        )
    size = (picture.height, picture.width)
    classes = F.interpolate(logits.float(), size=size, mode="bilinear", align_corners=False)[0].argmax(0)  # [H,W]
    return Image.fromarray(colours[classes.numpy()], "RGB")


@lru_cache(maxsize=1)
def _opened(kind: str, path: Path, _written: int) -> tuple[Any, Any]:
    """The network and what prepares pictures for it. Nothing is downloaded, unpickled, or run from the folder."""
    try:
        import transformers
    except ImportError as error:
        raise MissingDependency(
            field_of(kind),
            given="no package transformers",
            expected="it",
            cure="Install it with `pip install 'gouache[preprocess]'`.",
        ) from error
    classes = {
        "depth": transformers.AutoModelForDepthEstimation,
        "segmentation": transformers.AutoModelForSemanticSegmentation,
        MASK: transformers.CLIPSegForImageSegmentation,
    }
    processors = {MASK: transformers.CLIPSegProcessor}
    safe = {"local_files_only": True, "trust_remote_code": False}
    try:
        network = classes[kind].from_pretrained(str(path), use_safetensors=True, **safe)
        processor = processors.get(kind, transformers.AutoImageProcessor).from_pretrained(str(path), **safe)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise IncompatibleCheckpoint(
            str(path),
            given=" ".join(str(error).split())[:300],
            expected="config.json, model.safetensors and preprocessor_config.json of transformers"
            + (", and the tokenizer's files" if kind == MASK else ""),
        ) from error
    return network.eval().requires_grad_(False), processor
