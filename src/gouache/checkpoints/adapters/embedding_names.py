"""Which words a textual inversion's file holds, and under which names their vectors lie. Names only, and no torch.

Layouts: A1111's and the first trainer's ``string_to_param.TOKEN`` (torch file, safetensors or PNG), kohya's
``emb_params``, OneTrainer's ``emp_params``, diffusers' tensors under their tokens, one or several; for SDXL ``clip_l``
and ``clip_g`` (ComfyUI, kohya, OneTrainer) or ``text_encoders_0`` and ``text_encoders_1`` (diffusers' and Replicate's
trainers). A LoRA's file holds the same behind ``bundle_emb.WORD.``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gouache.checkpoints.adapters.keys import BUNDLED, CLONEOFSIMO_EMBEDDING
from gouache.checkpoints.formats.header import TensorInfo

FIRST, SECOND = 0, 1
SLOTS = {
    "emb_params": FIRST,
    "emp_params": FIRST,
    "clip_l": FIRST,
    "clip_h": FIRST,
    "text_encoders_0": FIRST,
    "clip_g": SECOND,
    "text_encoders_1": SECOND,
}
"""Which text encoder's vectors a name stands for."""
OTHER_ENCODERS = ("t5", "t5xxl", "llama", "gemma", "qwen", "mistral", "prior")
OUTPUT = "_out"
"""OneTrainer's vectors that take the place of the encoder's output."""
PARAMETERS = "string_to_param."
TOKENS = "string_to_token."
FAMILY_OF_WIDTH = {768: "sd1", 1024: "sd2", 1280: "sdxl"}
FLOATS = ("F16", "BF16", "F32", "F64", "F8_E4M3", "F8_E5M2")
MAX_WORDS = 200


@dataclass(frozen=True, slots=True)
class EmbeddingNames:
    """A textual inversion's file, by its names.

    Attributes:
        words: for each word the names of its vectors by text encoder; ``""`` is what the file is called.
        left_out: tensors that aren't vectors of a CLIP text encoder's input.
        plain: whether the words are only what tensors are called, which other files' tensors might be too.
    """

    words: Mapping[str, Mapping[int, str]]
    left_out: tuple[str, ...]
    plain: bool


def embedding_names(tensors: Mapping[str, TensorInfo]) -> EmbeddingNames:
    """Sort the tensors of a file by word and text encoder."""
    words: dict[str, dict[int, str]] = {}
    left_out = []
    plain = True
    for name, info in tensors.items():
        if name.startswith(TOKENS):
            continue
        word, slot = _place(name)
        if slot is None or info.dtype not in FLOATS:
            left_out.append(name)
            continue
        plain = plain and word == name
        words.setdefault(word, {})[slot] = name
    return EmbeddingNames(words, tuple(left_out), plain)


def _place(name: str) -> tuple[str, int | None]:
    """The word that a tensor belongs to, and its text encoder; None if it is of no use."""
    if name.startswith(PARAMETERS):
        token = name.removeprefix(PARAMETERS)
        return ("" if token == "*" else token), FIRST
    head, dot, last = name.rpartition(".")
    if last in SLOTS and (not dot or head):
        return head, SLOTS[last]
    base = last.removesuffix(OUTPUT)
    if base in OTHER_ENCODERS or (last.endswith(OUTPUT) and base in SLOTS):
        return head, None
    return name, FIRST


def inversion_of(tensors: Mapping[str, TensorInfo]) -> tuple[str, str] | None:
    """Family and a few words on a textual inversion, or None if the tensors are none."""
    names = embedding_names(tensors)
    if not 1 <= len(names.words) <= MAX_WORDS:
        return None
    found = [tensors[name] for slots in names.words.values() for name in slots.values()]
    if any(len(info.shape) not in (1, 2) or not info.shape[-1] for info in found):
        return None
    unknown = {info.shape[-1] for info in found} - FAMILY_OF_WIDTH.keys()
    dotted = any("." in word and not word.startswith("<") for word in names.words)
    if names.plain and (unknown or dotted or names.left_out):
        return None
    counts = [_count(tensors[name]) for slots in names.words.values() for name in list(slots.values())[:1]]
    pair = any(len(slots) == 2 for slots in names.words.values())
    family = "sdxl" if pair else FAMILY_OF_WIDTH.get(found[0].shape[-1], "unknown")
    vectors = f"{sum(counts)} vector{'s' * (sum(counts) > 1)}{' for each text encoder' if pair else ''}"
    return family, vectors if len(counts) == 1 else f"{vectors} in {len(counts)} words"


def _count(info: TensorInfo) -> int:
    return info.shape[0] if len(info.shape) == 2 else 1


def bundled_names(tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str]) -> dict[str, dict[int, str]]:
    """The textual inversions in a LoRA's file: for each word the names of its vectors by text encoder."""
    words: dict[str, dict[int, str]] = {}
    for name in tensors:
        if metadata.get(name) == CLONEOFSIMO_EMBEDDING:
            words[name] = {FIRST: name}
        elif name.startswith(BUNDLED):
            inside = name.removeprefix(BUNDLED)
            word, slot = _place(inside)
            if f".{PARAMETERS}" in inside:
                word, slot = inside.partition(f".{PARAMETERS}")[0], FIRST
            if slot is not None and f".{TOKENS}" not in inside and word:
                words.setdefault(word, {})[slot] = name
    return words
