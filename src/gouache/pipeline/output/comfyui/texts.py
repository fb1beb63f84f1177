"""The prompt of a graph: text that nodes hold, join or hand on, and what is made of several texts between encoder and
sampler.

ComfyUI's own encoder knows round brackets only. Where a graph joins encoded texts, our words for it are A1111's: a mean
of predictions (ConditioningCombine) is `AND` with equal weights that add up to 1, one behind the other
(ConditioningConcat) is `BREAK`, one after the other in time (ConditioningSetTimestepRange) is `[before:after:when]`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from itertools import pairwise

from gouache.errors import InvalidInput
from gouache.pipeline.output.comfyui.graph import LONGEST_WALK, Graph, Node
from gouache.pipeline.output.comfyui.regions import Area, area_of
from gouache.pipeline.prompts.syntax import sections
from gouache.pipeline.request import MAX_PROMPT

DEEPEST = 100
"""Nodes that a text is handed on by."""
MOST_PARTS = 1000
"""Nodes looked at between a sampler and its texts."""
_JOINS = re.compile(r"concat|join|append|combine|merge|add ?text|StringFunction", re.IGNORECASE)
_BETWEEN = re.compile(r"^(delimiter|separator|sep|delim)$", re.IGNORECASE)
_NO_TEXT = re.compile(
    r"^(clip|model|vae|seed|mode|action|tidy_tags|clean_whitespace|linebreak_addition|style|log_prompt|separator|delimiter|"
    r"token_normalization|weight_interpretation|parser|Select to add.*|control_after_generate|strip_newlines|trim|"
    r"inputcount|return_list|find|replace|regex|pattern|title|font_size|.*name|.*_hash|type)$",
    re.IGNORECASE,
)
_HOLDS = (
    "populated_text", "text", "string", "value", "prompt", "STRING", "Text", "multiline_text", "wildcard_text",
    "text_positive", "positive", "result", "str", "content", "any", "anything", "source", "input", "text1", "text_0",
)  # fmt: skip
_ENCODES = re.compile(r"TextEncode|WildcardEncode|PromptEncode|Text ?Encoder|^Conditioning.*Text", re.IGNORECASE)
_HOLDS_BOTH = re.compile(r"loader|styler|preSampling|prompt", re.IGNORECASE)
_LORA_TAG = re.compile(r"<(?:lora|lyco|hypernet):[^<>]*>")
_EMBEDDING = re.compile(r"\bembedding:([^\s,:()]+)")
_SUFFIX = re.compile(r"\.(pt|safetensors|bin|png)$")
_AREA = re.compile(r"Area|Mask|Region", re.IGNORECASE)


class Texts:
    """Reads the strings of a graph."""

    def __init__(self, graph: Graph) -> None:
        self.graph, self._walked = graph, 0

    def text(self, value: object, names: tuple[str, ...] = (), depth: int = 0) -> str | None:
        """The string that a value is or is wired to; None, with a note, if it can't be followed.

        Args:
            value: a plain value or a wire.
            names: inputs to look at first in the node at the other end.
            depth: nodes passed so far.
        """
        if isinstance(value, str):
            return value
        if isinstance(value, int | float) and not isinstance(value, bool):
            return str(value)
        end = self.graph.wired(value)
        self._walked += 1
        if end is None or depth > DEEPEST or self._walked > LONGEST_WALK:
            return None
        node, slot = end
        if node.kind in ("StringReplace", "Text Find and Replace"):
            return self._replaced(node, depth)
        if _JOINS.search(node.kind):
            return self._joined(node, depth)
        if "text_positive" in node.inputs and "text_negative" in node.inputs:
            names = ("text_negative",) if slot == 1 else ("text_positive",)
            self.graph.note(f"{node} adds words of a style, which the file doesn't hold")
        for name in (*names, *_HOLDS):
            if name in node.inputs:
                found = self.text(node.inputs[name], (), depth + 1)
                if found is not None:
                    return found
        return self._only_string(node)

    def _only_string(self, node: Node) -> str | None:
        strings = [
            value for name, value in node.inputs.items() if isinstance(value, str) and not _NO_TEXT.fullmatch(name)
        ]
        if len(strings) == 1:
            self.graph.note(f"the text of {node} was taken as it stands; what the node makes of it isn't known")
            return strings[0]
        self.graph.note(f"a text comes from {node}, which can't be followed")
        return None

    def _replaced(self, node: Node, depth: int) -> str | None:
        text = self.text(node.inputs.get("string", node.inputs.get("text")), (), depth + 1)
        find, new = (self.text(node.inputs.get(name), (), depth + 1) for name in ("find", "replace"))
        if text is None or not find:
            return text
        longer = len(new or "") - len(find)
        return text.replace(find, new or "") if len(text) + text.count(find) * longer <= MAX_PROMPT else None

    def _joined(self, node: Node, depth: int) -> str | None:
        between = next((value for name, value in node.inputs.items() if _BETWEEN.match(name)), "")
        sign = (self.text(between, (), depth + 1) or "").replace("\\n", "\n")
        if node.kind.startswith("StringFunction"):
            sign = ", " if node.inputs.get("tidy_tags") == "yes" else ""
        if node.inputs.get("linebreak_addition") == "true":
            sign = "\n"
        parts = [
            self.text(value, (), depth + 1)
            for name, value in sorted(node.inputs.items(), key=_in_reading_order)
            if not _NO_TEXT.fullmatch(name) and (isinstance(value, str) or self.graph.wired(value) is not None)
        ]
        if not parts or None in parts:
            return None
        known = [part for part in parts if part]
        if sum(len(part) + len(sign) for part in known) > MAX_PROMPT:
            self.graph.note(f"the text of {node} is longer than {MAX_PROMPT} characters")
            return None
        return sign.join(known)


def _in_reading_order(item: tuple[str, object]) -> tuple[str, int]:
    stem, number = re.fullmatch(r"(.*?)(\d*)", item[0], re.DOTALL).groups()  # type: ignore[union-attr]
    return stem, int(number or 0)


@dataclass(frozen=True, slots=True)
class Part:
    """One encoded prompt.

    Attributes:
        chunks: texts one behind the other, each in chunks of tokens of its own.
        second: the same for SDXL's second encoder, where it reads others; None = it reads the same.
        third: the same for Stable Diffusion 3's T5.
        start: share of the steps after which it holds.
        end: share of the steps up to which it holds.
        area: the box of the picture that it holds in; None = all of it.
    """

    chunks: tuple[str, ...]
    start: float = 0.0
    end: float = 1.0
    second: tuple[str, ...] | None = None
    third: tuple[str, ...] | None = None
    area: Area | None = None

    @property
    def for_second(self) -> Part:
        """What the second encoder reads, as a part of its own."""
        return replace(self, chunks=self.chunks if self.second is None else self.second, second=None, third=None)

    @property
    def for_third(self) -> Part:
        """What T5 reads, as a part of its own."""
        return replace(self, chunks=self.chunks if self.third is None else self.third, second=None, third=None)

    def followed_by(self, other: Part) -> Part:
        """The same with another's texts behind it."""
        both = self.second is not None or other.second is not None
        second = (*self.for_second.chunks, *other.for_second.chunks) if both else None
        both = self.third is not None or other.third is not None
        third = (*self.for_third.chunks, *other.for_third.chunks) if both else None
        return replace(self, chunks=(*self.chunks, *other.chunks), second=second, third=third)


