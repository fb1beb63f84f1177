"""Which tensors of a file make one change of a layer, and what that change is: the forms that adapters come in."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from gouache.checkpoints.adapters.deltas import (
    Added,
    Decomposed,
    Factors,
    Hadamard,
    Kronecker,
    LayerDelta,
    LowRank,
    Replaced,
)
from gouache.checkpoints.adapters.layer_names import BIAS, WEIGHT
from gouache.checkpoints.adapters.multiplied import (
    Generalised,
    InputRotation,
    OutputRotation,
    Rescaled,
)
from gouache.checkpoints.adapters.peft_config import LayerSettings, RotationSettings

HADA = frozenset({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"})
# Every set of roles that make a change of a weight; those in the second set may be missing.
LOW_RANK: tuple[tuple[frozenset[str], frozenset[str]], ...] = (
    (frozenset({"down", "up"}), frozenset({"mid", "up_bias"})),
    (HADA, frozenset()),
    (HADA | {"hada_t1", "hada_t2"}, frozenset()),
    (frozenset({"lokr_w1", "lokr_w2"}), frozenset()),
    (frozenset({"lokr_w1_a", "lokr_w1_b", "lokr_w2"}), frozenset()),
    (frozenset({"lokr_w1", "lokr_w2_a", "lokr_w2_b"}), frozenset({"lokr_t2"})),
    (frozenset({"lokr_w1_a", "lokr_w1_b", "lokr_w2_a", "lokr_w2_b"}), frozenset({"lokr_t2"})),
)
OTHERS: tuple[tuple[frozenset[str], frozenset[str]], ...] = (
    (frozenset({"a1", "a2", "b1", "b2"}), frozenset()),
    (frozenset({"weight", "on_input"}), frozenset()),
    (frozenset({"ia3_l"}), frozenset()),
    (frozenset({"oft_blocks"}), frozenset({"rescale"})),
    (frozenset({"oft_R"}), frozenset()),
    (frozenset({"boft_R", "boft_s"}), frozenset()),
    (frozenset({"diff"}), frozenset()),
    (frozenset({"w_norm"}), frozenset()),
    (frozenset({"weight"}), frozenset()),
    (frozenset(), frozenset()),
)
BIASES = frozenset({"diff_b", "b_norm", "bias"})
"""What changes a layer's bias, alone or beside a change of its weight."""
NUMBERS = frozenset({"alpha", "scale"})
"""Single numbers: the change is alpha / rank, or `scale`, times what the tensors give."""
MAGNITUDES = frozenset({"dora_scale", "magnitude"})
"""Magnitudes of DoRA, by LyCORIS's and by PEFT's name, beside low ranks only. A file may have both, for readers of
either."""
WHOLE = frozenset({"weight", "bias"})
"""A layer's own parameters, which PEFT stores where it trained them as a whole. Others' mean nothing here."""


def is_whole(roles: frozenset[str]) -> bool:
    """Whether a layer's tensors make one change, no more and no less."""
    own = roles - NUMBERS - MAGNITUDES - BIASES
    if MAGNITUDES & roles:
        return _is_one(own, LOW_RANK)
    return bool(own or roles & BIASES) and _is_one(own, (*LOW_RANK, *OTHERS))


def _is_one(own: frozenset[str], forms: tuple[tuple[frozenset[str], frozenset[str]], ...]) -> bool:
    return any(must <= own and not own - must - may for must, may in forms)


def rank_of(parts: Mapping[str, Tensor]) -> int:
    """What a layer's alpha is divided by; 0 where no rank shows, as in a LoKr whose factors are whole."""
    for role in ("down", "lokr_w2_b", "lokr_w1_b", "hada_w1_b"):
        if role in parts and parts[role].ndim:
            return int(parts[role].shape[0])
    if "a1" in parts and parts["a1"].ndim > 1:
        return min(parts["a1"].shape[:2])
    return 0


