"""Steps that cost less: what guides, the U-Net's deep features or all blocks' result, kept from one step to the next.

Guidance in an interval of noise levels, the other saving of this kind, is `guidance_interval`
(`diffusion/guidance.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from gouache.diffusion.samplers.names import sampler_info
from gouache.errors import InvalidInput
from gouache.models.bundle import ModelBundle
from gouache.models.caching.block_cache import BlockCache
from gouache.models.caching.deep_cache import DeepCache
from gouache.models.caching.rows import CachedRow, KeptMap
from gouache.models.configs import MMDiTConfig, UNetConfig
from gouache.models.family import POCKET, SD1, SD2, SD3, SDXL
from gouache.models.perturbation import finest_blocks
from gouache.models.unet import UNet
from gouache.pipeline.fields.guiders import CfgCache, Timed
from gouache.pipeline.generate.a1111_procedure import follows
from gouache.pipeline.inputs.start import INSTRUCT, input_kind, steps_to_skip
from gouache.pipeline.request import Request

NAMES = ("cfg_cache", "deep_cache", "block_cache")


@dataclass(frozen=True, slots=True)
class FastValues:
    """What `fast` sets where a request leaves it open.

    Attributes:
        steps: the fewest for which these hold.
        source: who found these values, for the note.
        deep: interval and branch of `deep_cache`.
        threshold: of `block_cache`.
        guidance_interval: lowest and highest noise level that is guided; None leaves it alone.
        noisy: only with samplers that add noise at every step, so that no step's first block answers as the last one's.
    """

    steps: int
    source: str
    deep: tuple[int, int] | None = None
    threshold: float | None = None
    guidance_interval: tuple[float, float] | None = None
    noisy: bool = False


MEASURED = "measured on the pocket model, docs/benchmarks.md"
PUBLISHED = FastValues(20, "its authors' values for Stable Diffusion, not measured here", deep=(3, 0))
"""As the authors of DeepCache (Ma et al. 2023, arXiv:2312.00858) set them in their helper for diffusers."""
FAST: Mapping[str, tuple[FastValues, ...]] = {
    POCKET.name: (
        FastValues(20, MEASURED, deep=(3, 2), guidance_interval=(0.28, 80.0), noisy=True),
        FastValues(8, MEASURED, threshold=0.1),
    ),
    **dict.fromkeys((SD1.name, SD2.name, SDXL.name), (PUBLISHED,)),
    SD3.name: (FastValues(20, "the threshold that diffusers sets, not measured here", threshold=0.05),),
}
"""Family -> its values, those for the most steps first."""


@dataclass(slots=True)
class Savings:
    """What one walk of the sampler evaluates less often, and what it keeps meanwhile; a fresh one for each walk.

    Attributes:
        steps: of the walk.
        cfg: how long the difference between prompt and negative prompt is kept.
        kept: where what the network made is kept, and when.
        merging: share of the places that self-attention sees as one with others.
        difference: the latest D - D_neg, over its share of the level. [B,C,h,w]
    """

    steps: int = 1
    cfg: CfgCache | None = None
    kept: tuple[DeepCache | BlockCache, Timed] | None = None
    merging: float = 0.0
    difference: KeptMap | None = field(default=None, init=False)

    def rows(self, step: int, *slot: str | int) -> tuple[CachedRow, ...]:
        """What a condition is told: where what is kept of its prediction lies."""
        if self.kept is None:
            return ()
        cache, timed = self.kept
        return (CachedRow(cache, slot, step, full=not timed.is_on(step, self.steps)),)

    def difference_at(self, step: int, level: float, rows: int) -> Tensor | None:
        """D - D_neg as kept, if it stands in at a step. [B,C,h,w]"""
        cfg, kept = self.cfg, self.difference
        if cfg is None or kept is None or not cfg.is_on(step, self.steps):
            return None
        return kept.map * share_of_level(level) if kept.holds(step, level, rows, cfg.interval) else None

    def keep(self, difference: Tensor, step: int, level: float) -> None:
        """Keep the D - D_neg that a step found. [B,C,h,w]"""
        if self.cfg is not None:
            self.difference = KeptMap(difference / share_of_level(level), step, level)


def share_of_level(sigma: float) -> float:
    """sigma^2 / (sigma^2 + 1): how the difference of two predictions falls with the noise level.

    D = x + sigma^2 grad log p (Karras et al. 2022, arXiv:2206.00364, equation 3). For Gaussian data of unit variance
    with two means D - D_neg is this share of the means' difference, whatever x is. Kept as it is, a difference would
    guide the late steps far too much.

    >>> share_of_level(0.0), share_of_level(1.0), share_of_level(float("inf"))
    (0.0, 0.5, 1.0)
    """
    squared = sigma * sigma
    return 1.0 if math.isinf(squared) else squared / (squared + 1.0)


def merging_of(request: Request, bundle: ModelBundle) -> float:
    """The share of places that a resolved request merges. A1111 merges at the latents' own size or not at all, so that
    SDXL, which has no attention there, paints as without."""
    network = bundle.unet
    coarser = isinstance(network, UNet) and finest_blocks(network)[0] > 0
    return 0.0 if coarser and follows(request) else request.token_merging


def savings_of(request: Request, bundle: ModelBundle, steps: int) -> Savings:
    """What a resolved request saves in a walk of so many steps."""
    deep, block = request.deep_cache, request.block_cache
    kept: tuple[DeepCache | BlockCache, Timed] | None = None
    if deep is not None:
        kept = (DeepCache(deep.interval, deep.branch), deep)
    elif block is not None:
        kept = (BlockCache(block.threshold), block)
    return Savings(steps, request.cfg_cache, kept, merging_of(request, bundle))


def walked_steps(request: Request) -> int:
    """Steps of the first pass that are walked."""
    steps = len(request.sigmas or ()) - 1 if request.sigmas is not None else request.num_inference_steps or 1
    if request.init_image is not None and request.strength is not None:
        steps -= steps_to_skip(steps, request.strength)
    return steps


def with_fast(request: Request, bundle: ModelBundle) -> Request:
    """A resolved request with the values that `fast` stands for; what it sets itself stays.

    `fast` itself is off in the result: its recipe holds the values, and replays whatever `fast` means later.
    """
    if not request.fast:
        return request
    plain, config = request.replace({"fast": False}), bundle.unet.config
    values = _values_for(request, bundle)
    if values is None:
        return plain
    found: dict[str, object] = {}
    told = isinstance(config, UNetConfig) and config.guidance_width > 0
    if request.guidance_scale != 1 and not told and request.guidance_interval is None:
        found["guidance_interval"] = values.guidance_interval
    walks = not sampler_info(request.sampler or "ddim").own_levels
    if walks and request.deep_cache is None and request.block_cache is None and request.sag is None:
        found |= _blocks_left_out(values, config)
    return plain.replace(found)


def _blocks_left_out(values: FastValues, config: UNetConfig | MMDiTConfig) -> dict[str, object]:
    """What `fast` sets of the options that leave out blocks."""
    if values.threshold is not None:
        return {"block_cache": {"threshold": values.threshold}}
    if values.deep is None or not isinstance(config, UNetConfig):
        return {}
    # With one map more only the middle would be kept, which repays nothing.
    interval, branch = values.deep[0], min(values.deep[1], _kept_maps(config) - 2)
    return {"deep_cache": {"interval": interval, "branch": branch}} if branch >= 0 else {}


def fast_notes(asked: Request, resolved: Request, bundle: ModelBundle) -> list[str]:
    """What `fast` set, or why nothing."""
    if not asked.fast:
        return []
    low_high = resolved.guidance_interval if asked.guidance_interval is None else None
    deep = resolved.deep_cache if asked.deep_cache is None else None
    block = resolved.block_cache if asked.block_cache is None else None
    told = [] if low_high is None else [f"guidance_interval {low_high[0]:g} to {low_high[1]:g}"]
    told += [] if deep is None else [f"deep_cache of interval {deep.interval}, branch {deep.branch}"]
    told += [] if block is None else [f"block_cache of threshold {block.threshold:g}"]
    values, known = _values_for(resolved, bundle), FAST.get(bundle.family, ())
    if not known:
        return [f"fast was not used: no values are known for {bundle.family} models"]
    if values is None:
        steps = walked_steps(resolved)
        return [f"fast was not used: it pays from {known[-1].steps} steps on, and there are {steps}"]
    if told:
        return [f"fast set {' and '.join(told)} ({values.source})"]
    return ["fast was not used: the request leaves nothing open that it would set"]


def _values_for(request: Request, bundle: ModelBundle) -> FastValues | None:
    """Those of the model's family for the steps and the sampler of a resolved request."""
    steps, noisy = walked_steps(request), sampler_info(request.sampler or "ddim").stochastic == "yes"
    known = FAST.get(bundle.family, ())
    return next((one for one in known if steps >= one.steps and (noisy or not one.noisy)), None)


