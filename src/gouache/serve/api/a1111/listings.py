"""`/sdapi/v1`: what there is, and the tools beside painting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request

from gouache.checkpoints.adapters.embedding_names import embedding_names
from gouache.checkpoints.adapters.library import EMBEDDING, LORA, list_adapters
from gouache.checkpoints.formats.header import open_header
from gouache.checkpoints.vae_library import list_vaes
from gouache.diffusion.samplers.names import SAMPLER_INFOS, SCHEDULE_INFOS
from gouache.errors import GouacheError, InvalidInput
from gouache.serve.api.a1111.fields import Interrogate, PngInfo, decoded
from gouache.serve.api.a1111.mapping import UPSCALERS
from gouache.serve.api.a1111.tolerance import SD_UPSCALE
from gouache.serve.api.a1111.units import TITLE
from gouache.serve.http.access import owner_of, studio_of

router = APIRouter(tags=["a1111"])
PREFIX = "/sdapi/v1"
NOTES = "notes"
"""Among the items of a picture's texts: what of another program's recipe could not be read, a line each."""
_HIDDEN = ("ddim_inversion",)


@router.get(f"{PREFIX}/samplers")
def samplers() -> list[dict[str, Any]]:
    """Every sampler."""
    return [
        {"name": info.label, "aliases": [info.name, *info.aliases], "options": {"scheduler": info.default_schedule}}
        for info in SAMPLER_INFOS.values()
        if info.name not in _HIDDEN
    ]


@router.get(f"{PREFIX}/schedulers")
def schedulers() -> list[dict[str, Any]]:
    """Every sigma schedule."""
    first = {"name": "automatic", "label": "Automatic", "aliases": None, "default_rho": -1, "need_inner_model": False}
    rho = {"karras": 7.0, "polyexponential": 1.0}
    return [first] + [
        {
            "name": info.name,
            "label": info.label,
            "aliases": list(info.aliases) or None,
            "default_rho": rho.get(info.name, -1),
            "need_inner_model": False,
        }
        for info in SCHEDULE_INFOS.values()
        if info.name != "custom"
    ]


@router.get(f"{PREFIX}/sd-models")
def sd_models(request: Request) -> list[dict[str, Any]]:
    """Every model; the path on this machine is not told."""
    return [
        {
            "title": entry.title,
            "model_name": entry.stem,
            "hash": entry.sha256[:10] if entry.sha256 else None,
            "sha256": entry.sha256,
            "filename": entry.name,
            "config": None,
        }
        for entry in studio_of(request).catalog.models()
    ]


@router.get(f"{PREFIX}/latent-upscale-modes")
def latent_upscale_modes() -> list[dict[str, str]]:
    """Latent upscalers of the second pass."""
    return [{"name": name} for name in UPSCALERS if name.startswith("Latent")]


@router.get(f"{PREFIX}/prompt-styles")
def prompt_styles(request: Request) -> list[dict[str, str]]:
    """The caller's styles."""
    found = studio_of(request).presets.styles(owner_of(request))
    return [{"name": name, "prompt": texts[0], "negative_prompt": texts[1]} for name, texts in found.items()]


@router.get(f"{PREFIX}/scripts")
def scripts() -> dict[str, list[str]]:
    """Scripts: the one for ControlNets, and one of A1111's own; nothing is plugged in."""
    return {"txt2img": [TITLE], "img2img": [SD_UPSCALE, TITLE]}


@router.get(f"{PREFIX}/loras")
def loras() -> list[dict[str, Any]]:
    """LoRA files that a prompt may name; the path on this machine is not told."""
    return [
        {"name": found.name, "alias": next(iter(found.aliases), found.name), "path": found.path.name, "metadata": {}}
        for found in list_adapters()
        if found.kind == LORA
    ]


