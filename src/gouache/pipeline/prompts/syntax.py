"""The language of prompts: emphasis, BREAK, escapes, prompt editing, alternation and AND. Text only, no tensors.

The rule `a1111` is the grammar of AUTOMATIC1111's web UI; `comfy` is ComfyUI's, which has round brackets only and
multiplies from the outside in; `none` reads everything as plain text. `original`, `no_norm` and `ignore` are A1111's
grammar with other arithmetic behind it (`prompts.emphasis`); `ignore` gives every word the weight 1.

One deliberate difference: a trailing ``:weight`` belongs to a branch only if the prompt has an AND, so that
``a poster, 16:9`` is not a prompt with weight 9.

Tags that name adapters are A1111's too: ``<lora:name>``, ``<lora:name:0.8>`` (text encoders and U-Net alike),
``<lora:name:0.5:0.8>`` (text encoders, U-Net) and the named form ``<lora:name:te=0.5:unet=0.8>``. ``lyco`` is an older
word for the same.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from gouache.errors import InvalidInput
from gouache.pipeline.request import Emphasis

A1111_GRAMMAR = ("a1111", "original", "no_norm", "ignore")
"""The emphasis rules that read prompts as A1111 does; they differ in what weights do."""
ROUND = 1.1
SQUARE = 1 / 1.1
MAX_NESTING = 64
MAX_WEIGHT = 1e4

_TOKEN = re.compile(r"\\[()\[\]\\]|\\|\(|\[|:\s*([+-]?(?:\d+\.?\d*|\.\d+))\s*\)|\)|\]|[^\\()\[\]:]+|:")
_BREAK = re.compile(r"\s*\bBREAK\b\s*")
_AND = re.compile(r"\bAND\b")
_PLAIN = re.compile(r"(?:[^\\\[\]():|]|\\.)+", re.DOTALL)
_NUMBER = re.compile(r"\s*[+-]?(?:\d+\.?\d*|\.\d+)\s*")


@dataclass(frozen=True, slots=True)
class PromptSpan:
    """Text of one weight."""

    text: str
    weight: float


Section = tuple[PromptSpan, ...]
"""What stands between two BREAKs: each section starts a new chunk of tokens."""


@dataclass(frozen=True, slots=True)
class Branch:
    """One part of a prompt joined by AND, with its weight in the guidance."""

    text: str
    weight: float


def branches(prompt: str, rule: Emphasis = "a1111") -> tuple[Branch, ...]:
    """Split at AND (composable diffusion, Liu et al. 2022).

    >>> branches("a cat :1.2 AND a dog")
    (Branch(text='a cat', weight=1.2), Branch(text=' a dog', weight=1.0))
    """
    parts = _AND.split(prompt) if rule in A1111_GRAMMAR else [prompt]
    if len(parts) == 1:
        return (Branch(prompt, 1.0),)
    return tuple(map(_branch, parts))


def _branch(part: str) -> Branch:
    text, colon, number = part.rpartition(":")
    if colon and _NUMBER.fullmatch(number):
        return Branch(text.rstrip(), _weight(number))
    return Branch(part.rstrip(), 1.0)


def _weight(number: str) -> float:
    value = float(number)
    if abs(value) > MAX_WEIGHT:
        raise InvalidInput(
            "prompt",
            given=f"the weight {number}",
            expected=f"a weight of at most {MAX_WEIGHT:g}",
            cure=r"If the number is part of the text, write \( and \) around it.",
        )
    return value


def sections(text: str, rule: Emphasis = "a1111") -> tuple[Section, ...]:
    r"""Read emphasis and BREAK; neighbours of equal weight are merged.

    Raises:
        InvalidInput: brackets nested deeper than `MAX_NESTING`, or a weight over `MAX_WEIGHT`.

    >>> sections("a (big) cat")
    ((PromptSpan(text='a ', weight=1.0), PromptSpan(text='big', weight=1.1), PromptSpan(text=' cat', weight=1.0)),)
    >>> sections(r"\(literal\]")
    ((PromptSpan(text='(literal]', weight=1.0),),)
    >>> sections("sky BREAK (sea:1.5)")
    ((PromptSpan(text='sky', weight=1.0),), (PromptSpan(text='sea', weight=1.5),))
    >>> sections("((a) b:2) [c]", "comfy")
    ((PromptSpan(text='a', weight=2.2), PromptSpan(text=' b', weight=2.0), PromptSpan(text=' [c]', weight=1.0)),)
    """
    if rule == "none":
        return ((PromptSpan(text, 1.0),),)
    if rule == "comfy":
        return (_merged(_comfy_runs(text)),)
    groups: list[list[PromptSpan]] = [[]]
    for run in _a1111_runs(text):
        if run is None:
            groups.append([])
        else:
            groups[-1].append(PromptSpan(run.text, 1.0) if rule == "ignore" else run)
    return tuple(map(_merged, groups))


def _merged(runs: list[PromptSpan]) -> Section:
    result: list[PromptSpan] = []
    for run in runs:
        if result and result[-1].weight == run.weight:
            result[-1] = PromptSpan(result[-1].text + run.text, run.weight)
        elif run.text:
            result.append(run)
    return tuple(result) or (PromptSpan("", 1.0),)


def _a1111_runs(text: str) -> list[PromptSpan | None]:
    """Runs in reading order; None stands for BREAK. A bracket's factor is applied when it closes, inner ones first."""
    runs: list[PromptSpan | None] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}

    def close(bracket: str, factor: float) -> None:
        for k in range(opened[bracket].pop(), len(runs)):
            run = runs[k]
            if run is not None:
                runs[k] = PromptSpan(run.text, run.weight * factor)

    for match in _TOKEN.finditer(text):
        token, number = match[0], match[1]
        if token[0] == "\\":
            runs.append(PromptSpan(token[1:] or token, 1.0))
        elif token in opened:
            opened[token].append(len(runs))
            _check_nesting(len(opened["("]) + len(opened["["]))
        elif number is not None and opened["("]:
            close("(", _weight(number))
        elif token == ")" and opened["("]:
            close("(", ROUND)
        elif token == "]" and opened["["]:
            close("[", SQUARE)
        else:
            runs.extend(_split_at_break(token))
    for bracket, factor in (("(", ROUND), ("[", SQUARE)):
        while opened[bracket]:
            close(bracket, factor)
    return runs


