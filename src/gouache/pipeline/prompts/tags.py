"""Tags in prompts that name adapters, in A1111's grammar. Text only, no tensors.

``<lora:name>``, ``<lora:name:0.8>`` (text encoders and U-Net alike), ``<lora:name:0.5:0.8>`` (text encoders, U-Net) and
the named form ``<lora:name:te=0.5:unet=0.8>``. ``lyco`` is an older word for the same.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from gouache.errors import InvalidInput

_TAG = re.compile(r"<(lora|lyco|hypernet):([^<>]*)>")
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)")
MAX_WEIGHT = 100.0
GRAMMAR = "<lora:NAME>, <lora:NAME:WEIGHT> or <lora:NAME:TEXT:UNET>"


@dataclass(frozen=True, slots=True)
class AdapterTag:
    """One adapter that a prompt asks for.

    Attributes:
        name: of the adapter, as `gouache models` lists it.
        text_weight: factor on what it changes in the text encoders; 1 = as it was trained.
        unet_weight: the same for the U-Net.
    """

    name: str
    text_weight: float = 1.0
    unet_weight: float = 1.0


def adapter_tags(prompt: str, where: str = "prompt") -> tuple[AdapterTag, ...]:
    """Every tag of a prompt, in order.

    Raises:
        InvalidInput: a tag that can't be read, or of a kind that can't be applied.

    >>> adapter_tags("a cat <lora:film:0.5:0.8>")
    (AdapterTag(name='film', text_weight=0.5, unet_weight=0.8),)
    """
    return tuple(_read(match, where) for match in _TAG.finditer(prompt))


def without_tags(prompt: str) -> str:
    """The prompt's words alone.

    >>> without_tags("a cat <lora:film:0.5> on a mat")
    'a cat  on a mat'
    """
    return _TAG.sub("", prompt)


def refuse_tags(text: str, where: str) -> None:
    """Refuse a tag where it has no meaning: an adapter acts on the whole picture, so the prompt alone names it.

    Raises:
        InvalidInput: there is one.
    """
    found = _TAG.search(text)
    if found:
        raise InvalidInput(
            where,
            given=found[0],
            expected="words only",
            cure="An adapter acts on the whole picture: name it in the prompt.",
        )


def _read(match: re.Match[str], where: str) -> AdapterTag:
    if match[1] == "hypernet":
        raise InvalidInput(
            where, given=match[0], expected="LoRA adapters: hypernetworks can't be applied", cure="Take the tag out."
        )
    name, *rest = match[2].split(":")
    positional = [part.strip() for part in rest if "=" not in part]
    pairs = [part.split("=", 1) for part in rest if "=" in part]
    named = {key.strip(): value.strip() for key, value in pairs}
    values = [*positional, *named.values()]
    known = set(named) <= {"te", "unet"} and len(named) == len(pairs)
    if not name.strip() or len(positional) > 2 or not known or not all(map(_NUMBER.fullmatch, values)):
        raise InvalidInput(where, given=match[0], expected=GRAMMAR, cure="Weights are plain numbers such as 0.8.")
    if any(abs(float(value)) > MAX_WEIGHT for value in values):
        raise InvalidInput(where, given=match[0], expected=f"weights of at most {MAX_WEIGHT:g}")
    text = named.get("te", positional[0] if positional else "1")
    unet = named.get("unet", positional[1] if len(positional) > 1 else text)
    return AdapterTag(name.strip(), float(text), float(unet))
