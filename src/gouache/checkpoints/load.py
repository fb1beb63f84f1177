"""Loads a whole model from a file or a folder of any known layout."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from gouache.checkpoints.detect import Identity, Part
from gouache.checkpoints.formats.header import Header
from gouache.checkpoints.formats.safetensors import WeightSource, verify_sha256
from gouache.checkpoints.identify import identify, known_sha256, read_card, synonyms_of, vocabulary_of
from gouache.checkpoints.model_defaults import folder_scheduler, generation_defaults, vae_of_family
from gouache.checkpoints.networks import Plan, build_on_meta, fill, load_network, open_part, plan_network, read_planned
from gouache.checkpoints.noise_table import recorded_latents, recorded_schedule
from gouache.checkpoints.t5_vocabulary import t5_tokenizer
from gouache.checkpoints.vision import has_embedder
from gouache.diffusion.parameterization import Parameterization
from gouache.errors import GouacheError, IncompatibleCheckpoint, InvalidInput, unknown_name
from gouache.models.bundle import ModelBundle
from gouache.models.configs import (
    DenoiserConfig,
    NetworkConfig,
    NoiseScheduleConfig,
    SentenceEncoderConfig,
    TextEncoderConfig,
    UNetConfig,
    VAEConfig,
)
from gouache.models.family import family_named
from gouache.models.memory.synonyms import Synonyms
from gouache.models.mmdit import MMDiT
from gouache.models.prior import Prior
from gouache.models.quantizer import Quantizer
from gouache.models.text.clip import TextEncoder
from gouache.models.text.sentence import SentenceEncoder
from gouache.models.text.stack import Joint, NoTexts, TextStack
from gouache.models.text.t5 import T5Encoder
from gouache.models.text.tokenizers import END_ID
from gouache.models.turns import Turns
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
    dtype: torch.dtype | Callable[[ModelBundle], torch.dtype] | None = None,
    prediction: Parameterization | None = None,
    variant: str | None = None,
    vae: str | Path | None = None,
    verify: bool = True,
    without_vae: bool = False,
    sequential: bool = False,
    channels_last: bool = False,
) -> ModelBundle:
    """Load a model: a diffusers folder, a single file (.safetensors or .ckpt), or gouache's own format.

    Args:
        path: the file or folder.
        device: where the networks go.
        dtype: the type of their numbers, or what says it of the model before its numbers are read; None keeps the
            file's.
        prediction: what the U-Net's output means, where the file doesn't tell or tells wrong.
        variant: which weights of a diffusers folder to prefer, for example ``"fp16"``.
        vae: an autoencoder in place of the model's own, or where it has none: a file or a folder.
        verify: compare the tensors with the sha256 that files in the own format record.
        without_vae: take a model that has no autoencoder too, with one that has no numbers in its place.
        sequential: keep one network at a time in memory, and read each when it is used; needs `dtype`.
        channels_last: lay out convolutions of the U-Net and the autoencoder as `nn.layers.channels_last` does, which
            costs less memory than to do it later. Networks that take turns always are.

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
    assembled = assemble(path, identify(path, variant=variant, vae=vae), prediction, without_vae=without_vae)

    kind = dtype if dtype is None or isinstance(dtype, torch.dtype) else dtype(assembled.bundle)

    def read(name: str) -> None:
        planned, network = assembled.plans[name], assembled.networks[name]
        source = assembled.source(planned.part.header, verify=verify and sequential)
        laid_out = sequential or (channels_last and name in ("unet", "vae"))
        fill(network, planned, source, device=device, dtype=kind, channels_last=laid_out)
        if sequential:
            network.eval().requires_grad_(False)

    if not sequential:
        with assembled.verified() if verify else nullcontext():
            for name in assembled.plans:
                read(name)
        return assembled.bundle.eval()
    if kind is None:
        raise InvalidInput("dtype", given=None, expected="a type of numbers, where networks take turns in memory")
    Turns({network: partial(read, name) for name, network in assembled.networks.items()}, torch.device(device), kind)
    return assembled.bundle.eval()


