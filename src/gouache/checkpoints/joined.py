"""Models whose parts lie apart: a U-Net, text encoders and an autoencoder in files of their own.

Programs with nodes keep them so (folders ``unet``, ``clip`` and ``vae``, or all in one). What each file is, its tensors
say; which text encoder comes first, their widths. An autoencoder may also be named beside any model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from gouache.checkpoints import detect
from gouache.checkpoints.detect import Identity, Part, Place
from gouache.checkpoints.formats.header import few, open_header
from gouache.checkpoints.shapes import TOKEN_EMBEDDING
from gouache.errors import GouacheError, IncompatibleCheckpoint, UnknownFamily
from gouache.models.configs import VAEConfig

SUFFIXES = (".safetensors", ".gguf", ".ckpt", ".pt", ".pth", ".bin")
T5 = "text_encoder_3"
CLIPS = ("text_encoder", "text_encoder_2")
TEXT_FOLDERS = ("clip", "text_encoders", "text_encoder")
"""Where other programs keep text encoders apart; any case."""
SD3_WIDTHS = (768, 1280)
"""Of ViT-L and bigG."""
PART_FOLDERS = ("unet", "diffusion_models", "checkpoints", "clip", "text_encoders", "text_encoder", "vae")
"""Where other programs keep the parts of models; any case."""


def weight_files(folder: Path) -> list[Path]:
    """The weight files of a folder, and those in its folders of parts."""
    places = [folder, *(one for one in sorted(folder.iterdir()) if one.is_dir() and one.name.lower() in PART_FOLDERS)]
    return [
        file
        for place in places
        for file in sorted(place.iterdir())
        if file.is_file() and file.suffix.lower() in SUFFIXES and not file.name.startswith(".")
    ]


def join(files: Sequence[Path], where: str) -> Identity | None:
    """The model that files make up together; None if they don't: no U-Net, two of a kind, or something else among them.

    Args:
        files: each holds one part or several.
        where: their folder, for errors.

    Raises:
        UnknownFamily, ConfigError: a part is no network of a kind that gouache knows.
    """
    found: dict[str, Place] = {}
    texts: list[Place] = []
    for file in files:
        try:
            header = open_header(file)
            parts = detect.parts_of(header)
        except GouacheError:
            return None
        if not parts:
            return None
        for name, place in parts.items():
            if name in CLIPS:
                texts.append(place)
            elif name in found:
                return None
            else:
                found[name] = place
    if "unet" not in found or len(texts) > 2:
        return None
    texts.sort(key=_width)
    if len({_width(text) for text in texts}) != len(texts):
        return None
    found |= dict(zip(CLIPS, texts, strict=False))
    identity = detect.describe(found)
    if identity.kind == "unet":
        raise UnknownFamily(
            where, given=f"a U-Net and nothing else in {few([file.name for file in files])}", expected="a whole model"
        )
    return replace(identity, layout="single-file")


def with_texts_beside(identity: Identity, path: Path) -> Identity:
    """A Stable Diffusion 3 file without text encoders, as it was published, with those that lie beside it.

    They are looked for beside the file, and in folders for text encoders there and one above. Of two of a kind the
    larger file is taken, which holds the more exact numbers. What was taken is noted.

    Args:
        identity: of the file.
        path: the file.

    Returns:
        The model; `identity` itself where the two CLIPs aren't found.
    """
    found: dict[int | str, tuple[Path, Place]] = {}
    for file in sorted(_beside_for_texts(path), key=lambda one: one.stat().st_size):
        try:
            parts = detect.parts_of(open_header(file))
        except GouacheError:
            continue
        if list(parts) == [T5]:
            found[T5] = (file, parts[T5])
        elif len(parts) == 1 and next(iter(parts)) in CLIPS:
            place = next(iter(parts.values()))
            found[_width(place)] = (file, place)
    widths = sorted(width for width in found if isinstance(width, int))
    chosen = SD3_WIDTHS if set(SD3_WIDTHS) <= set(widths) else tuple(widths)
    if len(chosen) != len(CLIPS):
        return identity
    taken = dict(zip(CLIPS, (found[width] for width in chosen), strict=True))
    taken |= {T5: found[T5]} if T5 in found else {}
    whole = detect.describe(detect.parts_of(open_header(path)) | {name: place for name, (_, place) in taken.items()})
    names = ", ".join(file.name for file, _ in taken.values())
    return replace(whole, layout="single-file", loading_notes=(f"the text encoders lie beside the model: {names}",))


def _beside_for_texts(path: Path) -> list[Path]:
    places = [path.parent]
    for folder in (path.parent, path.parent.parent):
        places += [one for one in sorted(folder.iterdir()) if one.is_dir() and one.name.lower() in TEXT_FOLDERS]
    files = [file for place in places for file in place.iterdir() if file.is_file() and file != path]
    return [file for file in files if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")]


def _width(text: Place) -> int:
    return text.shapes()[TOKEN_EMBEDDING[text.naming]][-1]


def with_vae(identity: Identity, other: Identity, path: Path) -> Identity:
    """A model with another autoencoder.

    Args:
        identity: of the model; it may have none.
        other: of what lies at `path`: an autoencoder, or a model whose autoencoder is taken.
        path: of the autoencoder.

    Raises:
        IncompatibleCheckpoint: there is no autoencoder, or one for latents of other channels.
    """
    part = other.parts.get("vae")
    if part is None or not isinstance(part.config, VAEConfig):
        label = f" ({other.label})" if other.label else ""
        raise IncompatibleCheckpoint(
            str(path), given=f"a {other.kind}{label}", expected="an autoencoder", cure="Name one that fits the model."
        )
    if identity.kind != "model":
        return identity
    if not _says_its_scale(part, path):
        part = replace(part, config=detect.of_family(part.config, identity.family))
    parts = {name: one for name, one in identity.parts.items() if name != "vae"} | {"vae": part}
    return replace(identity, parts=parts, kind=detect.kind_of(parts))


def _says_its_scale(part: Part, path: Path) -> bool:
    """Whether the scale of its latents is recorded beside the weights; else it is the family's."""
    return path.is_dir() or detect.recorded_config(part.header, part.name) is not None


def beside(path: Path) -> Path | None:
    """The autoencoder that lies beside a checkpoint under its name, as ``NAME.vae.safetensors`` or ``NAME.vae.pt``."""
    if not path.is_file():
        return None
    names = [path.with_name(f"{path.stem}.vae{suffix}") for suffix in SUFFIXES]
    return next((file for file in names if file.is_file()), None)