@router.get(f"{PREFIX}/embeddings")
def embeddings() -> dict[str, dict[str, Any]]:
    """Textual inversions that a prompt may name, and files that can't be used."""
    loaded: dict[str, Any] = {}
    skipped: dict[str, Any] = {}
    for found in list_adapters():
        if found.kind == EMBEDDING:
            shape = _shape(found.path)
            values = {"step": None, "sd_checkpoint": None, "sd_checkpoint_name": None}
            place = skipped if shape is None else loaded
            place[found.name] = values | {"shape": shape[-1] if shape else 0, "vectors": shape[0] if shape else 0}
    return {"loaded": loaded, "skipped": skipped}


def _shape(path: Path) -> tuple[int, ...] | None:
    """Vectors and width of a textual inversion; None for a file that can't be read or holds something else."""
    try:
        tensors = open_header(path).tensors
    except GouacheError:
        return None
    firsts = [next(iter(slots.values())) for slots in embedding_names(tensors).words.values()]
    shapes = [(1, *tensors[name].shape)[-2:] for name in firsts if len(tensors[name].shape) in (1, 2)]
    return (sum(shape[0] for shape in shapes), shapes[0][-1]) if shapes else None


@router.get(f"{PREFIX}/cmd-flags")
def cmd_flags(request: Request) -> dict[str, Any]:
    """How the server was started, as far as clients need it."""
    settings = studio_of(request).settings
    return {"api": True, "listen": not settings.on_loopback, "port": settings.port}


@router.get(f"{PREFIX}/memory")
def memory() -> dict[str, Any]:
    """Memory of the machine."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines() if Path("/proc/meminfo").is_file() else []
    found = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
    total, free = found.get("MemTotal", 0), found.get("MemAvailable", 0)
    return {"ram": {"free": free, "used": total - free, "total": total}, "cuda": {"error": "asked of the workers only"}}


def _empty() -> list[Any]:
    """Nothing of this kind is offered."""
    return []


@router.get(f"{PREFIX}/sd-modules")
@router.get(f"{PREFIX}/sd-vae")
def sd_vae() -> list[dict[str, str]]:
    """The autoencoders that `sd_vae` may name; Forge calls them modules."""
    return [{"model_name": name, "filename": place.name} for name, place in list_vaes().items()]


for _name in (
    "hypernetworks",
    "face-restorers",
    "realesrgan-models",
    "script-info",
    "extensions",
    "artist-categories",
    "artists",
    "lycos",
):
    router.get(f"{PREFIX}/{_name}", name=_name)(_empty)


@router.post(f"{PREFIX}/refresh-checkpoints")
def refresh_checkpoints(request: Request) -> None:
    """Look again which models there are."""
    studio_of(request).catalog.refresh()


@router.post(f"{PREFIX}/unload-checkpoint")
def unload_checkpoint(request: Request) -> dict[str, Any]:
    """Workers let go of their models before the next job."""
    studio_of(request).supervisor.unload_models()
    return {}


def _nothing_to_do() -> dict[str, Any]:
    """What this would load is read when it is needed."""
    return {}


for _name in ("refresh-vae", "refresh-embeddings", "refresh-loras", "reload-checkpoint"):
    router.post(f"{PREFIX}/{_name}", name=_name)(_nothing_to_do)


@router.post(f"{PREFIX}/png-info")
async def png_info(body: PngInfo, request: Request) -> dict[str, Any]:
    """The texts inside a picture."""
    studio, owner = studio_of(request), owner_of(request)
    data, wanted = decoded("image", body.image), {"max_pixels": studio.upload_pixels}
    facts, _ = await studio.decoding.beside(studio.decoding.run, owner, "texts", data, wanted)
    return facts


@router.post(f"{PREFIX}/interrogate")
def interrogate(body: Interrogate) -> dict[str, str]:
    """Captions: refused, there is no captioning model."""
    raise InvalidInput("model", given=repr(body.model)[:80], expected="nothing: this server captions no pictures")
