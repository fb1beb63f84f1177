"""Models on the disk and on the Hugging Face hub. Only weights, JSON and the tokenizer's text are ever fetched.

With ``GOUACHE_OFFLINE=1`` nothing here opens a socket.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files as package_files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from platformdirs import user_data_path

from gouache.checkpoints.diffusers.repository import choose_files
from gouache.environment import Variable
from gouache.errors import CorruptCheckpoint, GouacheError, HubError, ModelNotFound, unknown_name
from gouache.files import CountedFile, existing
from gouache.models.family import POCKET
from gouache.notebook import bar

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

SHIPPED = POCKET.name
"""Name of the model inside the package, and of its folder there."""
WEIGHT_SUFFIXES = (".safetensors", ".gguf", ".bin", ".ckpt")
ADAPTER_FOLDERS = ("adapters", "embeddings", "lora", "loras")
CONTROL_FOLDERS = ("controlnet", "controlnets", "t2i_adapter", "t2i_adapters")
PREPROCESSOR_FOLDERS = ("preprocessors",)
IP_ADAPTER_FOLDERS = ("ipadapter", "ip-adapter", "ip_adapter")
TOWER_FOLDERS = ("clip_vision", "image_encoder")
VAE_FOLDERS = ("vae", "vaes")
NO_MODELS = (
    *ADAPTER_FOLDERS,
    *CONTROL_FOLDERS,
    *IP_ADAPTER_FOLDERS,
    *TOWER_FOLDERS,
    *VAE_FOLDERS,
    *PREPROCESSOR_FOLDERS,
)
"""Folders beside the models that hold no models; see `adapters_folder` and `control_folder`."""
DEFAULT_ENDPOINT = "https://huggingface.co"
CHUNK = 1 << 22
LARGE = 32 << 20
"""Bytes from which a download of a file goes on in its middle; smaller ones start anew."""
Report = Callable[[int, int], None]
"""Takes the bytes that are on the disk and the bytes known to be needed."""


@dataclass(frozen=True, slots=True)
class OnDisk:
    """A model that is on the disk.

    Attributes:
        name: what `find` takes.
        path: its file or folder.
        bytes: what it takes on the disk.
    """

    name: str
    path: Path
    bytes: int


def data_folder() -> Path:
    """Where gouache keeps models and data: `GOUACHE_DATA`, or the user's data folder of this system.

    That is ``XDG_DATA_HOME`` or ``~/.local/share`` on Linux, and what macOS and Windows have in its place.
    """
    chosen = os.environ.get(Variable.DATA)
    return Path(chosen).expanduser() if chosen else user_data_path("gouache", appauthor=False)


def models_folder() -> Path:
    """Where models that were put there by hand lie: ``GOUACHE_MODELS``, else ``models`` in `data_folder`."""
    chosen = os.environ.get(Variable.MODELS)
    return Path(chosen).expanduser() if chosen else data_folder() / "models"


def hub_cache() -> Path:
    """The hub's own cache, shared with every other program that uses it."""
    chosen = os.environ.get(Variable.HF_HUB_CACHE)
    if chosen:
        return Path(chosen).expanduser()
    home = os.environ.get(Variable.HF_HOME)
    return (Path(home).expanduser() if home else Path.home() / ".cache" / "huggingface") / "hub"


def model_folders() -> list[Path]:
    """The folders that models are looked for in, first to last."""
    return [models_folder(), hub_cache()]


def shipped_model() -> Path | None:
    """The folder of the pocket model inside the package; None in a build without it."""
    folder = Path(str(package_files("gouache"))) / SHIPPED
    return folder if (folder / "model.json").is_file() else None


