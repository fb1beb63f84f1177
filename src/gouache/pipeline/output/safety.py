"""The last thing that happens to a finished picture before anybody sees it: the safety gate and the watermark.

Both are off unless the request asks for them, and both are written down in the picture's recipe. The user supplies the
weights of the gate's checker.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from torch import Tensor

from gouache.checkpoints.diffusers.folder import read_json
from gouache.checkpoints.formats.header import open_source
from gouache.checkpoints.vision import tower_config
from gouache.environment import Variable
from gouache.errors import IncompatibleCheckpoint, InvalidInput, ModelNotFound
from gouache.models.conditioning.image_encoder import SafetyChecker, preprocess
from gouache.pipeline.generate.generation import Event, Painted, Progress
from gouache.pipeline.inputs.images import on_background
from gouache.pipeline.inputs.tensors import to_tensor
from gouache.pipeline.output.recipe import pixels_digest
from gouache.pipeline.request import Request

STEP = 36.0
BLOCK = 8
"""Pixels along the side of what holds one bit."""
MARGIN = 5.0
"""How far the moved coefficient stays above the next: rounding to bytes must not change their order."""
READABLE_PIXELS = 256 * 256
"""The package refuses smaller pictures; `read_watermark` doesn't."""
_ROUNDS = 3
_RED, _GREEN, _BLUE = 0.299, 0.587, 0.114
_U, _HALF = 0.492, 128.0

Coefficients = NDArray[np.float64]


def bits_of(text: str) -> NDArray[np.uint8]:
    """The text's UTF-8 bytes as bits, the highest first. [8 * bytes]"""
    return np.unpackbits(np.frombuffer(text.encode("utf-8"), np.uint8))


def add_watermark(picture: Image.Image, text: str) -> Image.Image:
    """A copy that carries the text.

    Args:
        picture: mode RGB or RGBA; transparency stays.
        text: at least one character.

    Raises:
        InvalidInput: the picture is too small to hold every bit once, or no text.
    """
    bits = bits_of(text)
    rows, columns = picture.height // BLOCK, picture.width // BLOCK
    if len(bits) == 0 or rows * columns < len(bits):
        raise InvalidInput(
            "watermark",
            given=f"{len(bits)} bits for {picture.width} x {picture.height} pixels",
            expected=f"1 to {rows * columns} bits here: one for every {BLOCK} x {BLOCK} pixels",
            cure="Paint larger, or shorten the text.",
        )
    pixels = np.asarray(picture.convert(picture.mode if picture.mode == "RGBA" else "RGB")).copy()  # [H,W,3 or 4]
    colours = pixels[: rows * BLOCK, : columns * BLOCK, :3]
    wanted = np.resize(bits, rows * columns).astype(np.float64)
    for _ in range(_ROUNDS):
        # Where a colour had no room, another round finds what the first one left.
        change = _moved(_blocks(colours), wanted)
        if not change.any():
            break
        colours[...] = _recoloured(colours.astype(np.float64), _spread(change, rows, columns))
    return Image.fromarray(pixels)


def read_watermark(picture: Image.Image, length: int) -> bytes:
    """What a watermark of so many bytes says; without one, any bytes.

    Args:
        picture: any size that holds as many bits.
        length: in bytes.
    """
    rows, columns = picture.height // BLOCK, picture.width // BLOCK
    if not 1 <= length * 8 <= rows * columns:
        raise InvalidInput("length", given=length, expected=f"1 to {rows * columns // 8} bytes in this picture")
    pixels = np.asarray(picture.convert("RGB"))[: rows * BLOCK, : columns * BLOCK]
    blocks = _blocks(pixels)
    votes = (blocks[:, 1:].max(axis=1) % STEP) > STEP / 2  # [rows * columns]
    place = np.arange(len(votes)) % (length * 8)
    share = np.bincount(place, votes, length * 8) / np.bincount(place, minlength=length * 8)
    return np.packbits(share * 255 > 127).tobytes()


def carries(picture: Image.Image, text: str) -> bool:
    """Whether the text can be read from the picture."""
    data = text.encode("utf-8")
    return read_watermark(picture, len(data)) == data


