"""Image prompts of a request: their IP-Adapters, found, loaded and checked, and what each shows the U-Net and when."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from gouache.checkpoints.adapters.conditioning_files import key_of
from gouache.checkpoints.adapters.ip_adapter import load_ip_adapter
from gouache.checkpoints.adapters.ip_adapter_library import find_ip_adapter, towers
from gouache.checkpoints.adapters.kinds import FAMILY_OF_WIDTH
from gouache.checkpoints.renamed import header_at
from gouache.checkpoints.vision import image_encoder_config, load_embedder, load_image_encoder, read_embedding_noise
from gouache.diffusion.rng import ImageNoise
from gouache.errors import IncompatibleCheckpoint, ModelNotFound
from gouache.models.bundle import ModelBundle
from gouache.models.conditioning.image_encoder import PictureEncoder, normalised
from gouache.models.conditioning.ip_adapter import IPAdapter, Seen, cross_attentions
from gouache.models.conditioning.unclip import EmbeddingNoise, OwnPictures
from gouache.models.configs import ImageEncoderConfig, IPAdapterConfig
from gouache.models.family import family_label
from gouache.pipeline.generate.controlnets import unet_of
from gouache.pipeline.inputs.images import fit, on_background
from gouache.pipeline.inputs.start import PromptPictures
from gouache.pipeline.inputs.tensors import to_tensor
from gouache.pipeline.prompts.encode import EncodedPrompt
from gouache.pipeline.request import ImagePrompt, Request

PUBLISHED_TOWERS = {("plain", 1024): "ViT-H", ("plain", 1280): "ViT-bigG", ("", 1280): "ViT-H", ("", 1664): "ViT-bigG"}
"""Kind (plain or not) and width of what an adapter reads -> the tower that gives it."""


BIG_G = 1280
"""Width of ViT-bigG's embeddings."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """An IP-Adapter with its vision tower, and the files or folders that they came from."""

    adapter: IPAdapter
    encoder: PictureEncoder
    path: Path
    tower: Path


class IPAdapters:
    """Loads the IP-Adapters of a model's requests; those of the last request that had any are kept, with their towers.

    Args:
        bundle: the model; never changed.
    """

    def __init__(self, bundle: ModelBundle) -> None:
        self.bundle = bundle
        self._adapters: dict[tuple[Path, int], IPAdapter] = {}
        self._encoders: dict[tuple[Path, int], PictureEncoder] = {}
        self._own: tuple[tuple[Path, int], PictureEncoder] | None = None
        self._embedder: OwnPictures | None = None

    def load(self, request: Request, folder: Path | None = None) -> Mapping[str, Loaded]:
        """Every IP-Adapter that a request names, by its name.

        Args:
            request: it.
            folder: the models folder; None takes the usual one.

        Raises:
            ModelNotFound: no such adapter, or no vision tower that fits it.
            CheckpointError: its file can't be used, or not with this model.
        """
        names = dict.fromkeys(one.adapter for one in request.image_prompts if one.adapter is not None)
        places = {name: find_ip_adapter(name, folder).path for name in names}
        adapters = {key_of(path) for path in places.values()}
        self._adapters = {key: one for key, one in self._adapters.items() if key in adapters}
        found: dict[str, Loaded] = {}
        encoders: dict[tuple[Path, int], PictureEncoder] = {}
        for name, path in places.items():
            adapter = self._adapters.get(key_of(path)) or self._loaded(name, path)
            self._adapters[key_of(path)] = adapter
            tower = find_tower(name, path, adapter.config, self.bundle, folder)
            encoder = encoders.get(key_of(tower)) or self._encoders.get(key_of(tower)) or self._tower(tower)
            encoders[key_of(tower)] = encoder
            found[name] = Loaded(adapter, encoder, path, tower)
        self._encoders = encoders
        return found

    def own(self, folder: Path | None = None) -> tuple[OwnPictures, Path]:
        """What the model reads pictures with by itself, and where its vision tower lies.

        Args:
            folder: the models folder; None takes the usual one.

        Raises:
            ModelNotFound: it isn't there.
            CheckpointError: it can't be used.
        """
        unclip, top, alone = self.bundle.picture_width, self.bundle.path, not self.bundle.reads_texts
        if unclip and top is not None and top.is_file():
            if self._embedder is None:
                network, noise = load_embedder(top, device=self.bundle.device, dtype=self.bundle.dtype)
                self._embedder = OwnPictures(PictureEncoder(network.eval().requires_grad_(False)), noise)
            return self._embedder, top
        width = unclip or (self.bundle.text.context_width if alone else self.bundle.text.pooled_width)
        tower = next((one for one in towers(None, top, folder) if _projection(one) == width), None)
        own = top / "image_encoder" if top is not None and (unclip or alone) else None
        tower = own if own is not None and own.is_dir() else tower
        if tower is None:
            raise ModelNotFound(
                "image_prompts",
                given="no vision tower",
                expected=f"one whose embeddings are {width} wide, as folder image_encoder in the model's own or in the "
                "folder clip_vision of the models folder",
                cure="Get CLIP-ViT-bigG-14 (config.json, model.safetensors)." if width == BIG_G else "",
            )
        noise = EmbeddingNoise.plain(width)
        if top is not None and unclip:
            noise = read_embedding_noise(top, width)
        if self._own is None or self._own[0] != key_of(tower):
            self._own = None
            self._own = (key_of(tower), self._tower(tower))
        return OwnPictures(self._own[1], noise), tower

    def _loaded(self, name: str, path: Path) -> IPAdapter:
        adapter = load_ip_adapter(path, device=self.bundle.device, dtype=self.bundle.dtype)
        check_fits(adapter.config, self.bundle, f"image prompt {name!r}")
        return adapter.eval().requires_grad_(False)

    def _tower(self, path: Path) -> PictureEncoder:
        network = load_image_encoder(path, device=self.bundle.device, dtype=self.bundle.dtype)
        return PictureEncoder(network.eval().requires_grad_(False))


