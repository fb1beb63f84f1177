"""What a run starts from and what it must leave alone, made from the images of a request.

Text to image starts from noise alone; every edit from latents of an image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from PIL import Image, ImageChops
from torch import Tensor

from gouache.checkpoints.load import no_vae
from gouache.diffusion.rng import generator_for
from gouache.errors import InvalidInput
from gouache.models.bundle import ModelBundle
from gouache.models.turns import awake
from gouache.models.vae import AutoencoderKL
from gouache.pipeline.fields.values import SURROUNDINGS
from gouache.pipeline.generate.a1111_procedure import follows, skipped_steps
from gouache.pipeline.inputs.a1111_masks import A1111Masked, cut_like_a1111, mask_of, resized
from gouache.pipeline.inputs.images import References, fit, is_opaque, on_background
from gouache.pipeline.inputs.masks import Masked, cut, cut_alike, filled, full_mask, grey_share, latent_mask
from gouache.pipeline.inputs.preprocessors import mask_from_words
from gouache.pipeline.inputs.regions import region_areas
from gouache.pipeline.inputs.small_picture import small_picture
from gouache.pipeline.inputs.tensors import to_tensor
from gouache.pipeline.request import Mask, Request


def unchanged(picture: Image.Image) -> Image.Image:
    """The finish of a run that has nothing to put back."""
    return picture


@dataclass(frozen=True, slots=True)
class PromptPictures:
    """What an image prompt names.

    Attributes:
        pictures: mode RGB or RGBA.
        mask: white where they count; None = everywhere.
    """

    pictures: tuple[Image.Image, ...]
    mask: Image.Image | None = None


@dataclass(frozen=True, kw_only=True)
class StartState:
    """The ground of a picture.

    Attributes:
        latents: the starting picture, normalised; None = start from noise alone. [1 or B,C,h,w]
        under_mask: what stands under the mask at the start, if not the picture itself. [1,C,h,w]
        skipped: noise levels left out at the start: 0 starts from pure noise.
        mask: 1 where to paint, 0 where the latents stay, between that where to paint in the last steps only; None =
            everywhere. [1,1,h,w]
        state: the noisy latents to start from, instead of anything drawn. [1,C,h,w]
        draft: channels for networks that take some beside the latents. [1,Cd,h,w]
        noise_under_mask: what stands under the mask is the picture's own first noise.
        added: the noise is laid on the picture even if no step is left out.
        around: starting picture and hard mask, for an autoencoder whose decoder looks at both. [1,3,H,W], [1,1,H,W]
        hints: the control pictures, in the request's order, cut as the starting picture is.
        prompted: the pictures and the mask of each image prompt, in the request's order.
        areas: how much of each place lies in each region, in the request's order. [R,H,W] in pixels, or fewer
        finish: what is done to the painted picture at the end, such as putting back what must not change.
    """

    latents: Tensor | None = None
    under_mask: Tensor | None = None
    skipped: int = 0
    mask: Tensor | None = None
    state: Tensor | None = None
    draft: Tensor | None = None
    noise_under_mask: bool = False
    added: bool = False
    around: tuple[Tensor, Tensor] | None = None
    hints: tuple[Image.Image, ...] = ()
    prompted: tuple[PromptPictures, ...] = ()
    areas: Tensor | None = None
    finish: Callable[[Image.Image], Image.Image] = unchanged

    @property
    def grey(self) -> Tensor | None:
        """The mask if it is grey somewhere, which matters while painting; else None. [1,1,h,w]"""
        return None if self.mask is None or torch.equal(self.mask, self.mask.round()) else self.mask

    def start(self, noise: Tensor, sigma: float, under: Tensor | None = None) -> Tensor:
        """The state at the first level: x = x0 + sigma * noise, with x0 = 0 where everything is new; `under` is what
        stands under the mask where that is noise of the picture's own. [B,C,h,w]"""
        if self.state is not None:
            return self.state.to(noise).expand(len(noise), -1, -1, -1)
        scaled = noise * sigma
        if self.latents is None:
            return scaled
        latents = self.latents.to(scaled)
        if under is not None and self.mask is not None:
            return latents + under * self.mask.to(scaled) + scaled
        begun = latents if self.under_mask is None else self.under_mask.to(scaled)
        if self.mask is None:
            return scaled if self.skipped == 0 and not self.added else begun + scaled
        new = torch.zeros_like(begun) if self.skipped == 0 and not self.added else begun
        white = self.mask.floor()  # grey begins as the picture
        return torch.lerp(latents, new, white.to(scaled)) + scaled


