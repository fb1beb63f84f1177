"""What a form has to know of a model before it is loaded: its own settings, and what it can be asked for.

From headers alone, and without torch. What `pipeline.possible` and its like refuse of a request for a loaded model, or
note as unused, is told here before anybody has to wait for that.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Literal

from gouache.checkpoints.adapters.controlnet_library import usable_controls
from gouache.checkpoints.adapters.ip_adapter_library import list_ip_adapters
from gouache.checkpoints.adapters.library import EMBEDDING, list_adapters
from gouache.checkpoints.detect import Identity
from gouache.checkpoints.identify import identify, read_card
from gouache.checkpoints.model_defaults import generation_defaults, vae_of_family
from gouache.config import Config
from gouache.errors import GouacheError
from gouache.models.configs import (
    DenoiserConfig,
    MMDiTConfig,
    SentenceEncoderConfig,
    T5Config,
    TextEncoderConfig,
    UNetConfig,
    VAEConfig,
)
from gouache.models.family import POCKET, SD3, SDXL, UNKNOWN, family_label, family_named
from gouache.serve.models.catalog import ModelEntry
from gouache.serve.models.facts import place

Input = Literal["", "inpaint", "instruct", "depth", "draft", "enlarge"]


class Abilities(Config):
    """A model, for a form."""

    model: str
    """Its name."""
    family: str = ""
    label: str = ""
    """Of the family, for people."""
    width: int = 0
    """What a request that leaves it open gets; so the next four. 0 and empty: not known without loading it."""
    height: int = 0
    num_inference_steps: int = 0
    guidance_scale: float = 0.0
    sampler: str = ""
    schedule: str = ""
    clip_skip: int = 0
    """0 for an encoder that has no such choice."""
    styles: tuple[str, ...] = ()
    """That it was trained on."""
    input: Input = ""
    """What its network takes beside the noise: a masked picture, a picture to change, a depth map, a draft of its own,
    a small picture to enlarge."""
    alpha: bool = False
    """Whether it paints transparent backgrounds."""
    prior: bool = False
    """Whether it drafts its pictures."""
    upscaler: bool = False
    """Whether it brings one of its own."""
    reads_words: bool = True
    reads_pictures: bool = False
    """Whether an image prompt needs no IP-Adapter."""
    adapters: tuple[str, ...] = ()
    """LoRAs on this server that fit it, by name."""
    embeddings: tuple[str, ...] = ()
    """The same for textual inversions."""
    controls: tuple[str, ...] = ()
    """ControlNets that fit it."""
    ip_adapters: tuple[str, ...] = ()
    """IP-Adapters that fit it."""
    unusable: tuple[str, ...] = ()
    """Fields of a request that it refuses, or doesn't use."""
    error: str = ""
    """Why it can't be used; empty if it can, as far as headers tell."""


def abilities_of(entry: ModelEntry) -> Abilities:
    """What a model can be asked for, with what fits it on this server."""
    path = place(entry)
    if path is None:
        return Abilities(model=entry.name, family=POCKET.name, label=POCKET.label, error="not in this build")
    known = _of_model(path, _modified(path))
    if known.error:
        return known.model_copy(update={"model": entry.name, "error": known.error.replace(str(path), path.name)})
    fits = families_fitting(known.family)
    adapters = [file for file in list_adapters() if file.family in fits]
    return known.model_copy(
        update={
            "model": entry.name,
            "adapters": tuple(file.name for file in adapters if file.kind != EMBEDDING),
            "embeddings": tuple(file.name for file in adapters if file.kind == EMBEDDING),
            "controls": tuple(file.name for file in usable_controls() if file.family in fits),
            "ip_adapters": tuple(file.name for file in list_ip_adapters() if file.family in fits),
        }
    )


def families_fitting(family: str) -> set[str]:
    """Families whose adapters a model of this one can have: its own, and what the tensors don't tell apart."""
    return {family} if family in (POCKET.name, SD3.name) else {family, UNKNOWN.name}