def _projection(tower: Path) -> int:
    return image_encoder_config(tower, header_at(tower)).projection_width


def check_fits(config: IPAdapterConfig, bundle: ModelBundle, where: str) -> None:
    """See that an IP-Adapter was made for a model's U-Net.

    Raises:
        IncompatibleCheckpoint: it belongs to another; both are named.
    """
    network = unet_of(bundle, where)
    unet = network.config
    widths = tuple(block.norm2.normalized_shape[0] for block in cross_attentions(network))
    theirs = FAMILY_OF_WIDTH.get(config.context_width)
    label = family_label(theirs) if theirs is not None else f"text {config.context_width} wide"
    for what, given, expected in (
        ("width of the tokens", config.context_width, unet.context_width),
        ("cross-attentions", len(config.block_widths), len(widths)),
        ("widths of the cross-attentions", config.block_widths, widths),
    ):
        if given != expected:
            raise IncompatibleCheckpoint(
                where,
                given=f"an IP-Adapter for {label} ({what}: {_short(given)})",
                expected=f"one for {bundle.traits.label}, as {bundle.name or bundle.family} is ({_short(expected)})",
                cure="Take the adapter that was published for this family.",
            )


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def find_tower(name: str, path: Path, config: IPAdapterConfig, bundle: ModelBundle, folder: Path | None) -> Path:
    """The vision tower that an IP-Adapter was trained with: the nearest of the right width.

    Raises:
        ModelNotFound: there is none.
    """
    others = []
    for tower in towers(path, bundle.path, folder):
        found = image_encoder_config(tower, header_at(tower))
        if width_of(found, config) == config.picture_width:
            return tower
        others.append(f"{tower.name} with {width_of(found, config)}")
    plain = config.kind == "plain"
    usual = PUBLISHED_TOWERS.get(("plain" if plain else "", config.picture_width), "the one it was trained with")
    raise ModelNotFound(
        f"image prompt {name!r}",
        given=f"no vision tower that fits ({', '.join(others)})" if others else "no vision tower",
        expected=f"{usual}, whose {'embeddings' if plain else 'states'} are {config.picture_width} wide, as folder "
        "image_encoder beside the adapter or in the folder clip_vision of the models folder",
        cure="Get the folder image_encoder (config.json, model.safetensors) from where the adapter was published.",
    )


def width_of(tower: ImageEncoderConfig, config: IPAdapterConfig) -> int:
    """Width of what an adapter reads of a tower."""
    return tower.projection_width if config.kind == "plain" else tower.width


@dataclass(frozen=True, slots=True)
class TimedPictures:
    """What an adapter shows, and the steps at which it does.

    Attributes:
        seen: under the prompt.
        blank: under the negative prompt.
        prompt: its share of the steps.
        steps: of the walk.
    """

    seen: Seen
    blank: Seen
    prompt: ImagePrompt
    steps: int

    def is_on(self, step: int) -> bool:
        """Whether it shows them at a step, counted from 1, which has to lie within its share as a whole."""
        return self.prompt.is_on(step, self.steps)

    def on_side(self, *, negative: bool) -> Seen:
        """As the prompt's side sees it, or the negative prompt's."""
        return self.blank if negative else self.seen