def changes_of(parts: Mapping[str, Tensor], settings: LayerSettings) -> dict[str, LayerDelta]:
    """The changes that a layer's tensors make, by parameter; their roles have to be whole, see `is_whole`."""
    scale = _scale(parts, settings)
    weight = _weight_change(parts, scale, settings)
    changes: dict[str, LayerDelta] = {} if weight is None else {WEIGHT: weight}
    for role in BIASES & parts.keys():
        changes[BIAS] = Replaced(parts[role]) if role == "bias" else Added(parts[role])
    if "up_bias" in parts:
        changes[BIAS] = Added(parts["up_bias"], scale)
    if isinstance(weight, Rescaled) and weight.by_output and weight.from_one:
        changes[BIAS] = weight  # PEFT scales what comes out of the layer, its bias included
    return changes


def _scale(parts: Mapping[str, Tensor], settings: LayerSettings) -> float:
    rank = rank_of(parts)
    if not rank:
        return settings.factor if settings.whole_scaled else 1.0  # LyCORIS writes the rank as alpha of whole factors
    if "alpha" in parts:
        return float(parts["alpha"].item()) / rank
    return float(parts["scale"].item()) if "scale" in parts else settings.factor


def _weight_change(parts: Mapping[str, Tensor], scale: float, settings: LayerSettings) -> LayerDelta | None:
    if "oft_blocks" in parts:
        outputs = parts["oft_blocks"].shape[-3] * parts["oft_blocks"].shape[-2] if parts["oft_blocks"].ndim > 2 else 0
        bound = float(parts["alpha"].item()) * outputs if "alpha" in parts else 0.0
        return OutputRotation(parts["oft_blocks"], bound, parts.get("rescale"))
    if "oft_R" in parts:
        return InputRotation(parts["oft_R"], settings.rotation)
    if "boft_R" in parts:
        return InputRotation(parts["boft_R"], RotationSettings(terms=0), parts["boft_s"])
    if "ia3_l" in parts:
        # [out, 1] or [1, in] for a linear layer, [1, channels, 1, 1] for a convolution, where only the settings tell
        by_output = parts["ia3_l"].shape[:1] != (1,) or (parts["ia3_l"].ndim > 2 and not settings.feedforward)
        return Rescaled(parts["ia3_l"], by_output, from_one=True)
    if "on_input" in parts:
        return Rescaled(parts["weight"], not bool(parts["on_input"].item()), from_one=False)
    for role in ("diff", "w_norm"):
        if role in parts:
            return Added(parts[role])
    if "weight" in parts:
        return Replaced(parts["weight"])
    return _low_rank(parts, scale) if parts.keys() - BIASES - NUMBERS else None


def _low_rank(parts: Mapping[str, Tensor], scale: float) -> LayerDelta:
    if "a1" in parts:
        return _generalised(parts, scale)
    if "down" in parts:
        inner: LayerDelta = LowRank(parts["down"], parts["up"], parts.get("mid"), scale)
    elif "hada_w1_a" in parts:
        halves = [Factors(parts[f"hada_w{k}_a"], parts[f"hada_w{k}_b"], parts.get(f"hada_t{k}")) for k in (1, 2)]
        inner = Hadamard(halves[0], halves[1], scale)
    else:
        inner = Kronecker(_kronecker_factor(parts, 1), _kronecker_factor(parts, 2), scale)
    if "magnitude" in parts:
        return Decomposed(inner, parts["magnitude"], by_output=True)
    if "dora_scale" in parts:
        # kohya's and LyCORIS's name; one row of numbers along the inputs, or one column along the outputs.
        return Decomposed(inner, parts["dora_scale"], by_output=parts["dora_scale"].shape[:1] != (1,))
    return inner


def _generalised(parts: Mapping[str, Tensor], scale: float) -> Generalised:
    """Files of LyCORIS 1 call the halves the other way round: there a1 is [r, in]."""
    a1, a2, b1, b2 = (parts[role] for role in ("a1", "a2", "b1", "b2"))
    matrices = all(half.ndim > 1 for half in (a1, a2, b1, b2))
    old = matrices and a1.shape[0] < a1.shape[1] and b1.shape[0] < b2.shape[0]
    return Generalised(a2, a1, b2, b1, scale) if old else Generalised(a1, a2, b1, b2, scale)


def _kronecker_factor(parts: Mapping[str, Tensor], number: int) -> Tensor | Factors:
    whole = parts.get(f"lokr_w{number}")
    if whole is not None:
        return whole
    return Factors(parts[f"lokr_w{number}_a"], parts[f"lokr_w{number}_b"], parts.get(f"lokr_t{number}"))
