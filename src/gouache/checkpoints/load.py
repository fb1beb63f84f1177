"""Loads a whole model from a file or a folder of any known layout."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from gouache.checkpoints.detect import Identity, Part
from gouache.checkpoints.diffusers import folder as folders
from gouache.checkpoints.diffusers.scheduler import Scheduler
from gouache.checkpoints.formats.header import Header
from gouache.checkpoints.formats.safetensors import SHA256, WeightSource, verify_sha256
from gouache.checkpoints.identify import identify, read_card, vocabulary_of
from gouache.checkpoints.networks import LoadReport, load_network, open_part
from gouache.checkpoints.noise_table import recorded_latents, recorded_schedule, recorded_scheduler
from gouache.diffusion.parameterization import Parameterization
from gouache.errors import IncompatibleCheckpoint, unknown_name
from gouache.models.bundle import ModelBundle
from gouache.models.configs import DenoiserConfig, GenerationDefaults, SentenceEncoderConfig, UNetConfig, VAEConfig
from gouache.models.family import family_named
from gouache.models.prior import Prior
from gouache.models.quantizer import Quantizer
from gouache.models.scheduler_config import sampler_of
from gouache.models.sentence_encoder import SentenceEncoder
from gouache.models.text_encoder import TextEncoder
from gouache.models.text_stack import TextStack
from gouache.models.unet import UNet
from gouache.models.upscalers import Upscaler
from gouache.models.vae import AutoencoderKL

__all__ = ["Sentences", "identify", "load_bundle", "load_sentences"]

PREDICTIONS: tuple[Parameterization, ...] = ("eps", "v", "x0", "flow")
SD2_V_DEVIATION = 0.09
"""Above this standard deviation of one bias, an SD 2.x network predicts v; see `_sd2_prediction`."""


def load_bundle(
    path: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    prediction: Parameterization | None = None,
    variant: str | None = None,
    verify: bool = True,
) -> ModelBundle:
    """Load a model: a diffusers folder, a single file (.safetensors or .ckpt), or gouache's own format.

    Args:
        path: the file or folder.
        device: where the networks go.
        dtype: the type of their numbers; None keeps the file's.
        prediction: what the U-Net's output means, where the file doesn't tell or tells wrong.
        variant: which weights of a diffusers folder to prefer, for example ``"fp16"``.
        verify: compare the tensors with the sha256 that files in the own format record.

    Raises:
        ModelNotFound: nothing is there, or a part is missing.
        CorruptCheckpoint: a file is damaged, or holds NaN.
        UnsafeCheckpoint: a file would run code if it were unpickled.
        IncompatibleCheckpoint: the tensors do not fit the networks, or it is no whole model.
        UnknownFamily: it is nothing that gouache knows.
    """
    path = Path(path)
    if prediction is not None and prediction not in PREDICTIONS:
        raise unknown_name("prediction", prediction, PREDICTIONS)
    identity = with_recorded_latents(identify(path, variant=variant))
    check_loadable(identity, str(path))
    networks = _Networks(identity, device, dtype, verify=verify)
    unet, vae = networks.of(UNet)[0], networks.of(AutoencoderKL)[0]
    denoiser = denoiser_config(path, identity, prediction, unet.state_dict().__getitem__)
    return ModelBundle(
        family=identity.family,
        unet=unet,
        vae=vae,
        text=_text_stack(path, networks),
        denoiser_config=denoiser,
        defaults=generation_defaults(path, identity, denoiser),
        styles=_styles(path, identity),
        prior=next(iter(networks.of(Prior)), None),
        quantizer=next(iter(networks.of(Quantizer)), None),
        upscaler=next(iter(networks.of(Upscaler)), None),
        name=model_name(path, identity),
        path=path,
        sha256=known_sha256(identity),
        notes=identity.notes,
    ).eval()


def with_recorded_latents(identity: Identity) -> Identity:
    """The same, its autoencoder with the scale and shift that the tensors of a single file record."""
    vae = identity.parts.get("vae")
    if vae is None or identity.layout != "single-file" or not isinstance(vae.config, VAEConfig):
        return identity
    config = recorded_latents(vae.header, vae.config)
    return replace(identity, parts={**identity.parts, "vae": replace(vae, config=config)})


def known_sha256(identity: Identity) -> str:
    """A hash of the model's weights, if its files tell theirs without being read; else empty.

    Files that gouache wrote record the sha256 of their tensors, and the hub's cache names files by theirs. The hash of
    a model of several files is that of their hashes, by part.
    """
    known = {name: _recorded_sha256(part.header) for name, part in identity.parts.items()}
    if not all(known.values()):
        return ""
    if len(set(known.values())) == 1:
        return next(iter(known.values()))
    return sha256("\n".join(f"{name} {known[name]}" for name in sorted(known)).encode()).hexdigest()


def _recorded_sha256(header: Header) -> str:
    if header.files:
        return ""
    blob = header.path.resolve().name
    return header.metadata.get(SHA256, blob if re.fullmatch(r"[0-9a-f]{64}", blob) else "")


def model_name(path: Path, identity: Identity) -> str:
    """The name that a model's card gives, else that of its file or folder."""
    named = identity.layout == "gouache" and identity.label
    return identity.label if named else path.name if path.is_dir() else path.stem