class Conditionings:
    """Follows the wires from a sampler's `positive` or `negative` to texts.

    Attributes:
        rule: comfy, or a1111 where an encoder says so.
        clip_skip: of the first encoder that was found, counted from 1; None if the graph doesn't set it.
        sized: by role, the first encoder that says what SDXL is told of the picture's size.
    """

    def __init__(self, graph: Graph, texts: Texts) -> None:
        self.graph, self.texts = graph, texts
        self.rule, self.clip_skip = "comfy", None
        self.clip: object = None
        self.sized: dict[str, Node] = {}
        self._walked = self._length = 0

    def parts(self, value: object, role: str) -> list[Part] | None:
        """What a sampler's input holds; None, with a note, if it can't be followed."""
        self._walked += 1
        if isinstance(value, str):
            return [Part((self._cleaned(value),))]
        end = self.graph.wired(value)
        if end is None or self._walked > MOST_PARTS or self._length > MAX_PROMPT:
            return None
        node, slot = end
        kind, inputs = node.kind, node.inputs
        if kind == "ConditioningZeroOut":
            if role == "positive":
                self.graph.note(f"{node} paints without a prompt; read as an empty one")
            return [Part(("",))]
        if kind == "ConditioningCombine" or re.search(r"Conditioning.*(Combine|Multi)", kind):
            found = [self.parts(one, role) for one in inputs.values() if self.graph.wired(one) is not None]
            known = [part for parts in found if parts is not None for part in parts]
            return known or None
        if kind == "ConditioningConcat":
            return self._concatenated(inputs.get("conditioning_to"), inputs.get("conditioning_from"), role)
        if kind == "ConditioningAverage":
            share = self.graph.number(inputs.get("conditioning_to_strength"), "conditioning_to_strength")
            stronger = "conditioning_to" if (1.0 if share is None else share) >= 0.5 else "conditioning_from"
            self.graph.note(f"{node} mixes two prompts; read as the stronger one, {stronger}")
            return self.parts(inputs.get(stronger), role)
        if kind.startswith("ConditioningSetTimestepRange"):
            parts = self.parts(inputs.get("conditioning"), role)
            start, stop = (self.graph.number(inputs.get(name), name) for name in ("start", "end"))
            return parts and [
                replace(part, start=float(start or 0), end=float(1 if stop is None else stop)) for part in parts
            ]
        area = area_of(node, self.graph) if role == "positive" else None
        if area is not None:
            parts = self.parts(inputs.get("conditioning"), role)
            return parts and [replace(part, area=area) for part in parts]
        return self._from_node(node, slot, role)

    def _concatenated(self, first: object, then: object, role: str) -> list[Part] | None:
        to, behind = self.parts(first, role), self.parts(then, role)
        if not to or not behind:
            return to or behind
        return [part.followed_by(behind[0]) for part in to]

    def _from_node(self, node: Node, slot: int, role: str) -> list[Part] | None:
        """An encoder's text, or what stands behind a node that changes or hands on encoded prompts."""
        inputs = node.inputs
        held = any(name.startswith("conditioning") for name in inputs)
        if not held and (_ENCODES.search(node.kind) or ("clip" in inputs and "text" in inputs)):
            return self._encoded(node, role)
        both = role in inputs and (role == "positive" or "positive" in inputs or slot > 0)
        behind = inputs.get(role) if both else None
        for name in ("conditioning", "conditioning_1", "conditioning_to", "cond1", "text_conditioning", "CONDITIONING"):
            behind = inputs.get(name) if behind is None else behind
        if behind is None:
            behind = self.graph.get(node, role, f"{role}_prompt", f"base_{role}")
        if isinstance(behind, str) or (behind is not None and _HOLDS_BOTH.search(node.kind) and self._is_text(behind)):
            self._say_rule(node)
            self.clip = self.clip or node
            text = self.texts.text(behind)
            return None if text is None else [Part((self._cleaned(text),))]
        if behind is None:
            self.graph.note(f"the {role} prompt comes from {node}, which can't be followed")
            return None
        if not _quiet(node):
            what = (
                "lays a prompt on a part of the picture" if _AREA.search(node.kind) else "changes the prompt's effect"
            )
            self.graph.note(f"{node} {what} and isn't repeated")
        return self.parts(behind, role)

    def _is_text(self, value: object) -> bool:
        end = self.graph.wired(value)
        return end is not None and not _ENCODES.search(end[0].kind) and "conditioning" not in end[0].kind.lower()

    def _encoded(self, node: Node, role: str) -> list[Part] | None:
        inputs = node.inputs
        self._say_rule(node)
        if "target_width" in inputs:
            self.sized.setdefault(role, node)
        if self.clip is None:
            self.clip = inputs.get("clip")
        large, small = inputs.get("text_g", inputs.get("clip_g")), inputs.get("text_l", inputs.get("clip_l"))
        if large is not None or small is not None:
            if large is not None and small is not None:
                return self._of_encoders(large, small, inputs.get("t5xxl"))
            texts = [self.texts.text(one) for one in (large, small, inputs.get("t5xxl")) if one is not None]
            known = [text for text in texts if text]
            if len(set(known)) > 1:
                self.graph.note(f"{node} has several texts; read as the first, left out: {known[1:]}")
            return [Part((self._cleaned(known[0]),))] if known else None if None in texts else [Part(("",))]
        names = ("populated_text", "text", "prompt", "wildcard_text", "string", "value")
        value = next((inputs[name] for name in names if inputs.get(name) is not None), None)
        text = self.texts.text(value)
        if text is None:
            self.graph.note(f"the text of {node} can't be followed")
            return None
        return [Part((text if "populated_text" in inputs else self._cleaned(text),))]

    def _of_encoders(self, large: object, small: object, t5: object) -> list[Part] | None:
        """SDXL's texts: the first encoder (ViT-L) reads the small one's, the second (bigG) the large one's; and T5's in
        Stable Diffusion 3."""
        texts = [None if one is None else self.texts.text(one) for one in (small, large, t5)]
        known = [None if text is None else self._cleaned(text) for text in texts]
        first = next((text for text in known if text is not None), None)
        if first is None:
            return None
        second, third = (None if text in (None, first) else (str(text),) for text in known[1:])
        return [Part((first,), second=second, third=third)]

    def _say_rule(self, node: Node) -> None:
        rule = node.inputs.get("parser", node.inputs.get("weight_interpretation"))
        if isinstance(rule, str) and rule.lower().startswith("a1111"):
            self.rule = "a1111"
        elif isinstance(rule, str) and not rule.lower().startswith("comfy"):
            self.graph.note(f"{node} reads emphasis by the rule {rule!r}; here it is ComfyUI's")

    def _cleaned(self, text: str) -> str:
        """Embeddings by their names alone; tags of LoRAs are words without effect to ComfyUI's encoder."""
        if self.rule == "comfy" and _LORA_TAG.search(text):
            tags = " ".join(_LORA_TAG.findall(text))
            self.graph.note(f"{tags} stood in the text, where ComfyUI's encoder reads words; left out")
            text = _LORA_TAG.sub("", text).strip()
        self._length += len(text)
        return _EMBEDDING.sub(lambda found: _SUFFIX.sub("", re.split(r"[\\/]", found[1])[-1]), text)