def on_disk() -> list[OnDisk]:
    """Every model in `model_folders`, by name."""
    own = models_folder()
    found = [
        OnDisk(path.name if path.is_dir() else path.stem, path, _bytes(path))
        for path in (sorted(own.iterdir()) if own.is_dir() else [])
        if not path.name.startswith(".")
        and path.name.lower() not in NO_MODELS
        and (path.is_dir() or path.suffix in WEIGHT_SUFFIXES)
    ]
    cache = hub_cache()
    for folder in sorted(cache.glob("models--*")) if cache.is_dir() else []:
        snapshot = _snapshot(folder)
        if snapshot is not None:
            repo = folder.name.removeprefix("models--").replace("--", "/")
            found.append(OnDisk(repo, snapshot, _bytes(snapshot)))
    return found


def weights_in(root: Path, folders: Collection[str], suffixes: Collection[str]) -> Iterator[Path]:
    """Weight files below some folders, each once, and folders with a config.json in place of the files in them.

    Args:
        root: the models folder; it may be missing.
        folders: names, in lower case, of the folders in it.
        suffixes: of the files, in lower case.
    """
    tops = [path for path in sorted(root.iterdir()) if path.name.lower() in folders] if root.is_dir() else []
    seen: set[Path] = set()
    for top in (path for path in tops if path.is_dir()):
        for path in sorted(top.rglob("*")):
            if path.suffix.lower() not in suffixes or not path.is_file() or path.name.startswith("."):
                continue
            place = path.parent if path.parent != top and (path.parent / "config.json").is_file() else path
            if place not in seen:
                seen.add(place)
                yield place


def find(name: str) -> Path:
    """The file or folder of a model: a path, a name in the models folder, or a repository in the hub's cache.

    Raises:
        ModelNotFound: there is none on the disk; the nearest name is offered.
    """
    if (path := existing(name)) is not None:
        return path
    plain = Path(name).name == name
    for path in [models_folder() / f"{name}{suffix}" for suffix in ("", *WEIGHT_SUFFIXES)] if plain else []:
        if existing(path) is not None:
            return path
    snapshot = _snapshot(hub_cache() / f"models--{name.replace('/', '--')}") if name.count("/") <= 1 else None
    if snapshot is not None:
        return snapshot
    known = [model.name for model in on_disk()]
    known += [SHIPPED] if shipped_model() is not None and SHIPPED not in known else []
    near = unknown_name("model", name, known).cure if known else "None is on the disk yet."
    fetch = f" Or fetch it: gouache pull {name}" if name.count("/") == 1 else ""
    raise ModelNotFound(
        f"model {name!r}",
        given="no such path or name",
        expected="a path, or a model that `gouache models` lists",
        cure=near + fetch,
    )


def pull(
    repo: str,
    *,
    token: str | None = None,
    revision: str | None = None,
    variant: str | None = None,
    progress: Report | None = None,
) -> Path:
    """Fetch a model from the hub into its cache and return its folder; what is there already is not fetched again.

    Args:
        repo: ``"owner/name"``.
        token: for gated and private models; None uses ``HF_TOKEN`` or the stored login.
        revision: branch, tag or commit; None is the main branch.
        variant: which weights to fetch where there are several, for example ``"fp16"``.
        progress: called with the bytes that are here and the bytes known to be needed; what it raises stops the pull.
            None shows a bar in a notebook.

    Raises:
        HubError: offline by ``GOUACHE_OFFLINE``, the hub refused or can't be reached, or the repository has no weights.
        CorruptCheckpoint: a file has another sha256 than the hub records.
    """
    if progress is not None:
        return _pull(repo, token, revision, variant, progress)
    with bar() as show:
        return _pull(repo, token, revision, variant, lambda here, needed: show(*_told(repo, here, needed)))


def _told(repo: str, here: int, needed: int) -> tuple[float | None, str]:
    return here / needed if needed else None, f"{repo}: {here / 1e6:,.0f} of {needed / 1e6:,.0f} MB"


