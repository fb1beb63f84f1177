"""A1111's settings, each user's own: the few that mean something here, and fixed values for those clients read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from gouache.checkpoints.vae_library import find_vae
from gouache.errors import InvalidInput, ModelNotFound
from gouache.pipeline.fields.values import MAX_SEED_DELTA, MAX_SIDE
from gouache.pipeline.output.a1111_text import EMPHASIS, OWN_NOISE
from gouache.pipeline.output.metadata import ImageKind
from gouache.serve.studio import Studio

KINDS: dict[str, ImageKind] = {"png": "png", "jpg": "jpeg", "jpeg": "jpeg", "webp": "webp"}
OWN_VAE = "Automatic"
FIXED: dict[str, object] = {
    "samples_save": True,
    "return_grid": False,
    "enable_pnginfo": True,
    "live_previews_enable": True,
}


KEPT: dict[str, bool] = {
    "send_seed": True,
    "send_size": True,
    "add_model_name_to_info": True,
    "add_model_hash_to_info": True,
    "do_not_show_images": False,
    "show_progressbar": True,
}
"""Settings of A1111's page, with its defaults: kept for the clients that read them, and without effect."""
WITHOUT_EFFECT = {*KEPT, "sd_checkpoint_hash"}
"""Settings that come back when what was listed is sent back; nothing is to be said of them."""
PLACEHOLDERS = {"sd_model_checkpoint": "", "sd_vae": "string"}
"""What clients send that leave a setting open."""
NOISE_LEVELS = {"GPU": "a1111", "NV": "a1111", "CPU": "cpu"}
"""A1111's sources of noise -> our levels."""
LOW_SCORE, HIGH_SCORE, HIGHEST_SCORE = 2.5, 6.0, 10
"""Scores that A1111 tells SDXL's refiner for the negative prompt and for the prompt; the scale ends at the last."""


