"""Which files of a published repository make a model: of each part the best weights, and the text beside them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

PART_FOLDERS = (
    "unet",
    "transformer",
    "vae",
    "text_encoder",
    "text_encoder_2",
    "text_encoder_3",
    "tokenizer",
    "tokenizer_2",
    "tokenizer_3",
    "scheduler",
)
TEXT_SUFFIXES = (".json", ".txt", "spiece.model")
OTHER_FRAMEWORKS = ("flax_", "tf_", "openvino_", "model.onnx", "rust_")


def choose_files(names: Iterable[str], variant: str | None = None) -> list[str]:
    """Which files of a repository to fetch: of each part the best weights, and the text beside them; never code.

    Args:
        names: every file of the repository.
        variant: the word in the weights' names to prefer, for example ``"fp16"``.
    """
    names = sorted(names)
    if "model_index.json" in names or "unet/config.json" in names:
        chosen = [name for name in names if name in ("model_index.json",)]
        for part in PART_FOLDERS:
            inside = [name for name in names if name.startswith(f"{part}/") and name.count("/") == 1]
            chosen += [name for name in inside if name.endswith(TEXT_SUFFIXES) and ".index." not in name]
            chosen += _best_weights(inside, variant)
        return chosen
    top = [name for name in names if "/" not in name]
    known = ("config.json", "model.json", "vocab.txt", "synonyms.tsv", "modelspec.json", "adapter_config.json")
    texts = [name for name in top if name in known]
    if "model.json" in top:
        return texts + [name for name in top if name.endswith(".safetensors")]
    weights = _best_weights(top, variant) or _one_of(top, ".safetensors") or _one_of(top, ".ckpt")
    weights = weights or _one_of(top, ".gguf")
    return texts + weights if weights else []


def _best_weights(names: list[str], variant: str | None) -> list[str]:
    """One set of weights of a part: safetensors before torch files, the wanted variant first, then the plain one."""
    weights = [
        name
        for name in names
        if name.endswith((".safetensors", ".bin")) and not Path(name).name.startswith(OTHER_FRAMEWORKS)
    ]
    for suffix in (".safetensors", ".bin"):
        groups: dict[str, list[str]] = {}
        for name in (name for name in weights if name.endswith(suffix)):
            stem = Path(name).name.removesuffix(suffix)
            base, _, word = stem.partition(".")
            # A shard's number may stand before or behind the variant's word.
            word = (
                word.split("-")[0]
                if base.split("-")[0] in ("diffusion_pytorch_model", "model", "pytorch_model")
                else "?"
            )
            groups.setdefault(word, []).append(name)
        for word in [variant or "", "", "fp16", *sorted(set(groups) - {"?"})]:
            if word in groups:
                index = [
                    name
                    for name in names
                    if f"{suffix}.index" in name
                    and (f".{word}." in name if word else name.endswith(f"{suffix}.index.json"))
                ]
                return groups[word] + (index if len(groups[word]) > 1 else [])
    return []


def _one_of(names: list[str], suffix: str) -> list[str]:
    """The one weight file of a repository that is no diffusers folder; of several, the shortest name (no variant)."""
    fitting = [name for name in names if name.endswith(suffix)]
    return sorted(fitting, key=lambda name: (len(name), name))[:1]
