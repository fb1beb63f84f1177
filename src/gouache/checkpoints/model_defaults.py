"""What a request that leaves steps, guidance, sampler and size open gets from a model, as its files and family say."""

from __future__ import annotations

from pathlib import Path

from gouache.checkpoints.detect import Identity, label_of, of_family
from gouache.checkpoints.diffusers import folder as folders
from gouache.checkpoints.diffusers.scheduler import Scheduler
from gouache.checkpoints.formats.header import Header
from gouache.checkpoints.identify import read_card
from gouache.checkpoints.recorded import recorded_defaults
from gouache.models.configs import DenoiserConfig, GenerationDefaults, NetworkConfig, UNetConfig, VAEConfig
from gouache.models.family import family_named
from gouache.models.few_steps import TOLD_SCALE
from gouache.models.scheduler_config import SchedulerConfig, sampler_of


def folder_scheduler(path: Path, identity: Identity) -> Scheduler | None:
    """What a folder's scheduler makes of the model; None for other layouts, and where there is none."""
    return folders.scheduler_of_folder(path, identity.family) if identity.layout == "diffusers" else None


def generation_defaults(path: Path, identity: Identity, denoiser: DenoiserConfig) -> GenerationDefaults:
    """What a request that leaves it open gets: the card's, else the family's with what the folder's scheduler, the
    U-Net or the file's metadata say."""
    own = read_card(path) if identity.layout == "gouache" else None
    if own is not None:
        return own.defaults
    carried = recorded_defaults(identity.parts["unet"].header) if identity.layout == "single-file" else None
    if carried is not None:
        return carried
    family = family_named(identity.family)
    size = family.size_for(denoiser.parameterization)
    file = folders.network_folder(path) / "config.json"
    sample_size = folders.read_json(file).get("sample_size") if file.is_file() else None
    vae = identity.parts["vae"].config if "vae" in identity.parts else vae_of_family(identity)
    sides = [sample_size, sample_size] if isinstance(sample_size, int) else sample_size
    width = height = size
    if isinstance(sides, list) and len(sides) == 2 and all(isinstance(side, int) for side in sides):
        assert isinstance(vae, VAEConfig), "an autoencoder's config"
        height, width = (side * vae.downscale for side in sides)
    defaults = GenerationDefaults(width=width, height=height, guidance_scale=family.guidance_scale)
    if family.steps is not None:
        steps, scale = _recommended(path, identity) or (family.steps, family.guidance_scale)
        defaults = defaults.model_copy(update={"num_inference_steps": steps, "guidance_scale": scale})
    unet = identity.parts["unet"].config if "unet" in identity.parts else None
    told = isinstance(unet, UNetConfig) and unet.guidance_width > 0
    scheduler = folder_scheduler(path, identity)
    if identity.layout == "single-file":
        recorded = _recorded_scheduler(identity.parts["unet"].header)
        if family.shift is not None:
            recorded = SchedulerConfig(class_name=family.scheduler, shift=family.shift)
        if recorded is not None:
            scheduler = Scheduler(recorded, denoiser, sampler_of(recorded).name, "model")
    if scheduler is None or scheduler.config is None:
        few_steps = identity.few_steps
        if few_steps is None or not few_steps.sets_defaults:
            return defaults
        settings = {"sampler": few_steps.sampler, "schedule": few_steps.schedule}
        numbers = {"num_inference_steps": few_steps.steps, "guidance_scale": few_steps.guidance_scale}
        return defaults.model_copy(update=settings | numbers)
    few = {"num_inference_steps": scheduler.steps, "guidance_scale": TOLD_SCALE if told else scheduler.guidance_scale}
    if identity.few_steps is not None and identity.few_steps.source == "metadata":
        few = {"num_inference_steps": identity.few_steps.steps, "guidance_scale": identity.few_steps.guidance_scale}
    taken = {"sampler": scheduler.sampler, "schedule": scheduler.schedule, "scheduler": scheduler.config}
    return defaults.model_copy(update={**taken, **{key: value for key, value in few.items() if value is not None}})


def _recorded_scheduler(header: Header) -> SchedulerConfig | None:
    if not any(name.startswith("edm_") for name in header.tensors):
        return None
    from gouache.checkpoints.noise_table import recorded_scheduler  # Reads tensors, and so imports torch.

    return recorded_scheduler(header)


RECOMMENDED = {"3.5 medium": (40, 4.5), "3.5 large": (28, 3.5), "turbo": (4, 1.0)}
"""Steps and guidance of Stable Diffusion 3's later networks, as the cards of the published models have them."""


def _recommended(path: Path, identity: Identity) -> tuple[int, float] | None:
    """What the card of a network of this kind recommends; that one was distilled to few steps only its name tells."""
    folder = folders.network_folder(path) / "config.json"
    told = folders.read_json(folder).get("_name_or_path") if folder.is_file() else None
    unet = identity.parts["unet"]
    names = (path.name, told, unet.header.metadata.get("modelspec.title"))
    if any("turbo" in name.lower() for name in names if isinstance(name, str)):
        return RECOMMENDED["turbo"]
    return RECOMMENDED.get(label_of(unet.config)) if isinstance(unet.config, NetworkConfig) else None


def vae_of_family(identity: Identity) -> VAEConfig:
    """The config of the autoencoder that a model of this family has, where it has none itself."""
    unet = identity.parts["unet"].config
    channels = unet.in_channels if isinstance(unet, NetworkConfig) else VAEConfig().latent_channels
    return of_family(VAEConfig(latent_channels=channels), identity.family)
