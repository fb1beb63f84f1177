"""A request from a graph: from the node that saved the picture back along the wires to what painted it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from itertools import pairwise
from pathlib import PurePosixPath
from typing import Any

from gouache.errors import RecipeError
from gouache.models.family import SD3
from gouache.pipeline.fields.values import MAX_SIDE, MIN_SIDE
from gouache.pipeline.output.comfyui.graph import Graph, Node, read_graph
from gouache.pipeline.output.comfyui.guiders import guiders_of
from gouache.pipeline.output.comfyui.loras import loras_of, with_tags
from gouache.pipeline.output.comfyui.sampling import Sampling, is_sampler, paints_over, sampling_of
from gouache.pipeline.output.comfyui.sdxl import prompts_of, sizes_of
from gouache.pipeline.output.comfyui.texts import Conditionings, Texts, prompt_of
from gouache.pipeline.output.comfyui.workflow import graph_of_workflow
from gouache.pipeline.request import MAX_STEPS

Size = tuple[int, int]
_SAVES, _SHOWS = re.compile(r"save", re.IGNORECASE), re.compile(r"preview|show|display|view", re.IGNORECASE)
_LATENT_METHODS = {"nearest-exact": "latent-nearest", "nearest": "latent-nearest", "bicubic": "latent-bicubic"}
_UPSCALES = re.compile(r"upscale|scale|resize", re.IGNORECASE)
_SIZES = (("width", "height"), ("empty_latent_width", "empty_latent_height"), ("Width", "Height"))
_IN_WORDS = re.compile(r"(\d{2,5})\s*[x×*]\s*(\d{2,5})")
_MODEL_NAMES = (
    "ckpt_name",
    "base_ckpt_name",
    "unet_name",
    "model_name",
    "model_path",
    "checkpoint",
    "ckpt",
    "gguf_name",
)
_WEIGHTS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".gguf", ".sft")
_PLAIN_BETWEEN = re.compile(r"^(VAEDecode|VAEEncode|VAE Decode|Preview|LatentBatch|RepeatLatent|Reroute|Save)")


def recipe_of_graph(texts: Mapping[str, str], where: str, notes: list[str], size: Size | None = None) -> dict[str, Any]:
    """The fields of a request; without `prompt` where no text could be followed.

    Args:
        texts: `prompt` (the queued graph) or `workflow` (the editor's); with both, the first counts.
        where: the picture's name; of several that a graph saves, it tells which one this is.
        notes: what could not be followed or has no place in a request is added.
        size: the picture's width and height, if known.

    Raises:
        RecipeError: no graph, or none with a sampler.
    """
    queued = texts.get("prompt", "")
    graph = read_graph(queued, where) if queued.startswith("{") else graph_of_workflow(texts.get("workflow", ""), where)
    found = _passes(graph, where, size)
    if not found:
        raise RecipeError(
            where,
            given=f"a graph of {len(graph.nodes)} nodes without a KSampler",
            expected="a KSampler node",
            cure="Type the settings by hand; the graph itself can be seen with --json.",
        )
    save, passes = found
    reader = _Reader(graph, save, size)
    fields = reader.fields(passes)
    notes += [note for note in graph.notes if note not in notes]
    return fields


def _passes(graph: Graph, where: str, size: Size | None) -> tuple[Node, list[Node]] | None:
    """The node that saved the picture, and its samplers in the order in which they ran."""
    ends = [(node, _way(graph, node)) for node in graph.sinks()]
    ends = [(node, way) for node, way in ends if way]
    for kind in (_SAVES, _SHOWS):
        ends = [end for end in ends if kind.search(end[0].kind)] or ends
        if any(kind.search(end[0].kind) for end in ends):
            break
    if len({way[-1].number for _, way in ends}) > 1:
        ends = _by_name(ends, where) or _by_size(graph, ends, size) or ends
        if len({way[-1].number for _, way in ends}) > 1:
            graph.note(f"the graph saves several pictures ({len(ends)}); this is taken to be that of {ends[-1][0]}")
    return ends[-1] if ends else None


def _way(graph: Graph, end: Node) -> list[Node]:
    """The samplers above a node, the first to run in front; what only paints over parts of the picture is left out."""
    found: list[Node] = []
    start = end

    def wanted(node: Node) -> bool:
        return is_sampler(node) and not paints_over(node, graph)

    if wanted(end):
        found.append(end)
    while (way := graph.path_up(start, wanted)) and way[-1] not in found:
        found.append(way[-1])
        start = way[-1]
    return found[::-1]


def _by_name(ends: list[tuple[Node, list[Node]]], where: str) -> list[tuple[Node, list[Node]]]:
    """Those whose `filename_prefix` begins the picture's name, the longest of them alone."""
    name = re.split(r"[\\/]", where)[-1]
    found = []
    for node, way in ends:
        prefix = node.inputs.get("filename_prefix")
        stem = re.split(r"[\\/]", prefix)[-1] if isinstance(prefix, str) else ""
        if stem and name.startswith(stem):
            found.append((len(stem), node, way))
    longest = max((length for length, *_ in found), default=0)
    return [(node, way) for length, node, way in found if length == longest]


def _by_size(graph: Graph, ends: list[tuple[Node, list[Node]]], size: Size | None) -> list[tuple[Node, list[Node]]]:
    """Those whose last sampler paints at the picture's own size."""
    if size is None:
        return []
    same = []
    for node, way in ends:
        between = [one for one in graph.path_up(node, lambda one: one is way[-1]) or [] if _UPSCALES.search(one.kind)]  # noqa: B023
        if not between and _size_above(graph, way) == size:
            same.append((node, way))
    return same


def _size_above(graph: Graph, way: list[Node]) -> Size | None:
    """The size at which the last of these samplers paints, where it stands in numbers."""
    size = _size_of(graph, sampling_of(way[0], Graph(graph.nodes)).latents)
    for before, after in pairwise(way):
        for node in graph.path_up(after, lambda one: one is before)[1:-1]:  # noqa: B023
            width, height = (graph.plain(node.inputs.get(name), name) for name in ("width", "height"))
            scale = graph.plain(node.inputs.get("scale_by"), "scale_by")
            if isinstance(width, int) and isinstance(height, int) and width and height:
                size = (width, height)
            elif isinstance(scale, int | float) and size:
                size = (round(size[0] * scale), round(size[1] * scale))
    return size


class _Reader:
    """Puts the fields of a request together."""

    def __init__(self, graph: Graph, save: Node, size: Size | None) -> None:
        self.graph, self.save, self.size = graph, save, size
        self.texts = Texts(graph)
        self.understood: frozenset[str] = frozenset()  # numbers of nodes that are said by fields

    def fields(self, nodes: list[Node]) -> dict[str, Any]:
        main, *later = [sampling_of(node, self.graph) for node in nodes]
        hires: dict[str, Any] | None = None
        refiner: dict[str, Any] = {}
        for one in later:
            if one.adds_noise and one.denoise >= 1.0 and one.first == 0:
                self.graph.note(f"{main.node} paints what {one.node} covers with fresh noise; it is left out")
                main, hires, refiner = one, None, {}
            elif not one.adds_noise or one.first:
                refiner = refiner or self._refiner(main, one)
            elif hires is None:
                hires = self._second_pass(main, one)
            else:
                self.graph.note(f"{one.node} paints over the picture once more; it is left out")
        self._note_way(nodes)
        encoded = Conditionings(self.graph, self.texts)
        width, height = _size_of(self.graph, main.latents) or self._own_size(main, later)
        texts = prompts_of(self.graph, encoded, main, (width, height))
        guiders, self.understood = guiders_of(self.graph, self._guiding(main))
        loras, model = self._model(main.model)
        self._note_start(main, refined=bool(refiner))
        return {
            **texts,
            "prompt": with_tags(texts["prompt"], loras),
            "width": width,
            "height": height,
            "seed": main.seed,
            "num_inference_steps": main.steps,
            "guidance_scale": main.cfg,
            "sampler": main.sampler,
            "schedule": main.schedule,
            "sigmas": main.sigmas,
            "eta": main.eta,
            "clip_skip": self._clip_skip(main, encoded.clip),
            "model": model,
            "determinism": "cpu",  # ComfyUI draws its noise with a generator on the CPU
            "hires": hires,
            **refiner,
            **sizes_of(self.graph, encoded, (width, height), refiner.get("size_condition", {})),
            **self._rescale(main.model),
            **guiders,
        }

    def _guiding(self, main: Sampling) -> list[Node]:
        """The nodes that may change how the first sampler's model is guided."""
        guider = self.graph.wired(main.node.inputs.get("guider"))
        return [*([guider[0]] if guider else []), *_above(self.graph, main.model)]

    def _refiner(self, main: Sampling, one: Sampling) -> dict[str, Any]:
        """The second model of a pair of samplers that walk one list of levels; steps are counted there."""
        model = self._model(one.model, quiet=True)[1]
        same = model == self._model(main.model, quiet=True)[1]
        at = f" from step {one.first} on" if one.first else ""
        settings = [
            name for name in ("cfg", "sampler", "schedule", "steps") if getattr(one, name) != getattr(main, name)
        ]
        if same or model is None or not main.steps or not 0 < one.first < main.steps:
            if not same or "cfg" in settings or "sampler" in settings:
                self.graph.note(f"{one.node} continues{at} with {model or 'another model'} (a refiner); it is left out")
            return {}
        quiet = Conditionings(Graph(self.graph.nodes), Texts(Graph(self.graph.nodes)))
        for name in ("positive", "negative"):
            wires = [getattr(each, name) for each in (main, one)]
            words = [prompt_of(quiet.parts(wire, name) or [], quiet.graph)[0] for wire in wires if wire is not None]
            settings += [f"{name} prompt"] if len(set(words)) > 1 else []
        if settings:
            self.graph.note(f"the refiner ({one.node}) has its own {', '.join(settings)}, which is left out")
        if main.last is not None and main.last != one.first:
            self.graph.note(f"{main.node} stops at step {main.last}, and the refiner goes on{at}")
        scores = {
            key: self._score(wire)
            for key, wire in (("aesthetic_score", one.positive), ("negative_aesthetic_score", one.negative))
        }
        scores = {key: value for key, value in scores.items() if value is not None}
        return {
            "refiner": model,
            "refiner_switch_at": one.first / main.steps,
            "refiner_switch_by": "steps",
            **({"size_condition": scores} if scores else {}),
        }

    def _score(self, wire: object) -> float | None:
        """What the refiner is told of beauty by its own text node."""
        for node in _above(self.graph, wire):
            if "ascore" in node.inputs:
                score = self.graph.number(node.inputs["ascore"], "ascore")
                return None if score is None else float(score)
        return None

    def _second_pass(self, main: Sampling, one: Sampling) -> dict[str, Any] | None:
        """`hires` for a sampler that paints over the enlarged picture of the one before."""
        way = self.graph.path_up(one.node, lambda node: node is main.node)[1:-1]
        scale, sides, upscaler = self._enlarged(way, one)
        if sides is None and (scale is None or not 1.0 < scale <= 8.0):
            size = _size_of(self.graph, main.latents)
            if scale is not None and scale != 1.0:
                self.graph.note(f"the second pass of {one.node} at {scale:g} times the size is left out")
                return None
            sides = size or self.size
        if sides is None or not all(MIN_SIDE <= side <= MAX_SIDE for side in sides):
            if scale is None:
                self.graph.note(f"the size of the second pass ({one.node}) can't be followed; the pass is left out")
                return None
            sides = None
        different = [
            name
            for name in ("cfg", "sampler", "schedule", "positive", "negative", "model")
            if getattr(one, name) != getattr(main, name)
        ]
        if different:
            self.graph.note(f"the second pass ({one.node}) has its own {', '.join(different)}, which is left out")
        self.graph.note(f"{one.node} is the second pass: hires with strength {one.denoise:g}")
        steps = one.steps or main.steps
        found = {
            "scale": scale if sides is None else None,
            "width": sides[0] if sides else None,
            "height": sides[1] if sides else None,
            "upscaler": upscaler,
            "strength": one.denoise,
            # ComfyUI runs all its steps on the last part of the schedule; ours are a share of the schedule's.
            "num_inference_steps": min(math.ceil(steps / one.denoise - 1e-9), MAX_STEPS)
            if steps and one.denoise
            else steps,
        }
        return {name: value for name, value in found.items() if value is not None}

    def _enlarged(self, way: list[Node], one: Sampling) -> tuple[float | None, Size | None, str]:
        """Factor or width and height, and our name of the way to enlarge."""
        scale: float | None = None
        sides: Size | None = None
        upscaler, unknown = "latent", False
        for node in reversed([*way, one.node] if "upscale_by" in one.node.inputs else way):
            method = node.inputs.get("upscale_method", node.inputs.get("rescale_method"))
            in_pixels = not node.kind.startswith("Latent") and _UPSCALES.search(node.kind)
            if in_pixels:
                upscaler = "lanczos"
            elif isinstance(method, str):
                upscaler = _LATENT_METHODS.get(method, "latent")
            if "upscale_model" in node.inputs:
                unknown = True
                named = self.graph.wired(node.inputs["upscale_model"])
                name = self.graph.plain(named[0].inputs.get("model_name")) if named else None
                self.graph.note(f"{node} enlarges with {name or 'a model'}; read as lanczos")
            elif in_pixels and method not in (None, "lanczos"):
                self.graph.note(f"{node} enlarges pixels by {method}; read as lanczos")
            wide, high = (self.graph.number(node.inputs.get(name), name) for name in ("width", "height"))
            if _UPSCALES.search(node.kind) and wide is not None and high is not None:
                sides, unknown, scale = self._whole(int(wide), int(high), one), False, None
            for name in ("scale_by", "upscale_by", "scale", "factor", "scale_factor", "upscale"):
                factor = self.graph.number(node.inputs.get(name), name) if name in node.inputs else None
                if factor is not None and not unknown:
                    scale = float(factor) * (scale or 1.0)
                    break
        if unknown:
            scale, sides = None, self.size
        return scale, sides, upscaler

    def _whole(self, width: int, height: int, one: Sampling) -> Size | None:
        """A size of which one side may be 0: as the picture's shape wants it."""
        first = self.size
        if width and height:
            return width, height
        if first is None:
            self.graph.note(f"one side of the second pass ({one.node}) isn't given")
            return None
        return (width, round(width * first[1] / first[0])) if width else (round(height * first[0] / first[1]), height)

    def _note_way(self, nodes: list[Node]) -> None:
        """What lies between the samplers and the saved picture, and between two samplers."""
        below = self.save
        for node in reversed(nodes):
            way = self.graph.path_up(below, lambda one: one is node)[1:-1]  # noqa: B023
            for one in way:
                if paints_over(one, self.graph):
                    self.graph.note(f"{one} paints over parts of the picture; it is left out")
                elif below is self.save and not _PLAIN_BETWEEN.match(one.kind):
                    self.graph.note(f"{one} changes the finished picture; it is left out")
                if len([name for name in self.graph.pictures_of(one) if not name.startswith("pipe")]) > 1:
                    self.graph.note(f"{one} takes several pictures; one of them was followed")
            below = node

    def _own_size(self, main: Sampling, later: list[Sampling]) -> tuple[int | None, int | None]:
        """The file's own size, if nothing enlarged the picture after the first pass."""
        way = self.graph.path_up(self.save, lambda one: one is main.node)
        if later or self.size is None or any(_UPSCALES.search(node.kind) for node in way[1:-1]):
            return None, None
        if not all(MIN_SIDE <= side <= MAX_SIDE for side in self.size):
            return None, None
        return self.size

    def _note_start(self, main: Sampling, *, refined: bool) -> None:
        nodes = _pictures_above(self.graph, main.latents)
        loaded = next((node for node in nodes if re.search(r"Load ?Image|Image ?Load|LoadLatent", node.kind)), None)
        if loaded is not None:
            name = self.graph.plain(loaded.inputs.get("image"))
            self.graph.note(
                f"it starts from a picture, {name!r}, at denoise {main.denoise:g}, which the file doesn't hold"
            )
        elif main.denoise < 1.0 or main.first:
            share = main.denoise if main.denoise < 1.0 else 1 - main.first / (main.steps or main.first)
            self.graph.note(
                f"{main.node} runs the last {share:.0%} of the schedule on an empty picture; here all of it"
            )
        if any("mask" in name.lower() for node in nodes for name in node.inputs if self.graph.wired(node.inputs[name])):
            self.graph.note("a mask limits what is painted; it isn't in the file")
        if main.last is not None and not refined and not any("continues" in note for note in self.graph.notes):
            self.graph.note(f"{main.node} stops at step {main.last} of {main.steps}; here it runs to the end")

    def _model(self, wire: object, *, quiet: bool = False) -> tuple[list[tuple[str, object, object]], str | None]:
        """LoRAs between checkpoint and sampler, and the checkpoint's name."""
        loras: list[tuple[str, object, object]] = []
        end, seen = self.graph.wired(wire), set[str]()
        while end is not None and end[0].number not in seen:
            node = end[0]
            seen.add(node.number)
            held = loras_of(node, self.graph)
            loras += held
            for name in _MODEL_NAMES:
                value = self.graph.plain(node.inputs.get(name), name)
                if isinstance(value, str) and value not in ("", "None"):
                    path = PurePosixPath(value.replace("\\", "/"))
                    return loras, path.name if path.suffix in _WEIGHTS else value
            behind = [
                self.graph.get(node, name) for name in ("model", "model1", "base_model", "model_a", "MODEL", "unet")
            ]
            pipes = [self.graph.wired(value) for name, value in node.inputs.items() if "pipe" in name.lower()]
            end = next((found for one in behind if (found := self.graph.wired(one)) is not None), None)
            end = end or next((found for found in pipes if found is not None), None)
            harmless = (
                held
                or node.number in self.understood
                or (node.kind == "ModelSamplingSD3" and node.inputs.get("shift") == SD3.shift)
                or re.search(r"lora|loader|pipe|context|switch|cache|RescaleCFG", node.kind, re.IGNORECASE)
            )
            if not quiet and not harmless and end is not None:
                self.graph.note(f"{node} changes the model and isn't repeated")
            if "model2" in node.inputs and not quiet:
                self.graph.note(f"{node} merges models; read as the first of them")
        return loras, None

    def _rescale(self, wire: object) -> dict[str, float]:
        for node in _above(self.graph, wire):
            if node.kind == "RescaleCFG":
                share = self.graph.number(node.inputs.get("multiplier"), "multiplier")
                return {} if share is None else {"guidance_rescale": float(share)}
        return {}

    def _clip_skip(self, main: Sampling, clip: object) -> int | None:
        above = [clip] if isinstance(clip, Node) else _above(self.graph, clip)
        for node in above or [main.node]:
            layer = self.graph.number(self.graph.get(node, "stop_at_clip_layer", "clip_skip"), "clip_skip")
            if layer:
                return min(abs(int(layer)), 24)
        return None


def _above(graph: Graph, value: object) -> list[Node]:
    """Every node above a wire, the nearest first, but not across samplers and texts."""
    end = graph.wired(value)
    waiting, found = [end[0]] if end else [], dict[str, Node]()
    while waiting:
        node = waiting.pop(0)
        if node.number in found or is_sampler(node):
            continue
        found[node.number] = node
        ends = (graph.wired(one) for name, one in node.inputs.items() if name not in ("positive", "negative"))
        waiting += [one[0] for one in ends if one is not None]
    return list(found.values())


def _size_of(graph: Graph, latents: object) -> Size | None:
    """Width and height of the empty latents that a sampler starts from."""
    for node in _pictures_above(graph, latents):
        if re.search(r"Load ?Image|Image ?Load|LoadLatent|Crop|Pad", node.kind):
            return None
        size: Size | None = None
        for names in _SIZES:
            width, height = (graph.number(node.inputs.get(name), name) for name in names)
            if size is None and width and height:
                size = (int(width), int(height))
        for name in ("resolution", "dimensions", "aspect_ratio", "ratio"):
            said = _IN_WORDS.search(str(node.inputs.get(name, "")))
            # Beside a size that is chosen from a list, the numbers are those of the list's entry "custom".
            size = (int(said[1]), int(said[2])) if said else size
        if size is not None:
            return size[::-1] if str(node.inputs.get("swap_dimensions", "")).lower() in ("on", "true") else size
    return None


def _pictures_above(graph: Graph, value: object) -> list[Node]:
    """Every node above a wire of pictures or latents, the nearest first, up to samplers."""
    end = graph.wired(value)
    waiting, found = [end[0]] if end else [], dict[str, Node]()
    while waiting:
        node = waiting.pop(0)
        if node.number not in found and not is_sampler(node):
            found[node.number] = node
            sizes = [graph.wired(node.inputs.get(name)) for name in ("width", "height")]
            # A node that makes width and height together isn't a picture; its numbers are read from the wires.
            waiting += [
                one for one in graph.pictures_of(node).values() if not any(end and end[0] is one for end in sizes)
            ]
    return list(found.values())
