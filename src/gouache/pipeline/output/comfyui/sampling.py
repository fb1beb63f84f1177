"""What one sampler of a graph does: its seed, steps, sampler, schedule, and what is wired to it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from gouache.diffusion.samplers.names import COMFYUI_SCHEDULES
from gouache.pipeline.output.comfyui.graph import Graph, Node

_SAMPLER = re.compile(r"k?sampler", re.IGNORECASE)
_NO_SAMPLER = re.compile(
    r"select|provider|ModelSampling|schedul|sigmas|config|settings|preSampling|options|picker|^Sampler(?!Custom)",
    re.IGNORECASE,
)
_SETTINGS = re.compile(r"provider|config|settings|preSampling|options|loader", re.IGNORECASE)
_REPAIR = re.compile(r"detailer|UltimateSDUpscale|upscaler|inpaint ?crop|enhance|ReActor|restore", re.IGNORECASE)
_LATENTS = ("latent_image", "latent", "samples", "latents", "optional_latent", "image", "upscaled_image")
_SAMPLER_NODES = {
    "SamplerEulerAncestral": "euler_ancestral", "SamplerEulerAncestralCFGPP": "euler_ancestral_cfg_pp",
    "SamplerEulerCFGpp": "euler_cfg_pp", "SamplerDPMAdaptative": "dpm_adaptive", "SamplerSASolver": "sa_solver",
    "SamplerLCMUpscale": "lcm",
}  # fmt: skip
"""Those whose sampler isn't called like the node without `Sampler`, in small letters."""
_SIGMA_NODES = {
    "KarrasScheduler": "karras", "ExponentialScheduler": "exponential", "PolyexponentialScheduler": "polyexponential",
    "BetaSamplingScheduler": "beta", "AlignYourStepsScheduler": "align_your_steps", "VPScheduler": "vp",
    "LaplaceScheduler": "laplace", "SDTurboScheduler": "trailing", "GITSScheduler": "gits", "LTXVScheduler": "ltxv",
    "Flux2Scheduler": "flux2", "OptimalStepsScheduler": "optimal_steps",
}  # fmt: skip


def is_sampler(node: Node) -> bool:
    """Whether a node turns noise into a picture or latents."""
    if {"sampler_name", "steps", "cfg"} <= node.inputs.keys():
        return not _SETTINGS.search(node.kind)
    return bool(_SAMPLER.search(node.kind)) and not _NO_SAMPLER.search(node.kind) and bool(node.inputs)


def paints_over(node: Node, graph: Graph) -> bool:
    """Whether a node samples over parts of a finished picture (faces, tiles) that comes from another sampler."""
    if not (is_sampler(node) or _REPAIR.search(node.kind)):
        return False
    pictures = graph.pictures_of(node)
    latents = any("latent" in name or name == "samples" for name in pictures)
    given = any(name in pictures for name in ("image", "images", "upscaled_image", "pixels"))
    return given and not latents and bool(graph.path_up(node, is_sampler))


@dataclass(frozen=True, slots=True)
class Sampling:
    """One sampler's settings; None for what isn't set or can't be followed.

    Attributes:
        node: the sampler.
        seed: of its noise.
        steps: of the whole schedule.
        cfg: guidance scale.
        sampler: ComfyUI's name.
        schedule: ComfyUI's name, or ours where ours means another list by it.
        sigmas: noise levels given one by one.
        eta: where the sampler's own node sets it.
        denoise: share of the schedule that is run, from its end.
        first: step at which it begins, for samplers that walk a part of the schedule.
        last: step at which it stops.
        adds_noise: it starts from fresh noise.
        model, positive, negative, latents: plain values or wires.
    """

    node: Node
    seed: int | None = None
    steps: int | None = None
    cfg: float | None = None
    sampler: str | None = None
    schedule: str | None = None
    sigmas: tuple[float, ...] | None = None
    eta: float | None = None
    denoise: float = 1.0
    first: int = 0
    last: int | None = None
    adds_noise: bool = True
    model: object = None
    positive: object = None
    negative: object = None
    latents: object = None