def _split_at_break(text: str) -> list[PromptSpan | None]:
    first, *rest = _BREAK.split(text)
    runs: list[PromptSpan | None] = [PromptSpan(first, 1.0)]
    for part in rest:
        runs += [None, PromptSpan(part, 1.0)]
    return runs


def _check_nesting(depth: int) -> None:
    if depth > MAX_NESTING:
        raise InvalidInput(
            "prompt",
            given=f"brackets nested {depth} deep",
            expected=f"at most {MAX_NESTING}",
            cure=r"Write \( for a bracket that is text, or choose the emphasis rule none.",
        )


def _comfy_runs(text: str, weight: float = 1.0, depth: int = 0) -> list[PromptSpan]:
    """ComfyUI's rule: a bracket multiplies by 1.1, or sets the weight, and what is inside starts from there."""
    _check_nesting(depth)
    runs: list[PromptSpan] = []
    for part in _top_level_brackets(text):
        if not (part.startswith("(") and part.endswith(")") and len(part) >= 2):
            runs.append(PromptSpan(part.replace("\\(", "(").replace("\\)", ")"), weight))
            continue
        inside, colon, number = part[1:-1].rpartition(":")
        if colon and inside and _NUMBER.fullmatch(number):
            runs += _comfy_runs(inside, _weight(number), depth + 1)
        else:
            runs += _comfy_runs(part[1:-1], weight * ROUND, depth + 1)
    return runs


def _top_level_brackets(text: str) -> list[str]:
    parts, start, depth = [], 0, 0
    for match in re.finditer(r"\\[()]|[()]", text):
        if match[0] == "(":
            if depth == 0:
                parts.append(text[start : match.start()])
                start = match.start()
            depth += 1
        elif match[0] == ")" and depth:
            depth -= 1
            if depth == 0:
                parts.append(text[start : match.end()])
                start = match.end()
    return [part for part in (*parts, text[start:]) if part]