LoadedNetwork = TypeVar("LoadedNetwork", bound=nn.Module)


class _Networks:
    """Every part of a model, loaded; a file that holds several parts is opened once."""

    def __init__(
        self, identity: Identity, device: torch.device | str, dtype: torch.dtype | None, *, verify: bool
    ) -> None:
        sources: dict[Path, WeightSource] = {}
        self._loaded: list[nn.Module] = []
        for part in identity.parts.values():
            if part.header.path not in sources:
                sources[part.header.path] = _opened(part.header, verify)
            source = sources[part.header.path]
            network, _ = load_network(part, source, identity.family, device=device, dtype=dtype)
            self._loaded.append(network)

    def of(self, kind: type[LoadedNetwork]) -> list[LoadedNetwork]:
        return [network for network in self._loaded if isinstance(network, kind)]


def _opened(header: Header, verify: bool) -> WeightSource:
    if verify and not header.files:
        verify_sha256(header)
    return open_part(header)


def _text_stack(path: Path, networks: _Networks) -> TextStack:
    sentences = networks.of(SentenceEncoder)
    if sentences:
        return TextStack.of_sentences(sentences[0], vocabulary_of(path))
    return TextStack.of_clip(networks.of(TextEncoder))


def denoiser_config(
    path: Path, identity: Identity, prediction: Parameterization | None, tensor_of: Callable[[str], Tensor]
) -> DenoiserConfig:
    """What the network's output means and the schedule it was trained on, as far as the file says.

    Args:
        path: the model.
        identity: of the model at `path`.
        prediction: what wins over all that the file says, or None.
        tensor_of: gives a tensor of the U-Net by our name, where only the weights tell.
    """
    own = read_card(path) if identity.layout == "gouache" else None
    scheduler = _folder_scheduler(path, identity)
    if own is not None:
        config = own.denoiser
    elif scheduler is not None:
        config = scheduler.denoiser
    else:
        config = DenoiserConfig(
            parameterization=identity.prediction or _sd2_prediction(identity.parts["unet"], tensor_of),
            schedule=recorded_schedule(identity.parts["unet"].header),
        )
    unet = identity.parts["unet"].config
    if isinstance(unet, UNetConfig) and unet.out_channels == 2 * unet.in_channels:
        config = config.model_copy(update={"learned_variance": True})
    return config if prediction is None else config.model_copy(update={"parameterization": prediction})


def _folder_scheduler(path: Path, identity: Identity) -> Scheduler | None:
    return folders.scheduler_of_folder(path, identity.family) if identity.layout == "diffusers" else None


def _sd2_prediction(part: Part, tensor_of: Callable[[str], Tensor]) -> Parameterization:
    """Whether an SD 2.x network predicts eps or v, by its weights, since its names and shapes don't show it.

    The rule is ComfyUI's: in the published v networks and their descendants, the bias of the first norm of the last
    transformer spreads more than 0.09. `prediction` of `load_bundle` overrules it.
    """
    if not isinstance(part.config, UNetConfig) or not part.config.up_depths()[-1][-1]:
        return "eps"
    last = len(part.config.channels) - 1
    name = f"up_blocks.{last}.attentions.{part.config.layers_per_level}.transformer_blocks.0.norm1.bias"
    return "v" if float(tensor_of(name).float().std(correction=0)) > SD2_V_DEVIATION else "eps"