def steps_to_skip(steps: int, strength: float) -> int:
    """How many of the steps a strength leaves out: the last int(steps * strength) are walked."""
    return steps - min(int(steps * strength), steps)


INPAINT, INSTRUCT, DEPTH, DRAFT, ENLARGE = "inpaint", "instruct", "depth", "draft", "enlarge"


def input_kind(bundle: ModelBundle) -> str | None:
    """What the network takes beside the latents: a mask and a masked picture, a picture, a depth map, a draft, a small
    picture; or None.

    Raises:
        InvalidInput: channels that fit none of them.
    """
    extra, latent = bundle.unet.config.draft_channels, bundle.vae.config.latent_channels
    if extra == 0:
        return None
    if bundle.prior is not None:
        return DRAFT
    if bundle.noise_levels and extra == bundle.vae.config.image_channels:
        return ENLARGE
    kinds = {1 + latent: INPAINT, latent: INSTRUCT, 1: DEPTH}
    if extra not in kinds:
        raise InvalidInput("model", given=f"{extra} channels beside the latents", expected=f"one of {sorted(kinds)}")
    return kinds[extra]


@dataclass(frozen=True, slots=True)
class Prepared:
    """A start_state, and what was learnt on the way.

    Attributes:
        start_state: where the run starts.
        notes: what to tell, for example how many steps are walked.
    """

    start_state: StartState
    notes: tuple[str, ...]


def prepare(request: Request, bundle: ModelBundle, references: References) -> Prepared:
    """Build the start_state of a resolved request.

    Raises:
        PictureError: a picture that isn't one, or a mask of another size.
        InvalidInput: the model needs a picture that the request doesn't name, or can't use one that it names.
    """
    kind = input_kind(bundle)
    notes: list[str] = []
    if kind == ENLARGE:
        if request.init_image is None:
            raise _needs("init_image", "a small picture to enlarge", "--init FILE")
        small = small_picture(references.picture(request.init_image), request, bundle)
        return Prepared(_beside(StartState(draft=small), None, request, references), ())
    if request.init_image is None:
        blank = _beside(StartState(), None, request, references)
        return Prepared(_with_inputs(blank, None, None, kind, request, bundle, references, notes), tuple(notes))
    picture = references.picture(request.init_image)
    masked: Masked | None = None
    if request.mask is None:
        part = _fitted(picture, request, bundle)
        start_state = StartState(latents=encode(bundle, part, tiled=request.vae_tiling, notes=notes))
    else:
        masked = _masked(picture, kind, request, bundle, references, notes)
        part = masked.part
        start_state = _masked_start(masked, request, bundle, notes)
    start_state = _beside(start_state, masked, request, references)
    start_state = _with_inputs(start_state, part, masked, kind, request, bundle, references, notes)
    if kind == INSTRUCT and not follows(request):
        return Prepared(replace(start_state, latents=None), tuple(notes))
    steps, skipped = _walked(request)
    if skipped:
        notes.insert(0, f"strength {_strength(request):g}: {steps - skipped} of {steps} steps")
    return Prepared(replace(start_state, skipped=skipped, added=follows(request)), tuple(notes))