def unmarked(prompt: str, rule: Emphasis = "a1111") -> str:
    """The words of a prompt without its marks and tags: what a file name or a sentence encoder should see.

    >>> unmarked("a (red:1.2) [cat:dog:0.5] AND a tree <lora:film:0.8>")
    'a red dog a tree'
    """
    words: list[str] = []
    for branch in branches(without_tags(prompt), rule):
        final = schedule(branch.text, 2)[-1][1] if rule in A1111_GRAMMAR else branch.text
        words += [run.text for section in sections(final, rule) for run in (*section, PromptSpan(" ", 1.0))]
    return " ".join("".join(words).split())


def schedule(text: str, steps: int, earlier: int = 0) -> tuple[tuple[int, str], ...]:
    """Resolve prompt editing ``[from:to:when]`` and alternation ``[a|b]``; emphasis marks stay in the text.

    `when` is a step if it is a whole number, a share of the steps if it has a point. What isn't well formed is text.
    In a second pass after `earlier` steps, steps go on from there and shares from 1: edits below that are over.

    Returns:
        Pairs of the last step (1 <= step <= steps) a text holds for, and the text, in order.

    >>> schedule("a [b:3]", 10)
    ((3, 'a '), (10, 'a b'))
    >>> schedule("a [b : c : .5] d", 10)
    ((5, 'a b  d'), (10, 'a  c  d'))
    >>> schedule("[a|b]", 3)
    ((1, 'a'), (2, 'b'), (3, 'a'))
    >>> schedule("[a:b:.5][c:d:1.5]", 10, earlier=20)
    ((5, 'bc'), (10, 'bd'))
    """
    nodes = _Schedule(text, steps, earlier).nodes()
    pieces: list[tuple[int, str]] = []
    for step in sorted(_ends(nodes, steps) | {steps}):
        words = "".join(_at(step, nodes))
        if pieces and pieces[-1][1] == words:
            pieces.pop()
        pieces.append((step, words))
    return tuple(pieces)


@dataclass(frozen=True, slots=True)
class _Switch:
    before: _Nodes
    after: _Nodes
    when: int


@dataclass(frozen=True, slots=True)
class _Alternate:
    options: tuple[_Nodes, ...]


_Nodes = tuple["str | _Switch | _Alternate", ...]


def _ends(nodes: _Nodes, steps: int) -> set[int]:
    ends: set[int] = set()
    for node in nodes:
        if isinstance(node, _Alternate):
            return set(range(1, steps + 1))
        if isinstance(node, _Switch):
            ends |= {node.when} if 1 <= node.when <= steps else set()
            ends |= _ends(node.before, steps) | _ends(node.after, steps)
    return ends


def _at(step: int, nodes: _Nodes) -> list[str]:
    words: list[str] = []
    for node in nodes:
        if isinstance(node, str):
            words.append(node)
        elif isinstance(node, _Switch):
            words += _at(step, node.before if step <= node.when else node.after)
        else:
            words += _at(step, node.options[(step - 1) % len(node.options)])
    return words