def generation_defaults(path: Path, identity: Identity, denoiser: DenoiserConfig) -> GenerationDefaults:
    """What a request that leaves it open gets: the card's, else the family's and the folder's scheduler's."""
    own = read_card(path) if identity.layout == "gouache" else None
    if own is not None:
        return own.defaults
    family = family_named(identity.family)
    size = family.size_for(denoiser.parameterization)
    file = path / "unet" / "config.json"
    sample_size = folders.read_json(file).get("sample_size") if file.is_file() else None
    vae = identity.parts["vae"].config
    if isinstance(sample_size, int) and isinstance(vae, VAEConfig):
        size = sample_size * vae.downscale
    defaults = GenerationDefaults(width=size, height=size, guidance_scale=family.guidance_scale)
    scheduler = _folder_scheduler(path, identity)
    if identity.layout == "single-file":
        recorded = recorded_scheduler(identity.parts["unet"].header)
        if recorded is not None:
            scheduler = Scheduler(recorded, denoiser, sampler_of(recorded).name, "model")
    if scheduler is None or scheduler.config is None:
        return defaults
    few = {"num_inference_steps": scheduler.steps, "guidance_scale": scheduler.guidance_scale}
    taken = {"sampler": scheduler.sampler, "schedule": scheduler.schedule, "scheduler": scheduler.config}
    return defaults.model_copy(update={**taken, **{key: value for key, value in few.items() if value is not None}})


def _styles(path: Path, identity: Identity) -> tuple[str, ...]:
    own = read_card(path) if identity.layout == "gouache" else None
    return () if own is None else own.styles


def check_loadable(identity: Identity, where: str) -> None:
    """Refuse what is recognised but can't paint.

    Raises:
        IncompatibleCheckpoint: an adapter, a part, or a variant without a pipeline.
    """
    cures = {
        "lora": "Put it into the folder adapters beside the models, and name it in a prompt: <lora:NAME:0.8>.",
        "vae": "Load it beside a model.",
        "textual-inversion": "Put it into the folder embeddings beside the models, and use its name as a word.",
    }
    if identity.kind != "model":
        raise IncompatibleCheckpoint(
            where,
            given=f"a {identity.kind}" + (f" ({identity.label})" if identity.label else ""),
            expected="a whole model: U-Net, autoencoder and text encoder",
            cure=cures.get(identity.kind, "Give the model that it belongs to."),
        )
    if identity.variant not in ("base", "inpainting", "instruct", "depth"):
        raise IncompatibleCheckpoint(
            where,
            given=f"a {identity.family} {identity.variant} model",
            expected="text to image, inpainting, instruct or depth",
        )
    if identity.unexplained:
        LoadReport(unexpected=list(identity.unexplained)).check(where, "model")


class Sentences:
    """Compares texts by meaning.

    Args:
        stack: a sentence encoder with its tokenizer.
        sha256: of the model's weights.
    """

    def __init__(self, stack: TextStack, sha256: str) -> None:
        self.stack, self.sha256 = stack.eval().requires_grad_(False).float(), sha256

    @torch.no_grad()
    def vectors(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """One unit vector a text: the mean of its chunks' vectors (Reimers and Gurevych 2019). [N,D]"""
        rows = []
        for text in texts:
            ids, length = self.stack.tokenize(text), self.stack.chunk_length
            pooled = self.stack.encode([ids[k : k + length] for k in range(0, max(len(ids), 1), length)]).pooled
            assert pooled is not None, "a sentence encoder always pools"
            rows.append(F.normalize(pooled.mean(0), dim=0))
        return np.stack([row.cpu().numpy() for row in rows]).astype(np.float32)


def load_sentences(path: Path) -> Sentences | None:
    """The sentence encoder of a model, without the model's other networks; None if it has none.

    Raises:
        CheckpointError: nothing that can be loaded.
    """
    identity = identify(path)
    for part in identity.parts.values():
        if isinstance(part.config, SentenceEncoderConfig):
            network, _ = load_network(part, open_part(part.header), identity.family, dtype=torch.float32)
            assert isinstance(network, SentenceEncoder), "the config decides the class"
            return Sentences(TextStack.of_sentences(network, vocabulary_of(path)), known_sha256(identity))
    return None