def sampling_of(node: Node, graph: Graph) -> Sampling:
    """Read a sampler, and the nodes for noise, guidance, sampler and noise levels that newer ones are made of."""
    get = graph.get
    noise = graph.wired(node.inputs.get("noise"))
    guider = graph.wired(node.inputs.get("guider"))
    source = guider[0] if guider else node
    seed_at = noise[0] if noise else node
    seed = graph.number(get(seed_at, "seed", "noise_seed", "seed_value"), "seed")
    cfg = graph.number(get(source, "cfg", "cfg_conds", "cfg_scale"), "cfg")
    if guider and cfg is None and guider[0].kind == "BasicGuider":
        cfg = 1.0
    if guider and guider[0].kind not in ("BasicGuider", "CFGGuider", "PerpNegGuider"):
        graph.note(f"{guider[0]} guides by its own rule; read as classifier-free guidance with its first prompt")
    sampler, eta = _sampler(node, graph)
    schedule, steps, denoise, sigmas, first, last = _levels(node, graph)
    start, stop = (graph.number(get(node, name), name) for name in ("start_at_step", "end_at_step"))
    refine = graph.number(node.inputs.get("refine_at_step"), "refine_at_step")
    if refine is not None and refine > 0:
        graph.note(f"{node} hands over to a refiner at step {refine:g}; the refiner is left out")
    adds = graph.plain(get(node, "add_noise"))
    return Sampling(
        node=node,
        seed=int(seed) if seed is not None else None,
        steps=steps,
        cfg=None if cfg is None else float(cfg),
        sampler=sampler,
        schedule=schedule,
        sigmas=sigmas,
        eta=eta,
        denoise=denoise,
        first=max(first, int(start or 0)),
        last=last if stop is None or (steps is not None and stop >= steps) else int(stop),
        adds_noise=adds not in ("disable", False) and not (noise and noise[0].kind == "DisableNoise"),
        model=get(source, "model", "base_model", "optional_model") or graph.pipe_of(source),
        positive=get(source, "positive", "conditioning", "cond1", "base_positive", "optional_positive"),
        negative=get(source, "negative", "base_negative", "optional_negative"),
        latents=get(node, *_LATENTS) or graph.pipe_of(node),
    )


def _sampler(node: Node, graph: Graph) -> tuple[str | None, float | None]:
    """Name and eta."""
    name = graph.plain(graph.get(node, "sampler_name", "sampler"), "sampler_name")
    end = graph.wired(node.inputs.get("sampler"))
    eta = None
    if end is not None and "sampler_name" not in end[0].inputs and end[0].kind.startswith("Sampler"):
        inputs = end[0].inputs
        name = _SAMPLER_NODES.get(end[0].kind, end[0].kind.removeprefix("Sampler").lower())
        if name == "dpmpp_2m_sde" and inputs.get("solver_type") == "heun":
            name = "dpmpp_2m_sde_heun"
        eta = graph.number(inputs.get("eta"), "eta")
        s_noise = graph.number(inputs.get("s_noise"), "s_noise")
        if s_noise not in (None, 1):
            graph.note(f"s_noise {s_noise:g} of {end[0]} isn't repeated")
    if not isinstance(name, str):
        what = end[0] if end else node
        graph.note(f"the sampler of {what} can't be followed; the model's own is taken")
        return None, None
    return name, None if eta is None else float(eta)


def _levels(
    node: Node, graph: Graph
) -> tuple[str | None, int | None, float, tuple[float, ...] | None, int, int | None]:
    """Schedule, steps, denoise, levels given one by one, first and last step."""
    source, first, last = node, 0, None
    end, seen = graph.wired(node.inputs.get("sigmas")), set[str]()
    while end is not None and end[0].number not in seen:
        source, slot = end
        seen.add(source.number)
        if source.kind.startswith("SplitSigmas"):
            step = graph.number(source.inputs.get("step"), "step")
            if step is None:
                graph.note(f"{source} splits the noise levels; read as all of them")
            elif slot == 0:
                last = int(step)
            else:
                first = int(step)
        elif source.kind in ("FlipSigmas", "SetFirstSigma", "ExtendIntermediateSigmas"):
            graph.note(f"{source} changes the noise levels and isn't repeated")
        end = graph.wired(source.inputs.get("sigmas"))
    text = source.inputs.get("sigmas", source.inputs.get("string"))
    if isinstance(text, str) and "manual" in source.kind.lower():
        levels = tuple(float(one) for one in re.findall(r"\d+\.?\d*(?:e[+-]?\d+)?", text))
        return None, max(len(levels) - 1, 1), 1.0, levels or None, first, last
    steps = graph.number(graph.get(source, "steps"), "steps")
    denoise = graph.number(graph.get(source, "denoise"), "denoise")
    name = _SIGMA_NODES.get(source.kind) or graph.plain(graph.get(source, "scheduler", "scheduler_name"), "scheduler")
    if source.kind in _SIGMA_NODES and {"sigma_max", "alpha", "beta_d", "rho", "coeff"} & source.inputs.keys():
        graph.note(f"{source} has limits of its own; the schedule {name!r} is taken with the model's")
    schedule = name if isinstance(name, str) else None
    if schedule and "[" in schedule:
        # The Impact pack writes AYS, GITS and others as "AYS SDXL" or "simple [...]".
        schedule = schedule.partition("[")[0].strip()
    share = 1.0 if denoise is None else min(max(float(denoise), 0.0), 1.0)
    schedule = COMFYUI_SCHEDULES.get(schedule, schedule) if schedule else schedule
    return schedule, None if steps is None else int(steps), share, None, first, last