def _masked(
    picture: Image.Image,
    kind: str | None,
    request: Request,
    bundle: ModelBundle,
    references: References,
    notes: list[str],
) -> Masked:
    options, width, height = request.mask or Mask(), request.width or 0, request.height or 0
    given = None if options.image is None else references.picture(options.image)
    if options.text is not None:
        given = mask_from_words(options.text, on_background(picture, "white"), options.threshold)
    mask = full_mask(options, picture, given)
    if _flattened(request, bundle):
        return cut_like_a1111(picture, mask_of(options, picture, given), options, width, height, request.resize_mode)
    notes += _mask_notes(mask, kind)
    steps, skipped = _walked(request)
    opaque = request.background == SURROUNDINGS and is_opaque(picture)
    return cut(
        picture, mask, options, width, height, steps=max(1, steps - skipped), blend=kind == INSTRUCT, opaque=opaque
    )


def _flattened(request: Request, bundle: ModelBundle) -> bool:
    """Whether pictures are handled as A1111 does, which knows no transparency."""
    return follows(request) and bundle.vae.config.image_channels == 3


def _fitted(picture: Image.Image, request: Request, bundle: ModelBundle) -> Image.Image:
    width, height = request.width or 0, request.height or 0
    if _flattened(request, bundle):
        return resized(on_background(picture, "white"), width, height, request.resize_mode)
    return fit(picture, width, height, request.resize_mode)


def _strength(request: Request) -> float:
    return 0.75 if request.strength is None else request.strength


def _walked(request: Request) -> tuple[int, int]:
    """Steps of a resolved request, and how many of them its strength leaves out."""
    steps = len(request.sigmas) - 1 if request.sigmas else request.num_inference_steps or 1
    if follows(request):
        return steps, skipped_steps(steps, _strength(request), request.sampler)
    return steps, steps_to_skip(steps, _strength(request))


def _mask_notes(mask: Image.Image, kind: str | None) -> tuple[str, ...]:
    share = grey_share(mask)
    if not share:
        return ()
    how = "laid over the picture as thick as the mask is" if kind == INSTRUCT else "painted with that share of strength"
    return (f"mask: {100 * share:.2g} % of it is grey, which is {how}; mask.threshold cuts it instead",)


def _masked_start(masked: Masked, request: Request, bundle: ModelBundle, notes: list[str]) -> StartState:
    if isinstance(masked, A1111Masked):
        return _start_like_a1111(masked, request, bundle, notes)
    latents = encode(bundle, masked.part, tiled=request.vae_tiling, notes=notes)
    mask = latent_mask(masked.grey, bundle.vae.config.downscale).to(latents)
    return StartState(
        latents=latents,
        under_mask=_under_mask(latents, masked, request, bundle, notes),
        mask=mask,
        around=_around(masked, request, bundle, notes),
        finish=masked.finish,
    )


def _around(masked: Masked, request: Request, bundle: ModelBundle, notes: list[str]) -> tuple[Tensor, Tensor] | None:
    if not bundle.vae.config.mask_condition:
        return None
    if request.vae_tiling or request.hires is not None:
        notes.append("tiles and second passes are decoded without the picture around the mask")
        return None
    hard = to_tensor(masked.hard.convert("RGB"), 3)[:1] / 2 + 0.5
    return to_tensor(masked.part, bundle.vae.config.image_channels)[None], hard[None].round()


def _start_like_a1111(masked: A1111Masked, request: Request, bundle: ModelBundle, notes: list[str]) -> StartState:
    """There the fill is a part of the picture from which the latents come, outside the mask too. Latent noise is the
    seed's own, which the start adds once more."""
    fill = request.mask.fill if request.mask else "original"
    latents = encode(bundle, masked.part, tiled=request.vae_tiling, notes=notes)
    mask = masked.latent_mask((latents.shape[2], latents.shape[3])).to(latents)
    if fill in ("noise", "nothing"):
        latents = latents * (1 - mask)
    return StartState(latents=latents, mask=mask, finish=masked.finish, noise_under_mask=fill == "noise")


