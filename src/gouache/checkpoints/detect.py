"""Says what a weight file is, by the names and shapes of its tensors; the file's name and suffix count for nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from gouache.checkpoints.adapters.kinds import find_adapter, name_foreign
from gouache.checkpoints.foreign import RUN_ELSEWHERE, name_relative, name_stranger, with_model
from gouache.checkpoints.formats.gguf import ARCHITECTURE
from gouache.checkpoints.formats.header import Header, TensorInfo, few
from gouache.checkpoints.packed import check_packing, name_packing
from gouache.checkpoints.recorded import EDM_SAMPLING, few_steps_of_file, prediction_of
from gouache.checkpoints.shapes import (
    MMDIT,
    T5_BIAS,
    TINY_VAE,
    TOKEN_EMBEDDING,
    Naming,
    Shapes,
    network_config,
    t5_config,
    text_config,
    vae_config,
)
from gouache.config import Config
from gouache.errors import UnknownFamily
from gouache.models.configs import (
    MMDiTConfig,
    NetworkConfig,
    T5Config,
    TextEncoderConfig,
    UNetConfig,
    VAEConfig,
)
from gouache.models.family import SD1, SD2, SD3, SDXL, SDXL_REFINER, UNKNOWN, family_named
from gouache.models.few_steps import FewSteps

if TYPE_CHECKING:  # headers are read without torch
    from gouache.diffusion.parameterization import Parameterization

FileLayout = Literal["single-file", "diffusers", "gouache", "network"]

VARIANTS = {0: "base", 5: "inpainting", 4: "instruct", 1: "depth", 3: "upscaler"}
"""What a U-Net is for, by the channels that it takes beside the noisy latents."""

UPSCALER_SCALE = 0.08333
"""Latent scale of the x4 upscaler's autoencoder."""
FAMILY_OF_TEXT_WIDTH = {768: SD1, 1024: SD2, 1280: SDXL}
"""By the width of a text encoder: ViT-L, ViT-H, bigG."""
VIT_H_LAYERS = 24
CONFIG_KEY = "gouache.config."
"""Files that gouache wrote carry each part's config in their metadata under this and the part's name."""