@dataclass(frozen=True, slots=True)
class PooledPicture:
    """A picture in place of the pooled text, or of the whole, and the steps at which it is.

    Attributes:
        seen: under the prompt. [B, P]
        blank: under the negative prompt and at the other steps; None = the pooled text. [1, P]
        prompt: its share of the steps.
        steps: of the walk.
        whole: whether it is the context, of one row, and not the pooled vector.
    """

    seen: Tensor
    blank: Tensor | None
    prompt: ImagePrompt
    steps: int
    whole: bool = False

    def in_place_of(self, text: EncodedPrompt, step: int, *, negative: bool) -> EncodedPrompt:
        """What the network is given for a text at a step, counted from 1: pooled [B or 1, P], or context [.., 1, P]."""
        vector = self.seen if not negative and self.prompt.is_on(step, self.steps) else self.blank
        if vector is None:
            return text
        return replace(text, context=vector[:, None]) if self.whole else replace(text, pooled=vector)


@torch.no_grad()
def pooled_picture(
    bundle: ModelBundle, request: Request, prompted: tuple[PromptPictures, ...], noise: ImageNoise, steps: int
) -> PooledPicture | None:
    """The picture that a model reads by itself; None for a weight of 0 beside a text that it would replace.

    Args:
        bundle: the model with its `own_pictures`.
        request: with an image prompt that names no adapter.
        prompted: the pictures, in the request's order.
        noise: the streams of the paintings.
        steps: of the walk.
    """
    reader = bundle.own_pictures
    pairs = zip(request.image_prompts, prompted, strict=True)
    prompt, given = next(((one, pictures) for one, pictures in pairs if one.adapter is None), (None, None))
    if reader is None or prompt is None or given is None:
        return None
    pixels = tower_pixels(given.pictures[0], reader.encoder.network.config.image_size)
    embedding = reader.encoder.encode(pixels).embedding.float()
    drawn, level = noise.apart("picture", embedding.shape[1:]), prompt.noise_level
    if bundle.picture_width:
        seen = reader.noise.with_level(embedding, level, drawn) * prompt.weight
        return PooledPicture(seen, torch.zeros_like(seen[:1]), prompt, steps)
    seen = reader.noise.noised(embedding, level, drawn) if level else embedding
    if not bundle.reads_texts:
        return PooledPicture(seen * prompt.weight, torch.zeros_like(seen[:1]), prompt, steps, whole=True)
    return PooledPicture(seen * prompt.weight, None, prompt, steps) if prompt.weight else None


@torch.no_grad()
def timed_pictures(
    bundle: ModelBundle, request: Request, prompted: tuple[PromptPictures, ...], steps: int
) -> tuple[TimedPictures, ...]:
    """What image prompts show in one walk; those of weight 0 show nothing.

    Args:
        bundle: the model with its `ip_adapters`.
        request: with the walk's size.
        prompted: the pictures, in the request's order.
        steps: of the walk.
    """
    found = []
    for prompt, given in zip(request.image_prompts, prompted, strict=True):
        if prompt.adapter is None or prompt.weight == 0:
            continue
        adapter, encoder = bundle.ip_adapters[prompt.adapter], bundle.picture_encoders[prompt.adapter]
        pixels = torch.cat([tower_pixels(one, encoder.network.config.image_size) for one in given.pictures])
        tokens, blank = (
            adapter.tokens(states).flatten(0, 1)[None]
            for states in (encoder.encode(pixels), encoder.blank(len(pixels)))
        )
        seen = Seen(adapter, tokens, torch.full((1,), prompt.weight), _mask(given.mask, request))
        found.append(TimedPictures(seen, replace(seen, tokens=blank), prompt, steps))
    return tuple(found)


def _mask(mask: Image.Image | None, request: Request) -> Tensor | None:
    """A mask at the walk's size. [1, 1, H, W] in 0..1"""
    if mask is None:
        return None
    fitted = fit(mask.convert("RGB"), request.width or 0, request.height or 0, request.resize_mode)
    return to_tensor(fitted, 3)[None, :1] / 2 + 0.5


def tower_pixels(picture: Image.Image, size: int) -> Tensor:
    """A picture as CLIP's tower takes it: the shorter edge brought to `size` (bicubic, in 8 bits), the middle cut out.

    Args:
        picture: mode RGB or RGBA; transparency lies on white.
        size: edge, in pixels.

    Returns:
        [1, 3, size, size] with about zero mean and unit variance.
    """
    plain = on_background(picture, "white").convert("RGB")
    shorter = min(plain.size)
    width, height = (int(size * side / shorter) for side in plain.size)
    resized = plain.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    cropped = resized.crop((left, top, left + size, top + size))
    return normalised(to_tensor(cropped, 3)[None] / 2 + 0.5)