def _under_mask(
    latents: Tensor, masked: Masked, request: Request, bundle: ModelBundle, notes: list[str]
) -> Tensor | None:
    fill = request.mask.fill if request.mask else "original"
    if fill == "nothing":
        return torch.zeros_like(latents)
    if fill == "noise":
        generator = generator_for(request.seed or 0, "mask")
        return torch.randn(latents.shape, generator=generator).to(latents)
    if fill == "fill":
        return encode(bundle, filled(masked.part, masked.hard), tiled=request.vae_tiling, notes=notes)
    return None


def _with_inputs(
    start_state: StartState,
    part: Image.Image | None,
    masked: Masked | None,
    kind: str | None,
    request: Request,
    bundle: ModelBundle,
    references: References,
    notes: list[str],
) -> StartState:
    """Add the channels that the network wants beside the latents."""
    if kind == INPAINT:
        # Such a network was trained to leave the rest alone by itself: nothing is blended while it paints.
        kept = start_state if isinstance(masked, A1111Masked) else _merged(start_state)
        return replace(kept, draft=_inpaint_channels(part, masked, request, bundle, notes))
    if kind == INSTRUCT:
        if part is None or start_state.latents is None:
            raise _needs("init_image", "a picture to change", "--init FILE")
        # EDM's kind (CosXL Edit) takes the picture's latents normalised, every other the autoencoder's own.
        normalised = bundle.denoiser_config.schedule.name == "edm"
        draft = start_state.latents if normalised else bundle.vae.denormalise(start_state.latents)
        return replace(start_state, draft=draft)
    if kind == DEPTH:
        if request.depth_image is None:
            raise _needs("depth_image", "a depth map, white = near", "--depth-image FILE")
        return replace(
            start_state, draft=_depth_channel(references.picture(request.depth_image), masked, request, bundle)
        )
    if request.depth_image is not None:
        raise InvalidInput(
            "depth_image", given="a depth map", expected="nothing: this model takes none", cure="Use a depth model."
        )
    return start_state


def _merged(start_state: StartState) -> StartState:
    """The same start with the mask worked into the latents; grey needs it while painting."""
    if start_state.grey is not None:
        return start_state
    if start_state.mask is None or start_state.under_mask is None or start_state.latents is None:
        return replace(start_state, mask=None)
    latents = torch.lerp(start_state.latents, start_state.under_mask, start_state.mask)
    return replace(start_state, latents=latents, under_mask=None, mask=None)


def _needs(where: str, expected: str, option: str) -> InvalidInput:
    return InvalidInput(where, given="nothing", expected=expected, cure=f"This model can't paint without: {option}.")


def _inpaint_channels(
    part: Image.Image | None, masked: Masked | None, request: Request, bundle: ModelBundle, notes: list[str]
) -> Tensor:
    """Mask and latents of the picture without its masked part; a blank picture under a full mask without one."""
    width, height = request.width or 0, request.height or 0
    hard = masked.hard if masked else Image.new("L", (width, height), 255)
    ground = to_tensor(part or Image.new("RGB", (width, height)), bundle.vae.config.image_channels)[None]  # [1,C,H,W]
    painted = latent_mask(hard, 1)  # [1,1,H,W]
    latents = encode_tensor(bundle, ground * (1.0 - painted), tiled=request.vae_tiling, notes=notes)
    factor = bundle.vae.config.downscale
    small = painted[..., ::factor, ::factor] if isinstance(masked, A1111Masked) else latent_mask(hard, factor)
    return torch.cat([small.to(latents), latents], dim=1)


