"""Loading what diffusers and transformers wrote."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from gouache.checkpoints.load import identify, load_bundle

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
Published = Callable[[str], Path]


def test_a_folder_of_each_family_is_told_apart(published: Published, family: str) -> None:
    identity = identify(published(family))
    expected, _, rest = family.partition("-")
    assert identity.kind == "model"
    assert identity.layout == "diffusers"
    assert identity.family == ("sdxl-refiner" if rest == "refiner" else expected)
    assert identity.variant == (rest if rest in ("inpainting", "instruct") else "base")
    assert identity.prediction == ("v" if rest == "v" else "eps")


def test_a_folder_of_each_family_loads_bit_for_bit(published: Published, family: str) -> None:
    folder = published(family)
    bundle = load_bundle(folder)
    for part, network in (("unet", bundle.unet), ("vae", bundle.vae)):
        wanted = load_file(folder / part / "diffusion_pytorch_model.safetensors")
        found = network.state_dict()
        assert set(found) == set(wanted)
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
