"""The exception tree.

Every error of gouache names four things: *where* it arose, what was *given*, what was *expected*, and the *cure*
(what to do about it). The command line prints them and leaves with `exit_code`; the server turns them into a reply.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import Self, TypeVar

_Kind = TypeVar("_Kind", bound="GouacheError")


class GouacheError(Exception):
    """Base of every error that gouache raises on purpose.

    Args:
        where: the place: an argument's name, a file, a stage of training.
        given: what was found there (anything with a short `str`).
        expected: what would have been right, as a noun phrase.
        cure: what to do, as an imperative sentence.
    """

    exit_code = 2

    def __init__(self, where: str, *, given: object, expected: str, cure: str = "") -> None:
        self.where = where
        self.given = given
        self.expected = expected
        self.cure = cure
        sentence = f"{where}: given {given}, expected {expected}."
        super().__init__(f"{sentence} {cure}" if cure else sentence)

    def to_dict(self) -> dict[str, str]:
        """The error as every interface shows it and the server stores it; `from_dict` reads it back."""
        return {
            "kind": type(self).__name__,
            "where": self.where,
            "given": str(self.given),
            "expected": self.expected,
            "cure": self.cure,
            "message": str(self),
        }

    @classmethod
    def from_dict(cls, parts: Mapping[str, str]) -> Self:
        """The error that `to_dict` described, in another process or at another time.

        A kind that this process does not know, or that is no kind of `cls`, becomes a `cls`: what another version
        stored must still be readable.
        """
        known = {kind.__name__: kind for kind in _kinds_of(cls)}
        return known.get(parts.get("kind", ""), cls)(
            parts.get("where", ""),
            given=parts.get("given", ""),
            expected=parts.get("expected", ""),
            cure=parts.get("cure", ""),
        )


class InvalidInput(GouacheError, ValueError):
    """An argument has a value that can't be used."""


class UnknownName(InvalidInput):
    """A name that is not in the list of known ones; the nearest known name is offered."""


class ShapeMismatch(InvalidInput):
    """Two tensors, or a tensor and a network, do not fit together."""


class ConfigError(InvalidInput):
    """A config with an unknown key or a value out of range."""


class PictureError(InvalidInput):
    """A file or string that should hold a picture and doesn't, or holds one that is over a limit."""


class RecipeError(GouacheError):
    """A picture's recipe is absent or can't be read."""


class CheckpointError(GouacheError):
    """A weight file can't be used. `where` is its path."""


class CorruptCheckpoint(CheckpointError):
    """The file is truncated, damaged, or not what its header says."""


class UnsafeCheckpoint(CheckpointError):
    """The file would run code if it were unpickled; it was not."""


class IncompatibleCheckpoint(CheckpointError):
    """The file's tensors do not fit the network: keys are missing, unexpected or mis-shaped."""


class UnknownFamily(CheckpointError):
    """The file's tensors belong to no family that gouache knows."""


class ModelNotFound(GouacheError):
    """No model at the given path or under the given name."""

    exit_code = 3


class HubError(GouacheError):
    """The model hub refused, or can't be reached (or must not be: `GOUACHE_OFFLINE=1`)."""

    exit_code = 3


class DeviceUnavailable(GouacheError):
    """The wanted device is not on this machine, or ran out of memory."""


class EngineError(GouacheError):
    """The chosen engine can't run a network, or can't do what a request asks for."""


class DataError(GouacheError):
    """A data set can't be read, or holds nothing to train on."""


class TrainingError(GouacheError):
    """A training run can't start or go on."""


class NonFiniteLoss(TrainingError):
    """A loss, gradient or weight became NaN or infinite."""


class MissingDependency(GouacheError):
    """An optional package is needed and not installed."""


class ClusterError(GouacheError):
    """A cluster can't be reached, lost what it can't do without, or gave back something that is not what was asked."""

    exit_code = 3


class StoreError(GouacheError):
    """The studio's store refused or can't be used."""


class StoreAway(StoreError):
    """The store or its disk can't be used at this moment: stopped, locked, full. The same may work a little later."""

    retry_after = 2
    """Seconds after which to try again."""


class StoreRefused(StoreAway):
    """The object store answers, and does not let this server in: no such bucket, or no permission."""


class NotFound(StoreError):
    """The studio has no job, picture, board or preset of this name."""


class Conflict(StoreError):
    """The job or key is in a state in which this can't be done."""


class QueueFull(StoreError):
    """The queue, or one user's share of it, is full. Nothing was accepted."""

    retry_after = 30
    """Seconds after which to try again."""


class WorkerError(StoreError):
    """A fault in a worker process that no other kind describes: a crash, or too little memory."""


class Interrupted(GouacheError):
    """The user stopped the work; what was finished is kept."""

    exit_code = 130


def _kinds_of(kind: type[_Kind]) -> Iterator[type[_Kind]]:
    yield kind
    for narrower in kind.__subclasses__():
        yield from _kinds_of(narrower)


def unknown_name(where: str, given: str, known: Iterable[str]) -> UnknownName:
    """Build the error for a name that is not in `known`, offering the nearest one.

    Args:
        where: what kind of name it is, for example ``"sampler"``.
        given: the name as it was given.
        known: every name that would have been accepted.
    """
    names = sorted(known)
    folded = {name.casefold(): name for name in names}
    near = difflib.get_close_matches(given.casefold(), folded, n=1, cutoff=0.5)
    cure = f"Did you mean {folded[near[0]]!r}?" if near else "Choose one of them."
    return UnknownName(where, given=repr(given), expected=f"one of {', '.join(names)}", cure=cure)