@dataclass(frozen=True, slots=True)
class Assembly:
    """A model whose files are known to fit, before its numbers are read.

    Attributes:
        bundle: the model; its networks are without memory.
        networks: each part's network, by the part's name.
        plans: where each part's tensors come from.
        opened: the files that were opened, each once.
    """

    bundle: ModelBundle
    networks: Mapping[str, nn.Module]
    plans: Mapping[str, Plan]
    opened: dict[Path, WeightSource] = field(default_factory=dict)

    def source(self, header: Header, *, verify: bool) -> WeightSource:
        """The opened file, or shards, of a part; `verify` compares the numbers with the sha256 that it records."""
        if header.path not in self.opened:
            if verify and not header.files:
                verify_sha256(header)
            self.opened[header.path] = open_part(header)
        return self.opened[header.path]

    @contextmanager
    def verified(self) -> Iterator[None]:
        """Compare the files with the sha256 that they record while the body reads them: a second processor is free.

        Raises:
            CorruptCheckpoint: at the end; it goes before whatever the body found wrong in such a file.
        """
        headers = {planned.part.header.path: planned.part.header for planned in self.plans.values()}
        with ThreadPoolExecutor(1, "sha256") as others:
            compared = [others.submit(verify_sha256, header) for header in headers.values() if not header.files]
            try:
                yield
            finally:
                for one in compared:
                    one.result()


def assemble(
    path: Path, identity: Identity, prediction: Parameterization | None = None, *, without_vae: bool = False
) -> Assembly:
    """Put a model together without reading its numbers: whatever stands in the way of loading it is found here.

    The one function that answers both whether a model loads and, for `load_bundle`, how.

    Args:
        path: the model.
        identity: of the model at `path`.
        prediction, without_vae: as `load_bundle`.

    Raises:
        IncompatibleCheckpoint, CorruptCheckpoint, ConfigError: as `load_bundle`.
    """
    identity = with_recorded_latents(identity)
    check_loadable(identity, str(path), without_vae=without_vae)
    planned = {name: plan_network(part, identity.family) for name, part in identity.parts.items()}
    networks = {name: network for name, (network, _) in planned.items()}
    plans = {name: plan for name, (_, plan) in planned.items()}
    unet = plans["unet"]
    opened: dict[Path, WeightSource] = {}

    def tensor_of(name: str) -> Tensor:
        source = opened.setdefault(unet.part.header.path, open_part(unet.part.header))
        return read_planned(source, unet, name, None, mapped=False)

    denoiser = denoiser_config(path, identity, prediction, tensor_of)
    stand_in = build_on_meta(vae_of_family(identity)) if "vae" not in identity.parts else None
    bundle = ModelBundle(
        family=identity.family,
        unet=_network_of(networks),
        vae=_of({**networks, **({"vae": stand_in} if stand_in else {})}, AutoencoderKL)[0],
        text=_text_stack(path, networks, identity),
        denoiser_config=denoiser,
        defaults=generation_defaults(path, identity, denoiser),
        styles=_styles(path, identity),
        synonyms=_synonyms(path, identity),
        prior=next(iter(_of(networks, Prior)), None),
        quantizer=next(iter(_of(networks, Quantizer)), None),
        upscaler=next(iter(_of(networks, Upscaler)), None),
        name=model_name(path, identity),
        path=path,
        sha256=known_sha256(identity),
        loading_notes=(*identity.notes_on_loading(), *_without_t5(identity)),
        notes=identity.notes,
        few_steps=identity.few_steps,
    )
    return Assembly(bundle, networks, plans)


SMALL = 256 << 20
"""Bytes of a model that is read whole to say whether it loads."""


def why_not(path: Path, identity: Identity, *, whole: bool = False) -> GouacheError | None:
    """Why `load_bundle` refuses a model; None if it loads.

    Args:
        path: the model.
        identity: of the model at `path`.
        whole: read the numbers of a large model too; those of a small one are read in any case.
    """
    try:
        assembled = assemble(path, identity)
        headers = {planned.part.header.path: planned.part.header for planned in assembled.plans.values()}
        if whole or sum(info.bytes for header in headers.values() for info in header.tensors.values()) <= SMALL:
            for planned in assembled.plans.values():
                source = assembled.source(planned.part.header, verify=True)
                for name in planned.shapes:
                    read_planned(source, planned, name, None, mapped=False)
    except GouacheError as error:
        return error
    return None