# (part, prefix in the file, naming, a tensor that is there if the part is)
MARKS: tuple[tuple[str, str, Naming, str], ...] = (
    ("unet", "model.diffusion_model.", "ldm", "input_blocks.0.0.weight"),
    ("unet", "", "ldm", "input_blocks.0.0.weight"),
    ("unet", "", "ours", "down_blocks.0.resnets.0.conv1.weight"),
    ("unet", "model.diffusion_model.", "ldm", MMDIT["ldm"]),
    ("unet", "", "ldm", MMDIT["ldm"]),
    ("unet", "", "ours", MMDIT["ours"]),
    ("vae", "first_stage_model.", "ldm", "decoder.conv_in.weight"),
    ("vae", "vae.", "ldm", "decoder.up.0.block.0.norm1.weight"),
    ("vae", "", "ldm", "decoder.up.0.block.0.norm1.weight"),
    ("vae", "", "old_diffusers", "decoder.mid_block.attentions.0.query.weight"),
    ("vae", "", "ours", "decoder.up_blocks.0.resnets.0.norm1.weight"),
    ("vae", "", "ours", TINY_VAE),
    ("text_encoder", "cond_stage_model.transformer.", "clip_model", TOKEN_EMBEDDING["clip_model"]),
    ("text_encoder", "cond_stage_model.transformer.", "ours", TOKEN_EMBEDDING["ours"]),
    ("text_encoder", "cond_stage_model.model.", "open_clip", TOKEN_EMBEDDING["open_clip"]),
    ("text_encoder", "conditioner.embedders.0.transformer.", "clip_model", TOKEN_EMBEDDING["clip_model"]),
    ("text_encoder", "conditioner.embedders.0.model.", "open_clip", TOKEN_EMBEDDING["open_clip"]),
    ("text_encoder_2", "conditioner.embedders.1.model.", "open_clip", TOKEN_EMBEDDING["open_clip"]),
    ("text_encoder", "text_encoders.clip_l.transformer.", "clip_model", TOKEN_EMBEDDING["clip_model"]),
    ("text_encoder_2", "text_encoders.clip_g.transformer.", "clip_model", TOKEN_EMBEDDING["clip_model"]),
    ("text_encoder_3", "text_encoders.t5xxl.transformer.", "ours", T5_BIAS.format(0)),
    ("text_encoder_3", "", "ours", T5_BIAS.format(0)),
    ("text_encoder", "", "clip_model", TOKEN_EMBEDDING["clip_model"]),
    ("text_encoder", "", "ours", TOKEN_EMBEDDING["ours"]),
    ("text_encoder", "", "open_clip", TOKEN_EMBEDDING["open_clip"]),
)
UNCLIP = "noise_augmentor.data_mean"
"""A single file with this has a U-Net that is told a picture's embedding."""
SCHEDULE_TABLES = re.compile(
    r"^(betas|alphas_cumprod(_prev)?|sqrt_.*alphas_cumprod|log_one_minus_alphas_cumprod|posterior_.*|lvlb_weights"
    r"|logvar|denoiser\.(sigmas|log_sigmas)|(model\.)?model_sampling\.\w+)$"
)
LEFT_OUT: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"(^|\.)model_ema\."), "the EMA copy of the weights"),
    (SCHEDULE_TABLES, "tables of the noise schedule"),
    (re.compile(r"\.(position_ids|attn_mask)$|^position_ids$"), "constant buffers"),
    (re.compile(r"(^|\.)logit_scale$"), "CLIP's logit scale, used in its training only"),
    (re.compile(r"^(first_stage_model\.)?loss\."), "the autoencoder's training losses"),
    (re.compile(r"^depth_model\."), "the MiDaS depth network"),
    (re.compile(r"^low_scale_model\."), "tables of the noise on small pictures"),
    (
        re.compile(r"^(embedder|noise_augmentor)\."),
        "the image embedder of unCLIP, which is read when a picture is given",
    ),
    (re.compile(r"(^|\.)(visual|vision_model)\.|(^|\.)visual_projection\.weight$"), "CLIP's vision tower"),
    (re.compile(r"^safety_checker\."), "the safety checker"),
    (re.compile(r"(^|\.)(scaled_fp8|scale_input|input_scale|comfy_quant)$"), "what only multiplying in fp8 needs"),
    (re.compile(r"(^|\.)encoder\.embed_tokens\.weight$"), "a copy of T5's table of tokens"),
    (re.compile(r"(^|\.)decoder\.(block|embed_tokens|final_layer_norm)\.|^lm_head\."), "T5's decoder"),
    (re.compile(r"^(v_pred|ztsnr|edm_vpred\.sigma_(min|max)|edm_mean|edm_std)$"), "marks of the prediction type"),
)
LAST_TEXT_LAYER = "the last text layer and projection, which SD 2.x doesn't use"


@dataclass(frozen=True, slots=True)
class Part:
    """One network of a model, as it lies in its file.

    Attributes:
        name: ``"unet"``, ``"vae"``, ``"text_encoder"``, ``"text_encoder_2"``, ``"text_encoder_3"``, ``"prior"``,
            ``"quantizer"`` or ``"upscaler"``.
        header: names and shapes of the file (or shards) it lies in.
        prefix: what stands before its tensors' names.
        naming: whose names they are.
        config: rebuilt from the shapes, or read beside the weights.
    """

    name: str
    header: Header
    prefix: str
    naming: Naming
    config: Config

    def tensors(self) -> dict[str, TensorInfo]:
        """Its tensors, without the prefix."""
        return part_tensors(self.header.tensors, self.prefix)

    @property
    def parameters(self) -> int:
        """How many numbers it has, buffers included."""
        return sum(info.elements for info in self.tensors().values())

    @property
    def dtypes(self) -> tuple[str, ...]:
        """The types in which its tensors are stored, most frequent first."""
        stored = self.header.stored
        names = [stored.get(self.prefix + name, info.dtype) for name, info in self.tensors().items()]
        return tuple(sorted(set(names), key=names.count, reverse=True))