def _quiet(node: Node) -> bool:
    """Whether a node between encoder and sampler leaves the prompt as it is."""
    return bool(re.search(r"pipe|context|guider|preSampling|reroute", node.kind, re.IGNORECASE))


def in_a1111s_words(text: str) -> str:
    r"""A text in ComfyUI's language, in A1111's: weights are written out, square brackets and backslashes are text.

    Raises:
        InvalidInput: brackets nested too deep, or a weight too large.

    >>> in_a1111s_words("((a) b:2) [c] AND d")
    '(a:2.2)( b:2) \\[c\\] and d'
    """
    words = []
    for span in sections(text, "comfy")[0]:
        plain = re.sub(r"([\\()\[\]])", r"\\\1", span.text)
        # Both words are read by A1111's grammar; encoders don't tell capital letters from small ones.
        plain = re.sub(r"\b(AND|BREAK)\b", lambda found: found[0].lower(), plain)
        words.append(plain if span.weight == 1.0 else f"({plain}:{span.weight:g})")
    return "".join(words)


def alone_everywhere(parts: list[Part] | None, graph: Graph) -> list[Part] | None:
    """A prompt that is laid on a box and is the only one, as the whole picture's: nothing else says what is around."""
    if parts is None or len(parts) != 1 or parts[0].area is None:
        return parts
    graph.note(f"{parts[0].area.node} lays the only prompt on a part of the picture; here it holds for all of it")
    return [replace(parts[0], area=None)]


