"""Published files that nobody here wrote, by the names and shapes of their tensors, are what their makers say.

The judge are other programs' lists of what those files hold, and the names that other readers tell them by:
tests/reference/published.toml, with its sources.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from gouache.checkpoints.identify import identify
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
        assert expected["refused"] in f"{found.given} {found.cure}"
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


@pytest.mark.parametrize("name", ["Stable Diffusion 1.x, one file", "SDXL, one file", "FLUX.1 dev, one file"])
def test_a_file_with_that_header_is_named_the_same(name: str, tmp_path: Path) -> None:
    """On the disk, in its full size; the numbers are holes."""
    header = published.header_of(FILES[name])
    entries, position = {}, 0
    for tensor, info in header.tensors.items():
        entries[tensor] = {
            "dtype": info.dtype,
            "shape": list(info.shape),
            "data_offsets": [position, position + info.bytes],
        }
        position += info.bytes
    text = json.dumps(entries).encode()
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + position)
    wanted = published.told(header)
    if isinstance(wanted, GouacheError):
        with pytest.raises(type(wanted)) as caught:
            identify(path)
        assert caught.value.given == wanted.given
    else:
        found = identify(path)
        assert (found.kind, found.family, found.variant) == (wanted.kind, wanted.family, wanted.variant)


@pytest.mark.parametrize("name", WHOLE)
def test_every_tensor_of_it_has_its_place_in_our_networks(name: str) -> None:
    found = published.told(published.header_of(FILES[name]))
    for part in found.parts.values():
        plan_network(part, found.family)


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_what_other_readers_tell_models_by_tells_them_here_too(prefix: str) -> None:
    """As published, and as ComfyUI's single files have the same denoisers."""
    wrong = {}
    for entry in published.entries("marks"):
        if prefix and entry.get("alone"):  # no denoiser
            continue
        names = entry["mark"]
        if prefix:
            names = " ".join(prefix + name.removeprefix("net.") for name in names.split())
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
        assert found is not None, entry["name"]
        assert entry["refused"] in found.given, entry["name"]
        assert entry["class"] in found.given
        assert found.cure