def _pull(repo: str, token: str | None, revision: str | None, variant: str | None, report: Report) -> Path:
    info, files = look(repo, token, revision, variant)
    from huggingface_hub import snapshot_download

    endpoint, token = endpoint_url(), token or os.environ.get(Variable.HF_TOKEN)
    patterns = _literal(files)
    total = sum(sibling.size or 0 for sibling in info.siblings or [] if sibling.rfilename in files)
    try:
        large = _fetch_large(repo, info, files, token, lambda here: report(here, total))
        bars = _reporting_bars(lambda here, _: report(min(total, large + here), total))
        folder = Path(
            snapshot_download(
                repo, revision=info.sha, token=token, endpoint=endpoint, allow_patterns=patterns, tqdm_class=bars
            )
        )
    except GouacheError:
        raise
    except Exception as error:
        # Which HTTP library's errors come out here depends on the version of huggingface_hub.
        raise _hub_error(repo, endpoint, error) from error
    report(total, total)
    _verify(folder, files, info)
    if revision is None:
        _remember_main(folder)
    return folder


def _fetch_large(
    repo: str, info: ModelInfo, files: Collection[str], token: str | None, report: Callable[[int], None]
) -> int:
    """Fetch the large files into the hub's cache, each going on in its middle where an earlier pull stopped.

    `snapshot_download` throws away what it has of a file when it is interrupted; what lies in the cache it takes.

    Args:
        report: told the bytes of them that are here.

    Returns:
        Bytes of the large files.

    Raises:
        CorruptCheckpoint: a file has another sha256 than the hub records.
    """
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import WeakFileLock, build_hf_headers  # type: ignore[attr-defined]

    blobs, here = hub_cache() / f"models--{repo.replace('/', '--')}" / "blobs", 0
    for sibling in info.siblings or []:
        name, size, lfs = sibling.rfilename, sibling.size or 0, sibling.lfs
        if name not in files or lfs is None or size < LARGE:
            continue
        blob, part = blobs / lfs.sha256, blobs / f"{lfs.sha256}.part"
        blobs.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(str(part.with_suffix(".lock"))):
            if not blob.is_file():
                with part.open("ab") as file:
                    if file.tell() > size:
                        file.truncate(0)
                    if (start := file.tell()) < size:
                        url = hf_hub_url(repo, name, revision=info.sha, endpoint=endpoint_url())
                        counted: Any = CountedFile(file, report, here)
                        headers = build_hf_headers(token=token)
                        http_get(url, counted, resume_size=start, headers=headers, expected_size=size)
                found = file_sha256(part)
                if found != lfs.sha256:
                    part.unlink()
                    raise _other_sum(f"{repo}: {name}", found, lfs.sha256)
                part.replace(blob)
                _verified_mark(blob).write_text(f"{found} {blob.stat().st_mtime_ns}")
        here += size
        report(here)
    return here


def look(repo: str, token: str | None, revision: str | None, variant: str | None) -> tuple[ModelInfo, list[str]]:
    """What the hub says of a repository, and which of its files would be fetched; errors as `pull`."""
    _check_allowed(repo)
    from huggingface_hub import HfApi

    endpoint = endpoint_url()
    try:
        info = HfApi(endpoint=endpoint, token=token or os.environ.get(Variable.HF_TOKEN)).model_info(
            repo, revision=revision, files_metadata=True
        )
    except Exception as error:
        raise _hub_error(repo, endpoint, error) from error
    files = choose_files([sibling.rfilename for sibling in info.siblings or []], variant)
    if not files:
        raise HubError(repo, given="a repository without weights", expected="a diffusers folder or a weight file")
    return info, files


def endpoint_url() -> str:
    return os.environ.get(Variable.HF_ENDPOINT) or DEFAULT_ENDPOINT


def _reporting_bars(progress: Report) -> type[Any]:
    """The progress bars of `snapshot_download`, which draw nothing and report the bytes that are on the disk."""
    from huggingface_hub import utils

    hub_bar: Any = utils.tqdm  # type: ignore[attr-defined]

    class Reporting(hub_bar):  # type: ignore[misc]
        def __init__(self, *args: Any, **options: Any) -> None:
            self.here = 0 if options.get("name") == "huggingface_hub.snapshot_download" else None
            super().__init__(*args, **{**options, "disable": True})

        def update(self, n: float | None = 1) -> bool | None:
            if self.here is not None:
                self.here += int(n or 0)
                progress(self.here, int(self.total or 0))
            return None

    return Reporting