def in_boxes(parts: list[Part], graph: Graph, *, joined: bool) -> tuple[list[tuple[str, Area]], bool]:
    """The prompts that hold in boxes, and whether they are in A1111's language, which they are if others are."""
    boxed = [part for part in parts if part.area is not None]
    joined = joined or any(len(part.chunks) > 1 for part in boxed)
    found = []
    for part in boxed:
        if part.start > 0 or part.end < 1:
            graph.note(
                f"a prompt of a box held from {part.start:g} to {part.end:g} of the steps; here it holds for all"
            )
        text = " BREAK ".join(map(_safe_words, part.chunks)) if joined else part.chunks[0]
        if part.area is not None:
            found.append((text, part.area))
            if part.second is not None:
                words = " ".join(part.second)
                graph.note(f"{part.area.node} has {words!r} for the second encoder; left out: a region has one prompt")
    return found, joined


def prompt_of(parts: list[Part], graph: Graph, *, negative: bool = False) -> tuple[str, bool]:
    """One prompt of several parts, and whether it is in A1111's language."""
    if not parts:
        return "", False
    whole = all(part.start <= 0 and part.end >= 1 for part in parts)
    if len(parts) == 1 and len(parts[0].chunks) == 1:
        if not whole:
            graph.note(
                f"the prompt held from {parts[0].start:g} to {parts[0].end:g} of the steps; here it holds for all"
            )
        return parts[0].chunks[0], False
    if negative:
        graph.note("several negative prompts were joined by commas")
        texts = [text for part in parts for text in part.chunks if text]
        return ", ".join(dict.fromkeys(texts)), False
    graph.note("several encoded texts became one prompt in A1111's words (AND, BREAK, [before:after:when])")
    texts = [" BREAK ".join(map(_safe_words, part.chunks)) for part in parts]
    if whole:
        share = f" :{1 / len(texts):.4g}" if len(texts) > 1 else ""
        return " AND ".join(f"{text}{share}" for text in texts), True
    return _in_time(parts, texts, graph), True


def _safe_words(text: str) -> str:
    try:
        return in_a1111s_words(text)
    except InvalidInput:
        return re.sub(r"([\\()\[\]])", r"\\\1", text)


def _in_time(parts: list[Part], texts: list[str], graph: Graph) -> str:
    order = sorted(range(len(parts)), key=lambda k: parts[k].start)
    follows = all(abs(parts[a].end - parts[b].start) < 0.02 for a, b in pairwise(order))
    clear = not any(re.search(r"[:|]", re.sub(r"\([^()]*:[\d.]+\)", "", text)) or " BREAK " in text for text in texts)
    if not (follows and clear and parts[order[0]].start <= 0 and parts[order[-1]].end >= 1):
        longest = max(order, key=lambda k: parts[k].end - parts[k].start)
        graph.note("prompts that hold for some of the steps can't be repeated; read as the one that holds longest")
        return texts[longest]
    joined = texts[order[0]]
    for k in order[1:]:
        joined = f"[{joined}:{texts[k]}:{max(parts[k].start, 0.001):.3g}]"
    return joined
