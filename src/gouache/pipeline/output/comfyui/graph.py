"""A graph as ComfyUI queues it: nodes by number, and values that are plain or wires to another node's output.

`{"3": {"class_type": "KSampler", "inputs": {"steps": 20, "model": ["4", 0]}}}`: a wire is the number of a node and the
index of its output. Whatever can't be followed is noted by the node's name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from gouache.errors import RecipeError

Plain = str | int | float
MAX_NODES = 3000
"""Of one graph; the largest that are passed around have some hundred."""
LONGEST_WALK = 10_000
"""Nodes looked at while following one thing."""

_PASSES = re.compile(r"reroute|^(Set|Get)Node$|^easy (get|set)Node$|bypasser|^Anything Everywhere", re.IGNORECASE)
_SWITCH = re.compile(r"switch", re.IGNORECASE)
_SELECTORS = ("select", "Input", "input", "index", "boolean", "boolean_value", "switch", "condition", "value", "state")
_PIPE = re.compile(r"pipe|context|_ctx|^ctx|^bus$|tuple|^settings$|^sampler_params$|^params$", re.IGNORECASE)
_ASIDE = re.compile(
    r"^(vae|optional_vae|clip\d?|.*clip|mask|.*mask|.*positive.*|.*negative.*|conditioning.*|control_net|.*model\d?|"
    r"seed|noise|guider|sampler|sigmas|steps|cfg|width|height|.*text.*|.*prompt.*|batch_size|scale_by|bbox_detector|"
    r"sam_model_opt|segm_detector_opt|detailer_hook|filename.*|path|style_model|clip_vision.*|denoise)$"
)


@dataclass(frozen=True, slots=True)
class Node:
    """One node.

    Attributes:
        number: its key in the graph.
        kind: its class.
        inputs: values and wires by name.
    """

    number: str
    kind: str
    inputs: Mapping[str, Any]

    def __str__(self) -> str:
        return f"{self.kind or 'a node without a class'} (node {self.number})"


@dataclass(slots=True)
class Graph:
    """Nodes by number, and what was noted on the way.

    Attributes:
        nodes: in the file's order.
        notes: what could not be followed, or has no place in a request; each sentence once.
    """

    nodes: dict[str, Node]
    notes: list[str] = field(default_factory=list)
    _pictures: dict[str, dict[str, Node]] = field(default_factory=dict)

    def note(self, sentence: str) -> None:
        if sentence not in self.notes:
            self.notes.append(sentence)

    def wired(self, value: object) -> tuple[Node, int] | None:
        """The node and output that a value is wired to, past reroutes and switches; None for a plain value."""
        seen = set[str]()
        while True:
            found = self._end_of(value)
            if found is None or found[0].number in seen:
                return None
            seen.add(found[0].number)
            value = self._passed(found[0])
            if value is None:
                return found

    def _end_of(self, value: object) -> tuple[Node, int] | None:
        if not (isinstance(value, list) and len(value) == 2):
            return None
        number, slot = value
        if isinstance(number, bool) or not isinstance(number, str | int) or not isinstance(slot, int):
            return None
        node = self.nodes.get(str(number))
        return None if node is None else (node, slot)

    def _passed(self, node: Node) -> object:
        """The wire that a reroute or a switch hands on; None for any other node."""
        wires = {name: value for name, value in node.inputs.items() if self._end_of(value) is not None}
        if not wires:
            return None
        if _PASSES.search(node.kind):
            return next(iter(wires.values()))
        if not _SWITCH.search(node.kind):
            return None
        chosen = [self.plain(node.inputs[name]) for name in _SELECTORS if name in node.inputs and name not in wires]
        if chosen and isinstance(chosen[0], bool):
            names = ("on_true", "true", "if_true", "a") if chosen[0] else ("on_false", "false", "if_false", "b")
            return next((wires[name] for name in names if name in wires), None)
        if chosen and isinstance(chosen[0], int):
            numbered = (value for name, value in wires.items() if re.search(rf"(?<!\d)0*{chosen[0]}$", name))
            return next(numbered, None)
        if len(wires) > 1 and not node.kind.startswith("Any Switch"):
            self.note(f"{node} was read as its first input, {next(iter(wires))}")
        return next(iter(wires.values()))

    def plain(self, value: object, hint: str = "") -> Plain | None:
        """A plain value, or that of the node which a wire comes from, by the input's own name or if it has only one."""
        if isinstance(value, str | int | float):
            return value
        if isinstance(value, Mapping):
            # Nodes of pysssss and LoraManager hold a chosen file as an object.
            inner = value.get("content", value.get("__value__", value.get("value")))
            return inner if isinstance(inner, str | int | float) else None
        found, seen = self.wired(value), set[str]()
        while found is not None and found[0].number not in seen:
            inputs = found[0].inputs
            seen.add(found[0].number)
            values = [one for one in inputs.values() if isinstance(one, str | int | float)]
            wires = [one for one in inputs.values() if self._end_of(one) is not None]
            for name in (hint, "value", "seed" if "seed" in hint else "", "int", "float", "Number"):
                if name in inputs and isinstance(inputs[name], str | int | float):
                    plain: Plain = inputs[name]
                    return plain
            if hint in inputs or (len(wires) == 1 and not values):
                found = self.wired(inputs.get(hint, wires[0] if wires else None))
                continue
            return values[0] if len(values) == 1 and not wires else None
        return None

    def number(self, value: object, hint: str) -> float | int | None:
        """A number, also from text; None, with a note, if a wire can't be followed to one."""
        found = self.plain(value, hint)
        if isinstance(found, str):
            try:
                found = float(found) if re.search(r"[.e]", found) else int(found)
            except ValueError:
                found = None
        if isinstance(found, bool) or not isinstance(found, int | float):
            end = self.wired(value)
            if end is not None:
                self.note(f"{hint} comes from {end[0]}, which can't be followed")
            return None
        return found

    def get(self, node: Node, *names: str) -> object:
        """The first of these inputs, of the node or of one that hands it on in a pipe; None if nobody has it."""
        waiting, seen = [node], set[str]()
        while waiting and len(seen) < LONGEST_WALK:
            node = waiting.pop(0)
            if node.number in seen:
                continue
            seen.add(node.number)
            for name in names:
                if node.inputs.get(name) is not None:
                    return node.inputs[name]
            pipes = (self.wired(value) for name, value in node.inputs.items() if _PIPE.search(name))
            waiting += [found[0] for found in pipes if found is not None]
        return None

    def pipe_of(self, node: Node) -> object:
        """The wire by which a node takes several things at once; None if it has none."""
        pipes = (value for name, value in node.inputs.items() if _PIPE.search(name) and self.wired(value) is not None)
        return next(pipes, None)

    def pictures_of(self, node: Node) -> dict[str, Node]:
        """The inputs by which a node takes pictures or latents, with the nodes that they come from."""
        if node.number not in self._pictures:
            found = ((name, self.wired(value)) for name, value in node.inputs.items() if not _ASIDE.match(name))
            self._pictures[node.number] = {name: end[0] for name, end in found if end is not None}
        return self._pictures[node.number]

    def path_up(self, node: Node, wanted: Callable[[Node], bool]) -> list[Node]:
        """The shortest way up the wires of pictures to a wanted node, both ends included; empty if there is none."""
        before: dict[str, Node | None] = {node.number: None}
        waiting = [node]
        while waiting:
            one = waiting.pop(0)
            if one is not node and wanted(one):
                way: list[Node] = []
                step: Node | None = one
                while step is not None:
                    way.append(step)
                    step = before[step.number]
                return way[::-1]
            for end in self.pictures_of(one).values():
                if end.number not in before:
                    before[end.number] = one
                    waiting.append(end)
        return []

    def sinks(self) -> Iterator[Node]:
        """Nodes whose outputs nobody takes: what saves or shows pictures is among them."""
        taken = {
            end[0].number
            for node in self.nodes.values()
            for value in node.inputs.values()
            if (end := self._end_of(value)) is not None
        }
        return (node for node in self.nodes.values() if node.number not in taken)


def read_graph(text: str, where: str) -> Graph:
    """The graph of a picture's text `prompt`.

    Raises:
        RecipeError: it isn't one.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RecipeError(where, given=str(error), expected="ComfyUI's graph as JSON") from error
    if isinstance(values, dict) and isinstance(values.get("prompt"), dict):
        values = values["prompt"]
    nodes = {}
    for number, one in values.items() if isinstance(values, dict) else ():
        if isinstance(one, dict):
            inputs = one.get("inputs")
            kind = one.get("class_type")
            plain = kind if isinstance(kind, str) else ""
            nodes[str(number)] = Node(str(number), plain, inputs if isinstance(inputs, dict) else {})
    return Graph(checked_size(nodes, where))


def checked_size(nodes: dict[str, Node], where: str) -> dict[str, Node]:
    """The same nodes.

    Raises:
        RecipeError: more than `MAX_NODES`.
    """
    if len(nodes) > MAX_NODES:
        raise RecipeError(where, given=f"a graph of {len(nodes)} nodes", expected=f"at most {MAX_NODES}")
    return nodes
