"""Published files that nobody here wrote, by the names and shapes of their tensors, are what their makers say.

The judge are other programs' lists of what those files hold, and the names that other readers tell them by:
tests/reference/published.toml, with its sources.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

from gouache.checkpoints.networks import plan_network
from gouache.errors import GouacheError, UnknownFamily

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "published_files.py"


def _script() -> Any:
    spec = importlib.util.spec_from_file_location("published_files", SCRIPT)
    assert spec is not None, "no file benchmarks/published_files.py"
    assert spec.loader is not None, "no loader for benchmarks/published_files.py"
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


published = _script()
FILES = {entry["name"]: entry for entry in published.entries("file")}
WHOLE = [
    pytest.param(name, marks=[] if name.endswith("x, one file") else pytest.mark.slow)
    for name, entry in FILES.items()
    if entry["expected"].get("kind") in ("model", "unet", "vae")
]


@pytest.mark.parametrize("name", FILES)
def test_a_published_file_is_what_its_maker_says(name: str) -> None:
    entry = FILES[name]
    found, expected = published.told(published.header_of(entry)), entry["expected"]
    if "refused" in expected:
        assert isinstance(found, GouacheError), f"{found} is taken"
        assert expected["refused"] in str(found)
        assert found.cure, "no word of what to do"
        return
    assert not isinstance(found, GouacheError), str(found)
    assert (found.kind, found.family, found.variant) == (
        expected["kind"],
        expected["family"],
        expected.get("variant", "base"),
    )
    assert expected.get("label", "") in found.label
    assert found.unexplained == ()


@pytest.mark.parametrize("name", WHOLE)
def test_every_tensor_of_it_has_its_place_in_our_networks(name: str) -> None:
    found = published.told(published.header_of(FILES[name]))
    for part in found.parts.values():
        plan_network(part, found.family)


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_what_other_readers_tell_models_by_tells_them_here_too(prefix: str) -> None:
    wrong = {}
    for entry in published.entries("marks"):
        names = " ".join(prefix + name.removeprefix("net.") for name in entry["mark"].split()) if prefix else entry["mark"]
        found = published.told(published.header_of_marks(entry | {"mark": names}))
        if not isinstance(found, UnknownFamily) or entry["refused"] not in str(found.given) or not found.cure:
            wrong[names] = (entry["refused"], str(found)[:150])
    assert not wrong


def test_published_folders_are_taken_or_refused_by_name() -> None:
    for entry in published.entries("folder"):
        found = published.told_of_folder(entry)
        if "refused" not in entry:
            assert found is None, entry["name"]
            continue
        assert entry["refused"] in str(found), entry["name"]
        assert entry["class"] in str(found)
        assert found.cure