def _blocks(pixels: NDArray[np.uint8]) -> Coefficients:
    """Haar averages of U in blocks, row by row. [blocks,16]"""
    red, green, blue = (pixels[..., k].astype(np.float64) for k in range(3))
    bright = np.rint(_RED * red + _GREEN * green + _BLUE * blue)
    u = np.clip(np.rint(_U * (blue - bright) + _HALF), 0, 255)
    height, width = u.shape
    averages: Coefficients = u.reshape(height // 2, 2, width // 2, 2).sum(axis=(1, 3)) / 2  # [H/2,W/2], 0..510
    tiles: Coefficients = averages.reshape(height // BLOCK, 4, width // BLOCK, 4).swapaxes(1, 2)
    return tiles.reshape(-1, 16)


def _moved(blocks: Coefficients, bits: Coefficients) -> Coefficients:
    """What to add to each coefficient so that its block says its bit. [blocks,16]"""
    numbers = np.arange(len(blocks))
    place = blocks[:, 1:].argmax(axis=1) + 1
    value = blocks[numbers, place]
    others = blocks.copy()
    others[:, 0] = others[numbers, place] = -np.inf
    lowest = others.max(axis=1) + MARGIN
    centre = STEP * (0.25 + 0.5 * bits)  # The middle of the half that means the bit.
    cell = np.rint((value - centre) / STEP)
    cell = np.maximum(cell, np.ceil((lowest - centre) / STEP))
    target = cell * STEP + centre
    said = (np.abs((value - centre) / STEP - np.rint((value - centre) / STEP)) < 0.2) & (value >= lowest)
    change = np.zeros_like(blocks)
    change[numbers, place] = np.where(said, 0.0, target - value)
    return change


def _spread(change: Coefficients, rows: int, columns: int) -> Coefficients:
    """Changes of the averages as changes of U of every pixel. [H,W]"""
    grid = change.reshape(rows, columns, 4, 4).swapaxes(1, 2).reshape(rows * 4, columns * 4)
    spread: Coefficients = (grid / 2).repeat(2, axis=0).repeat(2, axis=1)
    return spread


def _recoloured(colours: Coefficients, change: Coefficients) -> NDArray[np.uint8]:
    """Pixels [H,W,3] with U changed: blue and green at equal brightness, then, where blue ends, red and green too."""
    red, green, blue = (colours[..., k] for k in range(3))
    # U = 0.492 (blue - Y): with Y fixed, blue takes it all, and green pays for blue's share in Y.
    wanted = blue + change / _U
    new_blue = np.clip(wanted, 0, 255)
    new_green = green - (new_blue - blue) * _BLUE / _GREEN
    rest = (wanted - new_blue) / (_RED + _GREEN)
    shifted = [np.clip(channel - rest, 0, 255) for channel in (red, new_green)]
    return np.rint(np.stack([*shifted, new_blue], axis=-1)).astype(np.uint8)


FOLDER = "safety_checker"
FILES = ("model.safetensors", "pytorch_model.bin", "model.fp16.safetensors")
BLUR = 12
"""A blurred picture keeps about so many spots along its longer side."""
_OWN = ("concept_embeds", "concept_embeds_weights", "special_care_embeds", "special_care_embeds_weights")
_SAID = "blocked by the\nsafety checker"


class SafetyGate:
    """Looks at pictures.

    Args:
        checker: in inference mode.
        name: of its file, for notes.
    """

    def __init__(self, checker: SafetyChecker, name: str) -> None:
        self.checker, self.name = checker, name

    def concepts(self, picture: Image.Image) -> tuple[int, ...]:
        """Numbers of the concepts that the picture is too near to; none = it may be shown."""
        pixels = to_tensor(on_background(picture, "white").convert("RGB"), 3)[None]  # [1,3,H,W]
        found: list[tuple[int, ...]] = self.checker(preprocess(pixels, self.checker.config.image_size))
        return found[0]


def open_gate(model: Path | None) -> SafetyGate:
    """The checker that the environment names, else the one beside the model in a diffusers folder.

    Args:
        model: where the model lies.

    Raises:
        ModelNotFound: there is none.
        CheckpointError: it can't be read, or is something else.
    """
    named = os.environ.get(Variable.SAFETY_CHECKER)
    beside = None if model is None else model / FOLDER
    path = Path(named).expanduser() if named else beside
    if path is None or not path.exists():
        raise ModelNotFound(
            "safety checker",
            given=f"nothing at {named!r}" if named else "no weights",
            expected="the folder or file of a checker in diffusers' layout (StableDiffusionSafetyChecker)",
            cure=f"Name it in {Variable.SAFETY_CHECKER}, or paint with --safety off.",
        )
    return SafetyGate(load_safety_checker(path), path.name)


def load_safety_checker(path: Path) -> SafetyChecker:
    """Read a checker's weights, strictly.

    Args:
        path: a folder with `config.json`, or a weight file.

    Raises:
        ModelNotFound: no weight file in the folder.
        IncompatibleCheckpoint: tensors are missing, unexpected or of another shape.
    """
    file, told = _file_of(path)
    source = open_source(file)
    names = {_ours(name): name for name in source.header.tensors if not name.endswith("position_ids")}
    shapes = {name: source.header.tensors[names[name]] for name in names}
    if any(name not in shapes for name in (*_OWN, "tower.visual_projection.weight")):
        raise IncompatibleCheckpoint(
            str(file),
            given=f"{len(names)} tensors of something else",
            expected="diffusers' safety checker",
            cure="Name the folder `safety_checker` of a diffusers model.",
        )
    tower = {name.removeprefix("tower."): info.shape for name, info in shapes.items()}
    config = tower_config(tower, told, str(file))
    checker = SafetyChecker(config, shapes["concept_embeds"].shape[0], shapes["special_care_embeds"].shape[0])
    wanted = {name: tuple(value.shape) for name, value in checker.state_dict().items()}
    wrong = sorted(set(wanted) ^ set(shapes)) or [name for name in wanted if shapes[name].shape != wanted[name]]
    if wrong:
        raise IncompatibleCheckpoint(
            str(file), given=f"{len(wrong)} tensors that differ: {wrong[:4]}", expected="those of a CLIP vision tower"
        )
    tensors: dict[str, Tensor] = {name: source.read(names[name]).float() for name in names}
    checker.load_state_dict(tensors, assign=True)
    return checker.eval().requires_grad_(False)


def _file_of(path: Path) -> tuple[Path, dict[str, object]]:
    """The weight file, and what `config.json` says about the tower."""
    if path.is_file():
        return path, {}
    file = next((path / name for name in FILES if (path / name).is_file()), None)
    if file is None:
        raise ModelNotFound("safety checker", given=str(path), expected=f"one of {', '.join(FILES)} in it")
    told = path / "config.json"
    vision = read_json(told).get("vision_config") if told.is_file() else None
    return file, vision if isinstance(vision, dict) else {}


def _ours(name: str) -> str:
    """transformers puts the prefix `vision_model.` once or, in published files, twice."""
    if name == "visual_projection.weight":
        return "tower.visual_projection.weight"
    rest = name
    while rest.startswith("vision_model."):
        rest = rest.removeprefix("vision_model.")
    return name if rest == name else f"tower.{rest}"


def blurred(picture: Image.Image) -> Image.Image:
    """So soft that nothing can be made out."""
    return picture.filter(ImageFilter.GaussianBlur(max(picture.size) / BLUR))


def placeholder(size: tuple[int, int]) -> Image.Image:
    """What stands for a blocked picture: grey, crossed out, and saying so."""
    picture = Image.new("RGB", size, (118, 118, 118))
    draw = ImageDraw.Draw(picture)
    draw.line((0, 0, *size), fill=(150, 150, 150), width=max(1, min(size) // 64))
    draw.line((0, size[1], size[0], 0), fill=(150, 150, 150), width=max(1, min(size) // 64))
    font = ImageFont.load_default(max(8.0, min(size) / 12))
    middle = (size[0] / 2, size[1] / 2)
    draw.multiline_text(middle, _SAID, fill="white", font=font, anchor="mm", align="center")
    return picture


class Release:
    """One model's way out.

    Args:
        model: where the model lies; a checker may lie beside it.
    """

    def __init__(self, model: Path | None) -> None:
        self.model = model
        self._gate: SafetyGate | None = None

    def apply(self, request: Request, events: Iterator[Event]) -> Iterator[Event]:
        """The events with every picture checked and marked as the request says; the very same ones if it says nothing.

        Raises:
            ModelNotFound: a check is asked for and there is no checker; nothing is painted then.
            InvalidInput: while iterating, if a picture is too small for the watermark.
        """
        if request.safety == "off" and request.watermark is None:
            return events
        if request.safety != "off" and self._gate is None:
            self._gate = open_gate(self.model)
        return self._released(request, events, self._gate if request.safety != "off" else None)

    def _released(self, request: Request, events: Iterator[Event], gate: SafetyGate | None) -> Iterator[Event]:
        for event in events:
            if isinstance(event, Painted):
                yield released(event, request, gate)
            else:
                yield _unseen(event, request, gate)


def _unseen(progress: Progress, request: Request, gate: SafetyGate | None) -> Progress:
    """The same progress; a picture that was not checked yet is only shown blurred, and an unfinished one is checked."""
    look, stop = progress.preview, progress.partial
    return replace(
        progress,
        preview=look if gate is None else lambda: blurred(look()),
        partial=None if stop is None else lambda: released(stop(), request, gate),
    )


def released(painted: Painted, request: Request, gate: SafetyGate | None) -> Painted:
    """A finished picture as it may be shown, with notes of what was done."""
    picture, notes = painted.image, []
    if gate is not None:
        picture, note = _checked(picture, request, gate)
        notes.append(note)
    if request.watermark is not None:
        picture = add_watermark(picture, request.watermark)
        notes.append(_watermark_note(picture, request.watermark))
    recipe = painted.recipe.model_copy(
        update={"notes": (*painted.recipe.notes, *notes), "pixels": pixels_digest(picture)}
    )
    return replace(painted, image=picture, recipe=recipe)


def _checked(picture: Image.Image, request: Request, gate: SafetyGate) -> tuple[Image.Image, str]:
    concepts = gate.concepts(picture)
    if not concepts:
        return picture, f"safety: nothing found by {gate.name}"
    numbers = ", ".join(map(str, concepts))
    if request.safety == "blur":
        return blurred(picture), f"safety: blurred, as {gate.name} found its concepts {numbers}"
    return placeholder(picture.size), f"safety: blocked, as {gate.name} found its concepts {numbers}"


def _watermark_note(picture: Image.Image, text: str) -> str:
    said = f"watermark: {len(text.encode('utf-8'))} bytes"
    if not carries(picture, text):
        return f"{said}, not readable: these colours leave no room for it"
    if picture.width * picture.height < READABLE_PIXELS:
        return f"{said}, in a picture that is too small for other programs to look"
    return f"{said}, dwtDct"
