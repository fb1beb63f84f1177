"""Guiders in A1111's texts: the keys of Forge's built-in extensions, of sd-dynamic-thresholding and of sd-webui-freeu.

A key is read where its extension does what an option of ours does; with settings beyond that it is left out, whole.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from gouache.config import Config
from gouache.errors import ConfigError
from gouache.pipeline.fields.guiders import FreeU, Mimic, Pag, Sag
from gouache.pipeline.request import Request

Values = Mapping[str, str]
_MEASURES = {"AD": "max", "STD": "std"}
_CENTRES = {"MEAN": "mean", "ZERO": "zero"}
_CHANNELS = {"enable": True, "disable": False, "True": True, "False": False}


def guiders_of_text(values: Values) -> tuple[dict[str, Any], frozenset[str]]:
    """Fields of a request, and the keys that they say.

    Args:
        values: the text's pairs.
    """
    found: dict[str, Any] = {}
    understood: set[str] = set()
    for option, group, read, prefixes in _READERS:
        keys = [key for key in values if key.startswith(prefixes)]
        fields = read(values) if keys and option not in found else None
        if fields is not None and _is_valid(group, fields):
            found[option] = fields
            understood.update(keys)
    return found, frozenset(understood)


def texts_of_guiders(request: Request) -> dict[str, object | None]:
    """A resolved request's guiders in Forge's keys; what Forge has no word for stands in the JSON only."""
    found: dict[str, object | None] = {}
    pag, sag, freeu, mimic = request.pag, request.sag, request.freeu, request.mimic
    if pag is not None and pag == Pag(scale=pag.scale):
        found |= {"PerturbedAttentionGuidance_enabled": "True", "PerturbedAttentionGuidance_scale": pag.scale}
    if sag is not None and (sag.start, sag.end) == (0, 1):
        found |= {"sag_enabled": "True", "sag_scale": sag.scale}
        found |= {"sag_blur_sigma": sag.blur_sigma, "sag_threshold": sag.threshold}
    if freeu is not None and (freeu.version, freeu.stages, freeu.start, freeu.end) == (2, "widths", 0, 1):
        found["freeu_enabled"] = "True"
        found |= {f"freeu_{name}": getattr(freeu, name) for name in ("b1", "b2", "s1", "s2")}
    if mimic is not None:
        found |= {
            "dynthres_enabled": "True",
            "dynthres_mimic_scale": mimic.scale,
            "dynthres_threshold_percentile": mimic.percentile,
            "dynthres_mimic_mode": "Constant",
            "dynthres_cfg_mode": "Constant",
            "dynthres_separate_feature_channels": "enable" if mimic.by_channel else "disable",
            "dynthres_scaling_startpoint": mimic.centre.upper(),
            "dynthres_variability_measure": {word: key for key, word in _MEASURES.items()}[mimic.spread],
            "dynthres_interpolate_phi": mimic.phi,
        }
    return found


def _is_valid(group: type[Config], fields: dict[str, Any]) -> bool:
    try:
        group.from_dict(fields, where="text")
    except ConfigError:
        return False
    return True


def _numbers(values: Values, keys: Mapping[str, str]) -> dict[str, Any] | None:
    """Our field -> number, of those keys that are there; None if one is none."""
    try:
        return {ours: float(values[theirs]) for ours, theirs in keys.items() if theirs in values}
    except ValueError:
        return None


def _is(values: Values, expected: Mapping[str, float]) -> bool:
    """Whether keys that would change the meaning are absent or say nothing."""
    found = _numbers(values, {key: key for key in expected})
    return found is not None and all(found.get(key, number) == number for key, number in expected.items())


def _pag(values: Values) -> dict[str, Any] | None:
    name = "PerturbedAttentionGuidance"
    plain = {f"{name}_attenuation": 0.0, f"{name}_start": 0.0, f"{name}_end": 1.0}
    if values.get(f"{name}_enabled") != "True" or f"{name}_scale" not in values or not _is(values, plain):
        return None
    return _numbers(values, {"scale": f"{name}_scale"})


def _sag(values: Values) -> dict[str, Any] | None:
    if values.get("sag_enabled") != "True" or "sag_scale" not in values or "sag_blur_sigma" not in values:
        return None
    return _numbers(values, {"scale": "sag_scale", "blur_sigma": "sag_blur_sigma", "threshold": "sag_threshold"})


def _freeu_of_forge(values: Values) -> dict[str, Any] | None:
    keys = {name: f"freeu_{name}" for name in ("b1", "b2", "s1", "s2")}
    plain = {"freeu_start": 0.0, "freeu_end": 1.0}
    if values.get("freeu_enabled") != "True" or not _is(values, plain) or not values.keys() >= set(keys.values()):
        return None
    numbers = _numbers(values, keys)
    return None if numbers is None else {**numbers, "version": 2, "stages": "widths"}


def _freeu_of_stages(values: Values) -> dict[str, Any] | None:
    """sd-webui-freeu's list of stages, each with two factors; the rest of a stage changes what they do."""
    try:
        stages = json.loads(values.get("FreeU Stages", ""))
    except (ValueError, RecursionError):
        return None
    schedule = values.get("FreeU Schedule", "0.0, 1.0, 0.0").replace(" ", "").split(",")
    plain = isinstance(stages, list) and len(stages) == 2 and all(isinstance(one, dict) for one in stages)
    if not plain or any(one.keys() != {"backbone_factor", "skip_factor"} for one in stages):
        return None
    if schedule != ["0.0", "1.0", "0.0"] or values.get("FreeU Version", "1") not in ("1", "2"):
        return None
    first, second = stages
    return {
        "b1": first["backbone_factor"],
        "b2": second["backbone_factor"],
        "s1": first["skip_factor"],
        "s2": second["skip_factor"],
        "version": int(values.get("FreeU Version", "1")),
        "stages": "widths",
    }


