"""Fetches models from the hub while the server goes on: one at a time, with progress, by the same function as the
command line."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from gouache.checkpoints import hub
from gouache.errors import Conflict, GouacheError, HubError, InvalidInput

DownloadState = Literal["running", "done", "failed", "cancelled"]
KEPT = 20
MARK_SECONDS = 0.5
SPEED_MARKS = 20
_REPO = re.compile(r"[\w-][\w.-]{0,95}/[\w-][\w.-]{0,95}", re.ASCII)
_PLAIN = re.compile(r"[\w./-]{1,100}", re.ASCII)
log = logging.getLogger("gouache.pulls")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pull:
    """A model on its way.

    Attributes:
        repo: owner/name on the hub.
        state: how it stands.
        here: bytes that are on the disk.
        total: bytes known to be needed; grows while the files are looked at.
        started: seconds since 1970.
        speed: bytes a second, of the last seconds; 0 while that is unknown.
        error: the text of the error that ended it.
        problem: the same in its parts, as `GouacheError.to_dict` gives them; empty if it had none.
        variant: which weights were asked for.
    """

    repo: str
    state: DownloadState = "running"
    here: int = 0
    total: int = 0
    started: float
    speed: float = 0.0
    error: str = ""
    problem: Mapping[str, str] = field(default_factory=dict)
    variant: str | None = None


class _Cancelled(Exception):
    """Raised inside the download."""


def checked_repo(repo: str, *, revision: str | None = None, variant: str | None = None) -> str:
    """A repository's name without the spaces and the address around it.

    Raises:
        InvalidInput: it is none, or the revision or variant can't be one.
    """
    repo = repo.strip().removeprefix("https://huggingface.co/").strip("/")
    if not _REPO.fullmatch(repo):
        expected = "OWNER/NAME, for example CompVis/stable-diffusion-v1-4"
        raise InvalidInput("repo", given=repr(repo)[:100], expected=expected)
    for where, value in (("revision", revision), ("variant", variant)):
        if value is not None and not _PLAIN.fullmatch(value):
            raise InvalidInput(where, given=repr(value)[:100], expected="letters, digits, dots, dashes")
    return repo


class Pulls:
    """What is and was fetched since the server started. Of a download that stopped, files that are whole stay.

    Args:
        arrived: called, from another thread, when a model is there.
    """

    def __init__(self, arrived: Callable[[], None]) -> None:
        self.arrived = arrived
        self._lock = threading.Lock()
        self._pulls: list[Pull] = []
        self._cancel = threading.Event()
        self._marks: deque[tuple[float, int]] = deque(maxlen=SPEED_MARKS)

    def listing(self) -> list[Pull]:
        """The newest first."""
        with self._lock:
            return list(reversed(self._pulls))

    def start(self, repo: str, *, revision: str | None = None, variant: str | None = None) -> Pull:
        """Begin to fetch.

        Args:
            repo: owner/name.
            revision: branch, tag or commit.
            variant: which weights to prefer, for example fp16.

        Raises:
            InvalidInput: no name of a repository.
            Conflict: another model is on its way.
        """
        repo = checked_repo(repo, revision=revision, variant=variant)
        with self._lock:
            busy = [pull.repo for pull in self._pulls if pull.state == "running"]
            if busy:
                raise Conflict(
                    "pull", given=f"{busy[0]} on its way", expected="one at a time", cure="Wait, or cancel it."
                )
            self._cancel.clear()
            self._marks.clear()
            pull = Pull(repo=repo, started=time.time(), variant=variant)
            self._pulls = [*self._pulls, pull][-KEPT:]
        threading.Thread(target=self._fetch, args=(repo, revision, variant), daemon=True, name="pull").start()
        return pull

    def cancel(self) -> None:
        """Stop what is on its way; what is on the disk already is used the next time."""
        self._cancel.set()

    def _fetch(self, repo: str, revision: str | None, variant: str | None) -> None:
        try:
            hub.pull(repo, revision=revision, variant=variant, progress=self._report)
        except GouacheError as error:
            if self._cancel.is_set():
                self._change(state="cancelled")
            else:
                self._change(state="failed", error=error)
        except Exception as error:  # The page must say so, whatever it was.
            log.exception("pull failed", extra={"repo": repo})
            said = f"{type(error).__name__}: {error}"[:300]
            self._change(state="failed", error=HubError(repo, given=said, expected="a download that comes to its end"))
        else:
            self.arrived()
            self._change(state="done")

    def _report(self, here: int, total: int) -> None:
        if self._cancel.is_set():
            raise _Cancelled("the user changed their mind")
        self._change(here=here, total=total)

    def _change(
        self,
        *,
        state: DownloadState | None = None,
        here: int | None = None,
        total: int | None = None,
        error: GouacheError | None = None,
    ) -> None:
        now = time.monotonic()
        with self._lock:
            last = self._pulls[-1]
            if here is not None and (not self._marks or now - self._marks[-1][0] >= MARK_SECONDS):
                self._marks.append((now, here))
            self._pulls[-1] = replace(
                last,
                state=state or last.state,
                here=last.here if here is None else here,
                total=last.total if total is None else total,
                speed=0.0 if state else self._speed(),
                error="" if error is None else str(error),
                problem={} if error is None else error.to_dict(),
            )

    def _speed(self) -> float:
        if len(self._marks) < 2:
            return 0.0
        (start, first), (end, last) = self._marks[0], self._marks[-1]
        return max(0.0, (last - first) / (end - start))


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What a pull of a repository would fetch, and on which terms.

    Attributes:
        repo: owner/name.
        licence: the hub's short name of it, for example ``openrail++``; empty if the repository says none.
        licence_link: where its text stands, as the repository says; empty if it doesn't.
        page: the repository's own, where licences are accepted.
        gated: whether the hub asks for a token of an account that accepted the licence.
        files: names and bytes of what would be fetched.
        here: bytes of those that are on the disk.
    """

    repo: str
    licence: str
    licence_link: str
    page: str
    gated: bool
    files: Mapping[str, int]
    here: int

    @property
    def bytes(self) -> int:
        """Of all files."""
        return sum(self.files.values())


def offer_of(repo: str, *, token: str | None = None, revision: str | None = None, variant: str | None = None) -> Offer:
    """What `hub.pull` with the same arguments would fetch; nothing is fetched. Errors as there."""
    info, files = hub.look(repo, token, revision, variant)
    card: Mapping[str, Any] = info.card_data.to_dict() if info.card_data else {}  # type: ignore[no-untyped-call]
    page = f"{hub.endpoint_url()}/{repo}"
    tagged = (tag.removeprefix("license:") for tag in info.tags or [] if tag.startswith("license:"))
    licence = str(card.get("license") or next(tagged, ""))
    if licence in ("", "other"):
        licence = str(card.get("license_name") or licence)
    link = str(card.get("license_link") or "")[:300]
    sizes = {sibling.rfilename: sibling.size or 0 for sibling in info.siblings or []}
    snapshot = hub.hub_cache() / f"models--{repo.replace('/', '--')}" / "snapshots" / str(info.sha)
    here = (path.stat().st_size for name in files if (path := snapshot / name).is_file())
    return Offer(
        repo=repo,
        licence=licence[:100],
        licence_link=link if link.startswith(("https://", "http://")) or not link else f"{page}/blob/main/{link}",
        page=page,
        gated=bool(info.gated),
        files={name: sizes[name] for name in files},
        here=sum(here),
    )