class _Schedule:
    """Recursive descent over one prompt. A bracket that does not parse is remembered and read as a plain character."""

    def __init__(self, text: str, steps: int, earlier: int) -> None:
        self.text, self.steps, self.earlier = text, steps, earlier
        self.blocks: dict[int, tuple[_Nodes, int] | None] = {}

    def nodes(self) -> _Nodes:
        found: list[str | _Switch | _Alternate] = []
        i = 0
        while i < len(self.text):
            block = self.block(i, 0) if self.text[i] in "[(" else None
            if block is None:
                found.append(self.plain(i))
                i += len(self.plain(i))
            else:
                found += block[0]
                i = block[1]
        return tuple(found)

    def sequence(self, i: int, stops: str, depth: int) -> tuple[_Nodes, int] | None:
        """Nodes from `i` up to a character of `stops`; None if the text ends or a bracket is out of place."""
        found: list[str | _Switch | _Alternate] = []
        while i < len(self.text) and self.text[i] not in stops:
            char = self.text[i]
            if char in "[(":
                block = self.block(i, depth)
                if block is None:
                    return None
                found += block[0]
                i = block[1]
            elif char in ")]:|":
                return None
            else:
                found.append(self.plain(i))
                i += len(self.plain(i))
        return (tuple(found), i) if i < len(self.text) else None

    def plain(self, i: int) -> str:
        match = _PLAIN.match(self.text, i)
        return match[0] if match else self.text[i]

    def block(self, i: int, depth: int) -> tuple[_Nodes, int] | None:
        if i not in self.blocks:
            read = self.square if self.text[i] == "[" else self.round
            self.blocks[i] = read(i, depth + 1) if depth < MAX_NESTING else None
        return self.blocks[i]

    def round(self, i: int, depth: int) -> tuple[_Nodes, int] | None:
        found: list[str | _Switch | _Alternate] = ["("]
        inside = self.sequence(i + 1, ":)", depth)
        if inside is not None and self.text[inside[1]] == ":":
            found += [*inside[0], ":"]
            inside = self.sequence(inside[1] + 1, ")", depth)
        return None if inside is None else ((*found, *inside[0], ")"), inside[1] + 1)

    def square(self, i: int, depth: int) -> tuple[_Nodes, int] | None:
        parts: list[_Nodes] = []
        marks = ""
        while not marks.endswith("]"):
            part = self.sequence(i + 1, ":|]", depth)
            if part is None:
                return None
            parts.append(part[0])
            i = part[1]
            marks += self.text[i]
        node = self.classify(parts, marks[:-1])
        return None if node is None else (node, i + 1)

    def classify(self, parts: list[_Nodes], marks: str) -> _Nodes | None:
        """What `[part mark part mark part]` means."""
        if not marks:
            return ("[", *parts[0], "]")
        if set(marks) == {"|"}:
            return (_Alternate(tuple(parts)),)
        number = "".join(node for node in parts[-1] if isinstance(node, str))
        if marks[-1] != ":" or marks.count(":") > 2 or not _NUMBER.fullmatch(number):
            return None
        sides: list[list[str | _Switch | _Alternate]] = [[]]
        for part, mark in zip(parts[:-1], marks, strict=True):
            sides[-1] += part
            if mark == "|":
                sides[-1].append("|")
            else:
                sides.append([])
        before, after = ([], sides[0]) if len(sides) == 2 else (sides[0], sides[1])
        return (_Switch(tuple(before), tuple(after), self.step_of(number)),)

    def step_of(self, number: str) -> int:
        when = float(number)
        over = (1.0, self.earlier) if self.earlier else (0.0, 0)
        return min(self.steps, int((when - over[0]) * self.steps if "." in number else when - over[1]))


_TAG = re.compile(r"<(lora|lyco|hypernet):([^<>]*)>")
_TAG_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)")
MAX_TAG_WEIGHT = 100.0
TAG_GRAMMAR = "<lora:NAME>, <lora:NAME:WEIGHT> or <lora:NAME:TEXT:UNET>"


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
    return tuple(_read_tag(match, where) for match in _TAG.finditer(prompt))


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


def _read_tag(match: re.Match[str], where: str) -> AdapterTag:
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
    if not name.strip() or len(positional) > 2 or not known or not all(map(_TAG_NUMBER.fullmatch, values)):
        raise InvalidInput(where, given=match[0], expected=TAG_GRAMMAR, cure="Weights are plain numbers such as 0.8.")
    if any(abs(float(value)) > MAX_TAG_WEIGHT for value in values):
        raise InvalidInput(where, given=match[0], expected=f"weights of at most {MAX_TAG_WEIGHT:g}")
    text = named.get("te", positional[0] if positional else "1")
    unet = named.get("unet", positional[1] if len(positional) > 1 else text)
    return AdapterTag(name.strip(), float(text), float(unet))