def _kept_maps(config: UNetConfig) -> int:
    """Feature maps that the U-Net keeps for its way up."""
    return sum(len(row) for row in config.up_depths())


def check_savings(request: Request, bundle: ModelBundle) -> None:
    """Refuse savings that this model, or the request beside them, can't have.

    Raises:
        InvalidInput: no U-Net, or none so deep; an instruct model; a guider that needs what is left out.
    """
    if request.cfg_cache is not None:
        _check_difference(request, bundle)
    _check_left_out_blocks(request)
    _check_merging(request, bundle)
    if request.deep_cache is None:
        return
    config = bundle.unet.config
    if not isinstance(config, UNetConfig):
        raise InvalidInput(
            "deep_cache",
            given=f"a value for {bundle.name or bundle.family}",
            expected="a model with a U-Net, of whose blocks some are deep",
            cure="Leave it out; block_cache and cfg_cache work with this model too.",
        )
    branches = _kept_maps(config)
    if request.deep_cache.branch >= branches:
        raise InvalidInput(
            "deep_cache.branch",
            given=request.deep_cache.branch,
            expected=f"at most {branches - 1}: this U-Net keeps {branches} feature maps for its way up",
            cure="Choose a smaller one; 0 saves most.",
        )


def _check_merging(request: Request, bundle: ModelBundle) -> None:
    """Places are merged in a U-Net's self-attention."""
    network = bundle.unet
    if request.token_merging == 0 or (isinstance(network, UNet) and finest_blocks(network)[1]):
        return
    raise InvalidInput(
        "token_merging",
        given=f"a value for {bundle.name or bundle.family}",
        expected="a model with self-attention in its U-Net",
        cure="Leave it out; block_cache saves with every model.",
    )