@dataclass(frozen=True, slots=True)
class Identity:
    """What a file or folder is.

    Attributes:
        kind: ``"model"`` (can paint), one network alone (``"unet"``, ``"vae"``, ``"text-encoder"``), or an adapter
            (``"lora"``, ``"textual-inversion"``, ``"controlnet"``, ``"t2i-adapter"``).
        family: name of one of `models.family.FAMILIES`; of an adapter, also one that gouache doesn't run.
        layout: how it lies on the disk.
        variant: what its U-Net is for; ``"base"`` is text to image.
        label: a few words more, for people.
        parts: its networks.
        prediction: what the U-Net's output means, if that is known from the file.
        prediction_source: how it is known.
        left_out: tensors that are not needed, counted by reason.
        unexplained: tensors that belong to no part; loading leaves them out, with a note.
        loading_notes: what else is done with the files beyond the plain way.
        sampling: what a request that leaves sampler and steps open gets, where the file says it.
        notes: what the file says of sampling and gouache does otherwise.
        few_steps: the distillation that it is known or named as.
    """

    kind: str
    family: str
    layout: FileLayout
    variant: str = "base"
    label: str = ""
    parts: Mapping[str, Part] = field(default_factory=dict)
    prediction: Parameterization | None = None
    prediction_source: str = ""
    left_out: Mapping[str, int] = field(default_factory=dict)
    unexplained: tuple[str, ...] = ()
    loading_notes: tuple[str, ...] = ()
    sampling: str = ""
    notes: tuple[str, ...] = ()
    few_steps: FewSteps | None = None

    def notes_on_loading(self) -> tuple[str, ...]:
        """What a user should hear of how the files were taken: of tensors that belong to no part, of parts left out."""
        notes = self.loading_notes
        if not self.unexplained:
            return notes
        count = f"{len(self.unexplained)} tensors that belong" if len(self.unexplained) > 1 else "1 tensor that belongs"
        return (
            *notes,
            f"left out: {count} to no part of the model: {few(self.unexplained, 3)}",
        )


def part_tensors(tensors: Mapping[str, TensorInfo], prefix: str) -> dict[str, TensorInfo]:
    """The tensors under a prefix, without it."""
    return {name[len(prefix) :]: info for name, info in tensors.items() if name.startswith(prefix)}


def identify(header: Header) -> Identity:
    """Say what the tensors of one file are.

    Raises:
        UnknownFamily: they belong to nothing that gouache knows (models of other kinds are named).
    """
    marked = _marked(header)
    adapter = find_adapter(header.tensors, header.metadata)
    # A whole checkpoint with a stray LoRA tensor in it is a checkpoint.
    if adapter is not None and not (adapter.kind == "lora" and is_checkpoint(marked)):
        return Identity(adapter.kind, adapter.family, "network", label=adapter.label)
    check_known(header, marked)
    return describe(marked)


def check_known(header: Header, marked: Mapping[str, Place]) -> None:
    """Refuse tensors of other families, and of networks that share Stable Diffusion's names and are something else.

    Raises:
        UnknownFamily: named for what they are, where that is known.
        IncompatibleCheckpoint: the weights are packed in a way that gouache doesn't unpack.
    """
    foreign = name_relative(header.tensors)
    # Beside CLIP's text encoder a vision tower is left out; its layers have the names of language models. Whole files
    # of other families hold CLIP too, under a prefix.
    texts = tuple(place.prefix for name, place in marked.items() if name.startswith("text_encoder"))
    if foreign is None and "unet" not in marked and "" not in texts:
        others = [name for name in header.tensors if not name.startswith(texts)]
        foreign = name_stranger(others) or (None if marked else name_foreign(header.tensors))
    if foreign is None:
        check_packing(header)
        if marked:
            return
    architecture = header.metadata.get(ARCHITECTURE)
    if foreign is None and architecture:
        foreign = f"the architecture {architecture[:40]!r}"
    raise UnknownFamily(
        str(header.path),
        given=_named(foreign, header) if foreign else f"tensors such as {few(list(header.tensors), 3)[:200]}",
        expected="weights of Stable Diffusion 1.x, 2.x, XL or 3, or of a part or an adapter of one",
        cure=RUN_ELSEWHERE if foreign else "",
    )


def _named(foreign: str, header: Header) -> str:
    """A foreign model, and how its numbers are stored where that isn't plain."""
    article = "" if foreign.startswith(("a ", "an ", "the ")) else "tensors with the names of "
    packing = name_packing(header)
    kinds = few(sorted(set(header.stored.values())), 3)
    storing = f", in {packing}" if packing else f", stored as {kinds}" if kinds else ""
    return f"{article}{with_model(foreign, header.tensors)}{storing}"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a part lies: its file, what stands before its tensors' names, and whose names they are."""

    header: Header
    prefix: str
    naming: Naming

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Its tensors' shapes, without the prefix."""
        return {name: info.shape for name, info in part_tensors(self.header.tensors, self.prefix).items()}


def _marked(header: Header) -> dict[str, Place]:
    """Part name -> its place, by the first mark that fits."""
    found: dict[str, Place] = {}
    for name, prefix, naming, mark in MARKS:
        if name not in found and prefix + mark in header.tensors:
            found[name] = Place(header, prefix, naming)
    return found