def _modified(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


@lru_cache(maxsize=512)
def _of_model(path: Path, _changed: int) -> Abilities:
    try:
        return _told(path, identify(path))
    except (GouacheError, OSError) as error:
        return Abilities(model="", error=str(error))


def _told(path: Path, identity: Identity) -> Abilities:
    card = read_card(path) if identity.layout == "gouache" else None
    configs = {name: part.config for name, part in identity.parts.items()}
    vae = configs.get("vae") or vae_of_family(identity)
    encoders = [one for one in configs.values() if isinstance(one, TextEncoderConfig | SentenceEncoderConfig)]
    prediction = identity.prediction or family_named(identity.family).prediction or "eps"
    denoiser = DenoiserConfig(parameterization=prediction)
    defaults = generation_defaults(path, identity, card.denoiser if card else denoiser)
    clips = [one for one in encoders if isinstance(one, TextEncoderConfig)]
    found = Abilities(
        model="",
        family=identity.family,
        label=family_label(identity.family),
        width=defaults.width,
        height=defaults.height,
        # On a draft there is less to do, and a model may say how much.
        num_inference_steps=defaults.prior_num_inference_steps or defaults.num_inference_steps,
        guidance_scale=defaults.guidance_scale,
        sampler=defaults.sampler,
        schedule=defaults.schedule,
        clip_skip=clips[0].skip_layers + 1 if clips else 0,
        styles=card.styles if card else (),
        input=_input_of(identity),
        alpha=isinstance(vae, VAEConfig) and vae.image_channels == 4,
        prior="prior" in identity.parts,
        upscaler="upscaler" in identity.parts,
        reads_words=identity.variant != "variation",
        reads_pictures=_reads_pictures(identity),
    )
    return found.model_copy(update={"unusable": tuple(_unusable(identity, found))})


def _input_of(identity: Identity) -> Input:
    """As `pipeline.inputs.start.input_kind` says it of a loaded model."""
    unet = identity.parts["unet"].config
    extra = unet.draft_channels if isinstance(unet, UNetConfig) else 0
    if not isinstance(unet, UNetConfig) or extra == 0:
        return ""
    if "prior" in identity.parts:
        return "draft"
    if unet.noise_levels:
        return "enlarge"
    latent = unet.in_channels
    known: dict[int, Input] = {1 + latent: "inpaint", latent: "instruct", 1: "depth"}
    return known.get(extra, "")


def _reads_pictures(identity: Identity) -> bool:
    unet = identity.parts["unet"].config
    unclip = isinstance(unet, UNetConfig) and unet.picture_width > 0
    return unclip or identity.variant == "variation" or identity.family == SDXL.name


def _unusable(identity: Identity, found: Abilities) -> Iterator[str]:
    """Fields that this model has no use for, whatever else a request says."""
    network = identity.parts["unet"].config
    transformer = isinstance(network, MMDiTConfig)
    kinds = [type(part.config) for part in identity.parts.values()]
    rules: tuple[tuple[bool, tuple[str, ...]], ...] = (
        (not found.prior, ("prior", "best_of")),
        (kinds.count(TextEncoderConfig) < 2, ("prompt_2", "negative_prompt_2")),
        (T5Config not in kinds, ("prompt_3", "negative_prompt_3")),
        (not transformer, ("max_sequence_length",)),
        (found.clip_skip == 0, ("clip_skip",)),
        (not family_named(found.family).size_numbers, ("size_condition",)),
        (found.input != "instruct", ("image_guidance_scale",)),
        (found.input != "depth", ("depth_image",)),
        (found.input != "enlarge", ("noise_level",)),
        (found.input == "instruct", ("control", "image_prompts", "pag", "sag", "slg", "perp_neg", "mimic", "apg")),
        (found.input == "instruct", ("inversion", "cfg_cache")),
        (found.input == "enlarge", ("mask", "outpaint", "inversion", "interpolation", "hires")),
        (transformer, ("regions", "pag", "sag", "freeu", "seamless", "image_prompts", "deep_cache", "token_merging")),
        (not transformer and not _has_attention(network), ("regions", "pag", "slg", "token_merging")),
        (not found.reads_words, ("prompt", "negative_prompt", "style", "regions")),
        (isinstance(network, UNetConfig) and network.guidance_width > 0, _OF_TOLD_SCALES),
    )
    yield from dict.fromkeys(name for applies, names in rules if applies for name in names)


_OF_TOLD_SCALES = ("negative_prompt", "guidance_rescale", "guidance_interval", "apg", "cfg_cache")
"""What a network that is told the guidance scale and not guided has no use for."""


def _has_attention(network: object) -> bool:
    if not isinstance(network, UNetConfig):
        return False
    depths = [depth for row in (*network.down_depths(), *network.up_depths()) for depth in row]
    return any(depths) or bool(network.middle_layers and network.middle_transformer_layers)
