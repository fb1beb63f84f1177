"""Errors that are stored or sent come back as what they were."""

from __future__ import annotations

import importlib
import json
import pkgutil
from collections.abc import Iterator

import pytest

import gouache.serve
from gouache.errors import CheckpointError, CorruptCheckpoint, GouacheError, InvalidInput, QueueFull

for _module in pkgutil.walk_packages(gouache.serve.__path__, "gouache.serve."):
    if ".page" not in _module.name:
        importlib.import_module(_module.name)


def kinds(kind: type[GouacheError] = GouacheError) -> Iterator[type[GouacheError]]:
    yield kind
    for narrower in kind.__subclasses__():
        yield from kinds(narrower)


KINDS = sorted(set(kinds()), key=lambda kind: kind.__name__)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_error_comes_back_from_json(kind: type[GouacheError]) -> None:
    error = kind("steps", given=0, expected="a number above 0", cure="Ask for more.")
    stored = json.dumps(error.to_dict())
    found = GouacheError.from_dict(json.loads(stored))
    assert type(found) is kind
    assert found.to_dict() == error.to_dict()
    assert (str(found), found.exit_code) == (str(error), error.exit_code)


def test_no_two_kinds_share_a_name() -> None:
    assert len({kind.__name__ for kind in KINDS}) == len(KINDS)


def test_what_older_and_newer_versions_stored_is_read() -> None:
    old = {"kind": "NotYetKnown", "where": "a", "given": "b", "expected": "c", "cure": ""}
    assert type(GouacheError.from_dict(old)) is GouacheError
    assert str(GouacheError.from_dict(old)) == "a: given b, expected c."
    assert type(GouacheError.from_dict({})) is GouacheError


def test_an_error_is_read_as_the_kind_that_is_asked_for() -> None:
    corrupt = CorruptCheckpoint("a.ckpt", given="b", expected="c").to_dict()
    assert type(CheckpointError.from_dict(corrupt)) is CorruptCheckpoint
    assert type(InvalidInput.from_dict(corrupt)) is InvalidInput
    assert QueueFull.from_dict(QueueFull("queue", given=1, expected="fewer").to_dict()).retry_after == 30
