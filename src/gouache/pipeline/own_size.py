"""Pictures larger than the model's own size, by its up-sampling decoder; and which upscaler a request means."""

from __future__ import annotations

from gouache.errors import InvalidInput
from gouache.models.bundle import ModelBundle
from gouache.pipeline.pixels import nearest_size
from gouache.pipeline.request import Request, Upscale
from gouache.pipeline.upscalers import LANCZOS, OWN


def at_own_size(request: Request, bundle: ModelBundle) -> Request:
    """The request with the model's own size and an enlargement behind, where it asks for more than that size.

    Only for pictures from words by a model that has an upscaler; `tiled` and `hires` paint at full size. The longer
    side of what is painted is the model's own.

    Raises:
        InvalidInput: the asked size is more than the upscaler gives, or the model has no upscaler and one is asked for.
    """
    upscale = request.upscale
    if bundle.upscaler is not None and _is_plain(request):
        own = (bundle.defaults.width, bundle.defaults.height)
        asked = (request.width or own[0], request.height or own[1])
        # What rounds to the own size needs no enlargement.
        rounded = nearest_size(*asked, bundle.vae.config.downscale)
        fit = max(rounded[0] / own[0], rounded[1] / own[1])
        if fit > 1:
            factor = fit * (upscale.factor if upscale else 1.0)
            _check(asked, upscale, factor, bundle.upscaler.config.scale, own)
            width, height = (max(1, round(side / fit)) for side in rounded)
            request = request.replace({"width": width, "height": height})
            upscale = Upscale(factor=factor, upscaler=OWN)
    if upscale is None:
        return request
    if upscale.upscaler is None:
        upscale = upscale.model_copy(update={"upscaler": LANCZOS if bundle.upscaler is None else OWN})
    if upscale.upscaler == OWN and bundle.upscaler is None:
        raise InvalidInput(
            "upscale.upscaler", given=repr(OWN), expected=f"lanczos or a file: {bundle.family} brings no upscaler",
            cure="Leave it out, or use lanczos.",
        )  # fmt: skip
    return request.replace({"upscale": upscale})


def _is_plain(request: Request) -> bool:
    """Whether a picture is painted from words alone in one pass, to be enlarged by the model's own means if at all."""
    other = request.init_image or request.tiled or request.hires or request.outpaint
    return not other and (request.upscale is None or request.upscale.upscaler in (None, OWN))


def _check(asked: tuple[int, int], upscale: Upscale | None, factor: float, scale: int, own: tuple[int, int]) -> None:
    if factor <= scale + 1e-9:
        return
    more = f", enlarged {upscale.factor:g} times" if upscale else ""
    raise InvalidInput(
        "size", given=f"{asked[0]}x{asked[1]}{more}",
        expected=f"at most {max(own) * scale} pixels a side: {scale} times the {max(own)} that the model paints",
        cure=f"Paint with --size {max(own) * scale} and enlarge the file by `gouache upscale`, or add --tiled, which "
        "paints at full size.",
    )  # fmt: skip


def enlargement(asked: Request, resolved: Request) -> float:
    """How many times larger than painted the picture becomes because of the asked size; 1 if that was painted."""
    before = asked.upscale.factor if asked.upscale else 1.0
    return resolved.upscale.factor / before if resolved.upscale else 1.0