def known_settings(values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The settings that mean something here, and the names of those that don't; null means nothing."""
    known: dict[str, Any] = {}
    ignored: list[str] = []
    for key, value in values.items():
        if value is None or (key in PLACEHOLDERS and value == PLACEHOLDERS[key]):
            continue
        if key in Options.__dataclass_fields__:
            known[key] = value
        elif key not in WITHOUT_EFFECT and (key not in FIXED or value != FIXED[key]):
            ignored.append(key)
    return known, ignored


@dataclass(frozen=True, slots=True)
class Options:
    """One user's settings. A1111's procedure belongs to its sources of noise; gouache's own is the default."""

    sd_model_checkpoint: str
    samples_format: str = "png"
    jpeg_quality: int = 80
    CLIP_stop_at_last_layers: int = 1
    randn_source: str = OWN_NOISE
    eta_noise_seed_delta: int = 0
    emphasis: str = "Original"
    sd_vae: str = OWN_VAE
    sdxl_crop_top: int = 0
    sdxl_crop_left: int = 0
    sdxl_refiner_low_aesthetic_score: float = LOW_SCORE
    sdxl_refiner_high_aesthetic_score: float = HIGH_SCORE

    @property
    def model(self) -> str:
        """Name of the model."""
        return self.sd_model_checkpoint

    @property
    def kind(self) -> ImageKind:
        """Format in which pictures are sent."""
        return KINDS[self.samples_format]

    @property
    def vae(self) -> str | None:
        """Name of the autoencoder; None = the model's own."""
        return None if self.sd_vae == OWN_VAE else self.sd_vae

    @property
    def clip_skip(self) -> int:
        """Text encoder layer from the last."""
        return self.CLIP_stop_at_last_layers

    def noise(self) -> dict[str, Any]:
        """The noise of a request, where these settings ask for A1111's; a seed delta alone means its usual source."""
        source = "GPU" if self.randn_source == OWN_NOISE and self.eta_noise_seed_delta else self.randn_source
        if source == OWN_NOISE:
            return {}
        return {
            "determinism": NOISE_LEVELS[source],
            "procedure": "a1111",
            "eta_noise_seed_delta": self.eta_noise_seed_delta,
        }

    def sdxl_sizes(self, *, refined: bool) -> dict[str, int | float]:
        """What SDXL is told beside the prompt, where these settings ask for other than the usual; the scores are its
        refiner's."""
        found: dict[str, int | float] = {}
        if self.sdxl_crop_top or self.sdxl_crop_left:
            found = {"crop_top": self.sdxl_crop_top, "crop_left": self.sdxl_crop_left}
        low, high = self.sdxl_refiner_low_aesthetic_score, self.sdxl_refiner_high_aesthetic_score
        if refined and (low, high) != (LOW_SCORE, HIGH_SCORE):
            found |= {"aesthetic_score": high, "negative_aesthetic_score": low}
        return found

    def overridden(self, values: Mapping[str, Any], studio: Studio) -> Options:
        """A copy with other values.

        Raises:
            InvalidInput: a key that means nothing here, or a value that can't be.
        """
        changes = {key: _checked(key, value, studio) for key, value in values.items() if key not in FIXED}
        for key in values:
            if key in FIXED and values[key] != FIXED[key]:
                raise InvalidInput(
                    key, given=repr(values[key])[:80], expected=f"{FIXED[key]!r}, which can't be changed"
                )
        return replace(self, **changes)

    def listing(self, studio: Studio) -> dict[str, object]:
        """As GET /options gives it."""
        entry = studio.catalog.find(self.model)
        return {
            "sd_model_checkpoint": entry.title,
            "sd_checkpoint_hash": entry.sha256 or "",
            "samples_format": self.samples_format,
            "jpeg_quality": self.jpeg_quality,
            "CLIP_stop_at_last_layers": self.CLIP_stop_at_last_layers,
            "randn_source": self.randn_source,
            "eta_noise_seed_delta": self.eta_noise_seed_delta,
            "emphasis": self.emphasis,
            "sd_vae": self.sd_vae,
            "sdxl_crop_top": self.sdxl_crop_top,
            "sdxl_crop_left": self.sdxl_crop_left,
            "sdxl_refiner_low_aesthetic_score": self.sdxl_refiner_low_aesthetic_score,
            "sdxl_refiner_high_aesthetic_score": self.sdxl_refiner_high_aesthetic_score,
            **FIXED,
        }


def options_of(studio: Studio, owner: str) -> Options:
    """A user's settings; a model that is gone gives way to the default."""
    stored = {key: json.loads(value) for key, value in studio.options(owner).items()}
    options = Options(sd_model_checkpoint=studio.catalog.default)
    known = {key: value for key, value in stored.items() if key in Options.__dataclass_fields__}
    try:
        return options.overridden(known, studio)
    except InvalidInput:
        known.pop("sd_model_checkpoint", None)
        return options.overridden(known, studio)


def kept_of(studio: Studio, owner: str) -> dict[str, bool]:
    """What the user's clients keep here."""
    stored = studio.options(owner)
    return {key: bool(json.loads(stored[key])) if key in stored else value for key, value in KEPT.items()}


def set_options(studio: Studio, owner: str, values: Mapping[str, Any]) -> None:
    """Check and keep settings; those that mean nothing here are passed over, as A1111 does."""
    kept = {key: value for key, value in values.items() if key in KEPT and isinstance(value, bool)}
    studio.set_options(owner, {key: json.dumps(value) for key, value in kept.items()})
    values, _ = known_settings(values)
    options_of(studio, owner).overridden(values, studio)
    studio.set_options(owner, {key: json.dumps(value) for key, value in values.items() if key not in FIXED})


def _checked(key: str, value: Any, studio: Studio) -> Any:
    if key == "sd_model_checkpoint":
        try:
            return studio.catalog.find(str(value)).name
        except ModelNotFound as error:
            raise InvalidInput(key, given=error.given, expected=error.expected, cure=error.cure) from error
    if key == "sd_vae" and isinstance(value, str):
        if value.lower() in (OWN_VAE.lower(), "none", ""):
            return OWN_VAE
        try:
            find_vae(value, paths=False)
        except ModelNotFound as error:
            raise InvalidInput(key, given=repr(value)[:80], expected=error.expected, cure=error.cure) from error
        return value
    if key == "samples_format" and value in KINDS:
        return value
    if key == "randn_source" and value in (OWN_NOISE, *NOISE_LEVELS):
        return value
    if key == "emphasis" and value in EMPHASIS:
        return value
    if key.endswith("_aesthetic_score") and isinstance(value, int | float) and not isinstance(value, bool):
        if 0 <= value <= HIGHEST_SCORE:
            return float(value)
        raise InvalidInput(key, given=repr(value)[:80], expected=f"a number from 0 to {HIGHEST_SCORE}")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if key == "CLIP_stop_at_last_layers" and value == 0 and not isinstance(value, bool):
        return 1
    limits = {
        "CLIP_stop_at_last_layers": (1, 12),
        "jpeg_quality": (1, 100),
        "eta_noise_seed_delta": (0, MAX_SEED_DELTA),
        "sdxl_crop_top": (0, MAX_SIDE),
        "sdxl_crop_left": (0, MAX_SIDE),
    }
    low, high = limits.get(key, (0, -1))
    if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high:
        return value
    if key in Options.__dataclass_fields__:
        raise InvalidInput(key, given=repr(value)[:80], expected="a value that this option can have")
    raise InvalidInput(f"override_settings.{key}"[:200], given=repr(value)[:80], expected="an option of this server")