def with_recorded_latents(identity: Identity) -> Identity:
    """The same, its autoencoder with the scale and shift that the tensors of a single file record."""
    vae = identity.parts.get("vae")
    if vae is None or identity.layout != "single-file" or not isinstance(vae.config, VAEConfig):
        return identity
    config = recorded_latents(vae.header, vae.config)
    return replace(identity, parts={**identity.parts, "vae": replace(vae, config=config)})


def model_name(path: Path, identity: Identity) -> str:
    """The name that a model's card gives, else that of its file or folder."""
    named = identity.layout == "gouache" and identity.label
    return identity.label if named else path.name if path.is_dir() else path.stem


LoadedNetwork = TypeVar("LoadedNetwork", bound=nn.Module)


def _of(networks: Mapping[str, nn.Module], kind: type[LoadedNetwork]) -> list[LoadedNetwork]:
    return [network for network in networks.values() if isinstance(network, kind)]


def _network_of(networks: Mapping[str, nn.Module]) -> UNet | MMDiT:
    network = networks["unet"]
    assert isinstance(network, UNet | MMDiT), "the config decides the class"
    return network


def _text_stack(path: Path, networks: Mapping[str, nn.Module], identity: Identity) -> TextStack:
    sentences = _of(networks, SentenceEncoder)
    if sentences:
        return _of_sentences(path, sentences[0])
    rows, network = family_named(identity.family).text_rows, identity.parts["unet"].config
    if identity.variant == "variation" and isinstance(network, NetworkConfig):
        return NoTexts(network.context_width)
    joint = Joint(network.context_width, rows) if rows and isinstance(network, NetworkConfig) else None
    t5 = next(((one, t5_tokenizer(path, one.config)) for one in _of(networks, T5Encoder)), None)
    try:
        return TextStack.of_clip(_of(networks, TextEncoder), joint, t5)
    except InvalidInput as error:
        where = f"{path}: {error.where}"
        raise IncompatibleCheckpoint(where, given=error.given, expected=error.expected, cure=error.cure) from error


def _without_t5(identity: Identity) -> tuple[str, ...]:
    """What to tell of a model whose third text encoder isn't there, which it was trained to do without at times
    (arXiv:2403.03206, section 5.3.3)."""
    if not family_named(identity.family).text_rows or "text_encoder_3" in identity.parts:
        return ()
    return ("without its third text encoder (T5): zeros stand for what it says",)


def _of_sentences(path: Path, encoder: SentenceEncoder) -> TextStack:
    try:
        return TextStack.of_sentences(encoder, vocabulary_of(path))
    except InvalidInput as error:
        where = f"{path}: {error.where}"
        raise IncompatibleCheckpoint(where, given=error.given, expected=error.expected, cure=error.cure) from error


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
    scheduler = folder_scheduler(path, identity)
    if own is not None:
        config = own.denoiser
    elif scheduler is not None:
        config = scheduler.denoiser
    else:
        config = DenoiserConfig(
            parameterization=identity.prediction or _sd2_prediction(identity.parts["unet"], tensor_of),
            schedule=_single_file_schedule(identity),
        )
    unet = identity.parts["unet"].config
    if isinstance(unet, UNetConfig) and unet.out_channels == 2 * unet.in_channels:
        config = config.model_copy(update={"learned_variance": True})
    return config if prediction is None else config.model_copy(update={"parameterization": prediction})


def _single_file_schedule(identity: Identity) -> NoiseScheduleConfig:
    """What a single file says of the noise that its network was trained on; Stable Diffusion 3's say nothing, and the
    x4 upscaler's need not."""
    shift = family_named(identity.family).shift
    if shift is not None:
        return NoiseScheduleConfig(name="flow", shift=shift)
    header = identity.parts["unet"].header
    found = recorded_schedule(header)
    bare = identity.variant == "upscaler" and not {"alphas_cumprod", "betas"} & header.tensors.keys()
    return found.model_copy(update={"beta_start": 1e-4, "beta_end": 0.02}) if bare else found


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