def parts_of(header: Header) -> dict[str, Place]:
    """The parts of models that a file holds, by name; none for an adapter or anything else."""
    marked = _marked(header)
    adapter = find_adapter(header.tensors, header.metadata)
    if adapter is not None and not (adapter.kind == "lora" and is_checkpoint(marked)):
        return {}
    if marked:
        check_known(header, marked)
    return marked


def is_checkpoint(marked: Mapping[str, Place]) -> bool:
    """Whether a file holds a whole U-Net under its prefix, and another part beside it."""
    return "unet" in marked and marked["unet"].prefix != "" and len(marked) > 1


def recorded_config(header: Header, name: str) -> str | None:
    """The config of a part as JSON, where gouache wrote it beside the weights: of a whole file, or of a part alone."""
    own = header.metadata.get("config") if header.metadata.get("component") == name else None
    return header.metadata.get(CONFIG_KEY + name, own)


def describe(marked: Mapping[str, Place]) -> Identity:
    """What parts make up together; each may lie in a file of its own.

    Args:
        marked: part name -> its place.

    Raises:
        UnknownFamily, ConfigError: a part is no network of a kind that gouache knows.
    """
    shapes = {name: place.shapes() for name, place in marked.items()}
    lead = marked["unet"] if "unet" in marked else next(iter(marked.values()))
    unet = network_config(shapes["unet"], lead.naming, str(lead.header.path)) if "unet" in marked else None
    if isinstance(unet, UNetConfig) and unet.pooled_width and UNCLIP in lead.header.tensors:
        unet = unet.model_copy(update={"picture_width": unet.pooled_width // 2})
    family = family_of(unet, marked) if unet else family_without_unet(shapes, marked)
    configs: dict[str, Config] = {}
    for name, place in marked.items():
        naming, where = place.naming, str(place.header.path)
        recorded = recorded_config(place.header, name)
        if recorded is not None:
            kind = config_kind(name, recorded)
            configs[name] = kind.from_json(recorded, where=f"{where} metadata of {name}")
        elif name == "unet" and unet:
            configs[name] = unet
        elif name == "vae":
            found = of_family(vae_config(shapes[name], naming, where), family)
            enlarges = isinstance(unet, UNetConfig) and unet.noise_levels > 0
            configs[name] = found.model_copy(update={"scale": UPSCALER_SCALE}) if enlarges else found
        elif name == "text_encoder_3":
            configs[name] = t5_config(shapes[name], where)
        else:
            configs[name] = used_text_config(
                text_config(shapes[name], naming, where), family, naming, first=name == "text_encoder"
            )
    parts = {
        name: Part(name, marked[name].header, marked[name].prefix, marked[name].naming, config)
        for name, config in configs.items()
    }
    left_out, unexplained = rest_of(parts, family)
    prediction, source = prediction_of(lead.header, family, unet)
    sampling = next((taken for mark, taken in EDM_SAMPLING.items() if mark in lead.header.tensors), "")
    few_steps = None if unet is None or sampling else few_steps_of_file(lead.header, family, unet)
    return Identity(
        kind=kind_of(parts),
        family=family,
        layout="single-file" if len(parts) > 1 else "network",
        variant=variant_of(unet),
        label=label_of(unet),
        parts=parts,
        prediction=prediction,
        prediction_source=source,
        left_out=left_out,
        unexplained=unexplained,
        sampling=f"{few_steps.told}: {few_steps.settings}" if few_steps and few_steps.sets_defaults else sampling,
        few_steps=few_steps,
    )


def kind_of(parts: Mapping[str, Part]) -> str:
    """A model if it has U-Net and text encoder (an autoencoder may be named beside it), else the network that it is,
    or the parts that it has."""
    if "unet" in parts and any(name.startswith("text_encoder") for name in parts):
        return "model"
    names = ["text-encoder" if name.startswith("text_encoder") else name for name in parts]
    return names[0] if len(set(names)) == 1 else "parts"


def config_kind(name: str, text: str) -> type[Config]:
    """The class of a part's recorded config."""
    if name == "unet":
        return MMDiTConfig if '"dual_layers"' in text else UNetConfig
    if name == "text_encoder_3":
        return T5Config
    return VAEConfig if name == "vae" else TextEncoderConfig


def of_family(config: VAEConfig, family: str) -> VAEConfig:
    """An autoencoder's config with the scale and shift of its family's latents; a tiny one has them built in."""
    if config.tiny_blocks is not None:
        return config
    traits = family_named(family)
    return config.model_copy(update={"scale": traits.latent_scale, "shift": traits.latent_shift})


def label_of(unet: NetworkConfig | None) -> str:
    """Which of Stable Diffusion 3's networks it is; large and large turbo are alike."""
    if not isinstance(unet, MMDiTConfig):
        return ""
    if unet.dual_layers:
        return "3.5 medium"
    return "3.5 large" if unet.qk_norm else "3 medium"


def family_of(unet: NetworkConfig, parts: Mapping[str, object]) -> str:
    """A U-Net's family: SDXL adds a pooled vector, SD 2.x has linear projections, SD 1.x convolutions.

    The refiner is the one SDXL network without ViT-L: its context is bigG's 1280 channels alone.
    """
    if isinstance(unet, MMDiTConfig):
        return SD3.name
    if unet.pooled_width and not unet.picture_width:
        lone_second = "text_encoder_2" not in parts and "text_encoder" in parts
        lone_folder = "text_encoder" not in parts and "text_encoder_2" in parts
        return (SDXL_REFINER if unet.context_width == 1280 or lone_second or lone_folder else SDXL).name
    return (SD2 if unet.linear_projection or unet.context_width == 1024 else SD1).name


def family_without_unet(shapes: Mapping[str, Shapes], marked: Mapping[str, Place]) -> str:
    """By the text encoder's width; an autoencoder alone doesn't show its family."""
    if "text_encoder_2" in marked:
        return SDXL.name
    if "text_encoder" not in marked:
        return UNKNOWN.name
    naming = marked["text_encoder"].naming
    tokens = TOKEN_EMBEDDING[naming]
    return FAMILY_OF_TEXT_WIDTH.get(shapes["text_encoder"][tokens][-1], UNKNOWN).name


def variant_of(unet: NetworkConfig | None) -> str:
    """What the U-Net is for, by its input channels; unCLIP takes a picture's vector."""
    if unet is None:
        return "base"
    if isinstance(unet, UNetConfig) and unet.picture_width:
        return "unclip"
    return VARIANTS.get(unet.draft_channels, f"{unet.draft_channels} more channels")


def used_text_config(config: TextEncoderConfig, family: str, naming: Naming, *, first: bool) -> TextEncoderConfig:
    """Which state of the encoder its family uses as the context.

    SD 1.x: the last. SD 2.x: the last but one behind the final norm; folders have only the layers up to there, single
    files have one more, which is left out. SDXL: the last but one, without the norm.
    """
    traits = family_named(family)
    if traits.context == "penultimate" and naming == "open_clip":
        # ViT-H has 24 layers; a file that keeps the projection keeps the layer before it.
        whole = config.layers == VIT_H_LAYERS or config.projection_width > 0
        return config.model_copy(update={"layers": config.layers - whole, "projection_width": 0})
    if traits.context == "penultimate_raw":
        # Of two encoders only the second gives a pooled vector; in Stable Diffusion 3 both do.
        alone = {"projection_width": 0} if first and len(traits.text_encoders) == 2 and not traits.text_rows else {}
        if traits.text_rows and not config.projection_width:
            alone = {"projection_width": config.width}
        return config.model_copy(update={"skip_layers": 1, "final_norm": False, **alone})
    return config.model_copy(update={"projection_width": 0})


def rest_of(parts: Mapping[str, Part], family: str) -> tuple[dict[str, int], tuple[str, ...]]:
    """Tensors outside every part: those known to be of no use, counted by reason, and the others."""
    counts: dict[str, int] = {}
    unexplained = []
    for header in {part.header.path: part.header for part in parts.values()}.values():
        here = {name: part for name, part in parts.items() if part.header.path == header.path}
        prefixes = tuple(part.prefix for part in here.values())
        for name in header.tensors:
            reason = left_out_reason(name, here, family)
            if reason:
                counts[reason] = counts.get(reason, 0) + 1
            elif not name.startswith(prefixes):
                unexplained.append(name)
    return counts, tuple(unexplained)


def left_out_reason(name: str, parts: Mapping[str, Part], family: str) -> str:
    """Why a tensor of a file is knowingly not loaded; empty if it has to be."""
    for pattern, reason in LEFT_OUT:
        if pattern.search(name):
            return reason
    text = parts.get("text_encoder")
    if text and family == SD2.name and text.naming == "open_clip" and isinstance(text.config, TextEncoderConfig):
        last = f"{text.prefix}transformer.resblocks.{text.config.layers}."
        if name.startswith(last) or name == f"{text.prefix}text_projection":
            return LAST_TEXT_LAYER
    if text and family == SDXL.name and name == f"{text.prefix}text_projection.weight":
        return LAST_TEXT_LAYER.replace("SD 2.x", "SDXL")
    return ""