def _depth_channel(picture: Image.Image, masked: Masked | None, request: Request, bundle: ModelBundle) -> Tensor:
    """A depth map at the latents' size, stretched to [-1, 1]; of a masked picture the part that is worked on.
    [1,1,h,w]"""
    factor = bundle.vae.config.downscale
    picture = cut_alike(picture, masked, request.resize_mode)
    grey = fit(picture.convert("RGB"), request.width or 0, request.height or 0, request.resize_mode)
    values = to_tensor(grey, 3).mean(0)[None, None]  # [1,1,H,W]
    small = F.interpolate(
        values, size=(grey.height // factor, grey.width // factor), mode="bicubic", align_corners=False
    )
    low, high = small.min(), small.max()
    return 2.0 * (small - low) / (high - low).clamp_min(1e-6) - 1.0


def _beside(start: StartState, masked: Masked | None, request: Request, references: References) -> StartState:
    """The start with what else the request shows: control pictures, image prompts, areas of regions."""
    hints, prompted = _hints(masked, request, references), _prompted(masked, request, references)
    return replace(start, hints=hints, prompted=prompted, areas=region_areas(request, masked, references))


def _hints(masked: Masked | None, request: Request, references: References) -> tuple[Image.Image, ...]:
    """The control pictures; of a masked picture the part that is worked on, where `inpaint` hides what is masked."""
    found = []
    for one in request.control:
        picture = cut_alike(references.picture(one.image), masked, one.resize_mode or request.resize_mode)
        if one.preprocessor == "inpaint" and masked is not None:
            picture = picture.convert("RGB")
            picture.putalpha(ImageChops.invert(masked.hard))
        elif one.preprocessor == "inpaint" and picture.mode != "RGBA":
            raise InvalidInput(
                "control",
                given="inpaint without a mask",
                expected="a mask, or a control picture that is transparent where it is to be filled",
                cure="Name a mask (--mask FILE) or make that part of the control picture transparent.",
            )
        found.append(picture)
    return tuple(found)


def _prompted(masked: Masked | None, request: Request, references: References) -> tuple[PromptPictures, ...]:
    """The pictures of the image prompts, and their masks cut as the starting picture is."""
    found = []
    for one in request.image_prompts:
        mask = None if one.mask is None else on_background(references.picture(one.mask), "black")
        part = None if mask is None else cut_alike(mask, masked, request.resize_mode)
        found.append(PromptPictures(tuple(references.picture(name) for name in one.images), part))
    return tuple(found)


ENCODED_AGAIN = "the encoder overflowed in half precision and was run again in float32"


@torch.no_grad()
def encode(bundle: ModelBundle, picture: Image.Image, *, tiled: bool = False, notes: list[str] | None = None) -> Tensor:
    """The normalised latents of a picture (the posterior's mode, so that nothing is drawn).

    Args:
        bundle: the model.
        picture: what to encode.
        tiled: encode in tiles, for less memory.
        notes: gets what had to be done beyond the plain way.

    Returns:
        [1,C,h,w]

    Raises:
        InvalidInput: the encoder gives NaN or infinity even in float32.
    """
    return encode_tensor(bundle, to_tensor(picture, bundle.vae.config.image_channels)[None], tiled=tiled, notes=notes)


@torch.no_grad()
def encode_tensor(
    bundle: ModelBundle, tensor: Tensor, *, tiled: bool = False, notes: list[str] | None = None
) -> Tensor:
    """As `encode`, for tensors [B,C,H,W] in [-1, 1].

    Raises:
        IncompatibleCheckpoint: the model has no autoencoder.
    """
    if not bundle.has_vae:
        raise no_vae(str(bundle.path or bundle.name))
    latents = _encoded(bundle.vae, tensor, tiled=tiled)
    if bool(torch.isfinite(latents).all()):
        return latents
    dtype = next(bundle.vae.parameters()).dtype
    try:
        latents = _encoded(bundle.vae.float(), tensor, tiled=tiled)
    finally:
        bundle.vae.to(dtype)
    if not bool(torch.isfinite(latents).all()):
        raise InvalidInput(
            "encoder",
            given="NaN or infinity even in float32",
            expected="finite latents",
            cure="The autoencoder's weights are damaged; compare their sha256.",
        )
    if notes is not None and ENCODED_AGAIN not in notes:
        notes.append(ENCODED_AGAIN)
    return latents


def _encoded(vae: AutoencoderKL, tensor: Tensor, *, tiled: bool) -> Tensor:
    weight = next(awake(vae).parameters())
    given = tensor.to(weight.device, weight.dtype)
    moments = vae.encode_in_tiles(given) if tiled else vae.encode(given)
    return vae.normalise(moments.mode()).float()