def _styles(path: Path, identity: Identity) -> tuple[str, ...]:
    own = read_card(path) if identity.layout == "gouache" else None
    return () if own is None else own.styles


def _synonyms(path: Path, identity: Identity) -> Synonyms | None:
    table = synonyms_of(path) if identity.layout == "gouache" else {}
    return Synonyms(table) if table else None


def check_loadable(identity: Identity, where: str, *, without_vae: bool = False) -> None:
    """Refuse what is recognised but can't paint.

    Args:
        identity: what it is.
        where: the file or folder, for errors.
        without_vae: whether a model without an autoencoder will do.

    Raises:
        IncompatibleCheckpoint: an adapter, a part, or a variant without a pipeline.
    """
    cures = {
        "lora": "Put it into the folder adapters beside the models, and name it in a prompt: <lora:NAME:0.8>.",
        "vae": "Load it beside a model: --vae FILE on the command line, vae in a request.",
        "textual-inversion": "Put it into the folder embeddings beside the models, and use its name as a word.",
    }
    if identity.kind != "model":
        raise IncompatibleCheckpoint(
            where,
            given=f"a {identity.kind}" + (f" ({identity.label})" if identity.label else ""),
            expected="a whole model: U-Net, autoencoder and text encoder",
            cure=cures.get(identity.kind, "Give the model that it belongs to."),
        )
    alone = identity.layout == "single-file" and has_embedder(identity.parts["unet"].header)
    if identity.variant == "unclip" and identity.layout != "diffusers" and not alone:
        raise IncompatibleCheckpoint(
            where,
            given="an unCLIP model without its image encoder",
            expected="one file with it, or the same model as diffusers' folder",
            cure="Get the folder: it has unet, image_encoder, image_normalizer and image_noising_scheduler.",
        )
    if identity.variant not in ("base", "inpainting", "instruct", "depth", "upscaler", "unclip", "variation"):
        raise IncompatibleCheckpoint(
            where,
            given=f"a {identity.family} {identity.variant} model",
            expected="text to image, inpainting, instruct, depth, the x4 upscaler, unCLIP or Image Variations",
        )
    for name, part in identity.parts.items():
        if isinstance(part.config, TextEncoderConfig):
            _check_vocabulary(part.config, f"{where}: {name}")
    if "vae" not in identity.parts:
        if not without_vae:
            raise no_vae(where)
        return
    vae = identity.parts["vae"].config
    if isinstance(vae, VAEConfig) and vae.image_channels not in (3, 4):
        raise IncompatibleCheckpoint(
            where,
            given=f"an autoencoder for pictures of {vae.image_channels} channels, as LDM3D has",
            expected="3 (RGB) or 4 (RGBA)",
        )


def no_vae(where: str) -> IncompatibleCheckpoint:
    """The refusal of a model that has no autoencoder and was given none."""
    return IncompatibleCheckpoint(
        where,
        given="a model without an autoencoder",
        expected="one with it, or an autoencoder (VAE) named beside it",
        cure="Name one: --vae FILE on the command line, vae in a request, sd_vae for A1111's clients.",
    )


def _check_vocabulary(config: TextEncoderConfig, where: str) -> None:
    """Refuse a CLIP whose table has no vector for a token that prompts can have."""
    highest = max(END_ID, config.pad_id)
    if config.vocabulary_size <= highest:
        raise IncompatibleCheckpoint(
            where,
            given=f"vectors of {config.vocabulary_size} tokens",
            expected=f"at least {highest + 1}: CLIP's vocabulary and what fills a chunk up",
            cure="This text encoder reads another vocabulary, which gouache doesn't have; take a model with CLIP's.",
        )


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
            return Sentences(_of_sentences(path, network), known_sha256(identity))
    return None
