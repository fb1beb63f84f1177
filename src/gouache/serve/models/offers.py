"""What a repository of the hub offers, before anything of it is fetched: files, sizes, licence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gouache.checkpoints import hub


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