def _mimic_of_forge(values: Values) -> dict[str, Any] | None:
    name = "dynthres_"
    if values.get(f"{name}enabled") != "True" or f"{name}mimic_scale" not in values:
        return None
    keys = {"scale": "mimic_scale", "percentile": "threshold_percentile", "phi": "interpolate_phi"}
    numbers = _numbers(values, {ours: name + theirs for ours, theirs in keys.items()})
    labels = ("mimic_mode", "cfg_mode", "separate_feature_channels", "scaling_startpoint", "variability_measure")
    return _mimic(numbers, *(values.get(name + label) for label in labels))


def _mimic_of_the_extension(values: Values) -> dict[str, Any] | None:
    """Its percentile is one of 100."""
    if values.get("Dynamic thresholding enabled") != "True" or "Mimic scale" not in values:
        return None
    keys = {"scale": "Mimic scale", "percentile": "Threshold percentile", "phi": "Interpolate Phi"}
    numbers = _numbers(values, keys)
    if numbers is not None and "percentile" in numbers:
        numbers["percentile"] /= 100
    labels = ("Mimic mode", "CFG mode", "Separate Feature Channels", "Scaling Startpoint", "Variability Measure")
    return _mimic(numbers, *(values.get(label) for label in labels))


def _mimic(
    numbers: dict[str, Any] | None,
    mimic_mode: str | None,
    cfg_mode: str | None,
    channels: str | None,
    centre: str | None,
    spread: str | None,
) -> dict[str, Any] | None:
    """Words that are absent are the extension's usual ones; scales that change over the steps have none of ours."""
    usual = {mimic_mode, cfg_mode} <= {None, "Constant"}
    by_channel, at = _CHANNELS.get(channels or "True"), _CENTRES.get(centre or "MEAN")
    measure = _MEASURES.get(spread or "AD")
    if numbers is None or not usual or by_channel is None or at is None or measure is None:
        return None
    return {**numbers, "by_channel": by_channel, "centre": at, "spread": measure}


_EXTENSION = (
    *("Dynamic thresholding enabled", "Mimic scale", "Threshold percentile", "Mimic mode", "CFG mode"),
    *("Separate Feature Channels", "Scaling Startpoint", "Variability Measure", "Interpolate Phi", "CFG scale minimum"),
    "Power scheduler value",
)
_READERS: tuple[tuple[str, type[Config], Callable[[Values], dict[str, Any] | None], tuple[str, ...]], ...] = (
    ("pag", Pag, _pag, ("PerturbedAttentionGuidance_",)),
    ("sag", Sag, _sag, ("sag_",)),
    ("freeu", FreeU, _freeu_of_forge, ("freeu_",)),
    ("freeu", FreeU, _freeu_of_stages, ("FreeU ",)),
    ("mimic", Mimic, _mimic_of_forge, ("dynthres_",)),
    ("mimic", Mimic, _mimic_of_the_extension, _EXTENSION),
)