def _check_left_out_blocks(request: Request) -> None:
    """What leaves out blocks does so alone, and leaves out none that something looks at."""
    asked = [name for name in ("deep_cache", "block_cache") if getattr(request, name) is not None]
    if len(asked) > 1:
        raise InvalidInput(
            "block_cache",
            given="deep_cache beside it, which leaves out blocks by another rule",
            expected="one or the other",
            cure="Leave one out; cfg_cache and guidance_interval go with both.",
        )
    if asked and request.sag is not None:
        raise InvalidInput(
            asked[0],
            given="sag, which looks at the attention in the middle of the U-Net at every step",
            expected="one or the other",
            cure="Leave one out, or use pag.",
        )


def _check_difference(request: Request, bundle: ModelBundle) -> None:
    """A kept difference is that of one prompt and one negative prompt."""
    clashes = {
        "an instruct model, which is guided by its picture too": input_kind(bundle) == INSTRUCT,
        "perp_neg, which measures the negative prompt at every step": request.perp_neg is not None,
        "sag, which blurs the negative prompt's prediction": request.sag is not None,
    }
    clash = next((name for name, there in clashes.items() if there), None)
    if clash:
        raise InvalidInput(
            "cfg_cache",
            given=clash,
            expected="guidance by prompt and negative prompt alone",
            cure="Leave cfg_cache out; deep_cache saves too.",
        )


def check_saving_sampler(request: Request, sampler: str) -> None:
    """Refuse samplers whose steps aren't those that an interval counts.

    Raises:
        InvalidInput: a sampler that chooses its levels itself.
    """
    asked = next((name for name in NAMES if getattr(request, name) is not None), None)
    if asked and sampler_info(sampler).own_levels:
        raise InvalidInput(
            asked,
            given=f"sampler {sampler}, which chooses its noise levels as it goes",
            expected="a sampler that walks the list of levels",
            cure="Use dpmpp_2m, or leave it out.",
        )