def _literal(names: list[str]) -> list[str]:
    """Names as patterns that match themselves only."""
    return ["".join(f"[{c}]" if c in "*?[" else c for c in name) for name in names]


def _check_allowed(repo: str) -> None:
    if Variable.OFFLINE.is_on:
        raise HubError(
            repo,
            given=f"{Variable.OFFLINE} is set",
            expected="leave to use the network",
            cure="Unset it, or copy the model's folder here and give its path.",
        )


def _hub_error(repo: str, endpoint: str, error: Exception) -> HubError:
    """The hub's refusal in our words, with the cure."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    page = f"{endpoint}/{repo}"
    if isinstance(error, GatedRepoError):
        return HubError(
            repo,
            given="a gated model",
            expected="a token of an account that accepted its licence",
            cure=f"Accept the licence at {page}, then give a token of that account with --token or HF_TOKEN.",
        )
    if isinstance(error, RepositoryNotFoundError):
        return HubError(
            repo,
            given="no such repository, or a private one",
            expected="a repository that you may read",
            cure=f"Look at {page}; for a private model give --token or HF_TOKEN.",
        )
    if isinstance(error, RevisionNotFoundError):
        return HubError(repo, given="no such revision", expected="a branch, tag or commit", cure=f"Look at {page}.")
    if isinstance(error, ValueError):
        return HubError(repo, given=str(error)[:200], expected="a repository's name, owner/name")
    return HubError(
        repo,
        given=f"{type(error).__name__}: {str(error)[:200]}",
        expected=f"an answer from {endpoint}",
        cure="Check the network, and try again; what is here is not fetched again.",
    )


def _verify(folder: Path, files: list[str], info: ModelInfo) -> None:
    """Compare the files with the sha256 that the hub records; a file that was verified before is not read again."""
    sums: Mapping[str, str] = {
        sibling.rfilename: sibling.lfs.sha256 for sibling in info.siblings or [] if sibling.lfs is not None
    }
    for name in files:
        wanted = sums.get(name)
        if wanted is None:
            continue
        path = (folder / name).resolve()
        mark = _verified_mark(path)
        if mark.is_file() and mark.read_text() == f"{wanted} {path.stat().st_mtime_ns}":
            continue
        found = file_sha256(path)
        if found != wanted:
            (folder / name).unlink()
            path.unlink(missing_ok=True)
            raise _other_sum(str(folder / name), found, wanted)
        mark.write_text(f"{wanted} {path.stat().st_mtime_ns}")


def _verified_mark(path: Path) -> Path:
    return path.with_name(f".{path.name}.verified")


def _other_sum(where: str, found: str, wanted: str) -> CorruptCheckpoint:
    return CorruptCheckpoint(
        where,
        given=f"sha256 {found[:16]}...",
        expected=f"{wanted[:16]}..., as the hub records; the file was removed",
        cure="Pull it again.",
    )


def file_sha256(path: Path) -> str:
    """The sha256 of a whole file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _remember_main(folder: Path) -> None:
    """A snapshot asked for by its commit leaves no reference; write the one that `find` reads."""
    reference = folder.parents[1] / "refs" / "main"
    reference.parent.mkdir(exist_ok=True)
    reference.write_text(folder.name)


def _snapshot(folder: Path) -> Path | None:
    """The newest snapshot of a repository in the hub's cache."""
    if existing(folder) is None:
        return None
    reference = folder / "refs" / "main"
    if reference.is_file():
        snapshot = folder / "snapshots" / Path(reference.read_text().strip()).name
        if snapshot.is_dir():
            return snapshot
    snapshots = sorted((folder / "snapshots").glob("*"), key=lambda path: path.stat().st_mtime)
    return snapshots[-1] if snapshots else None


def _bytes(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
