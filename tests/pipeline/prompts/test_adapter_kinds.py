"""LoHa, LoKr and DoRA files: peft is the judge, on the same random weights."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from peft import LoHaConfig, LoKrConfig, LoraConfig, inject_adapter_in_model
from safetensors.torch import save_file
from torch import Tensor, nn

from gouache.checkpoints.adapters.deltas import Decomposed, LowRank
from gouache.checkpoints.adapters.library import AdapterFolder, list_adapters
from gouache.errors import IncompatibleCheckpoint
from gouache.models.bundle import ModelBundle
from gouache.pipeline.pipeline import Pipeline
from gouache.pipeline.request import Request

if TYPE_CHECKING:
    from tests.pipeline.twins import Pair, Twins

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
]

RANK, ALPHA = 2, 3.0
LAYERS = ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "ff.net.2", "conv1", "conv2", "conv_shortcut"]
COMMON: dict[str, Any] = {"target_modules": LAYERS, "r": RANK}
KINDS: dict[str, Any] = {
    "LoHa": LoHaConfig(**COMMON, alpha=ALPHA, init_weights=False),
    "LoHa with cores": LoHaConfig(**COMMON, alpha=ALPHA, init_weights=False, use_effective_conv2d=True),
    "LoKr": LoKrConfig(**COMMON, alpha=ALPHA, init_weights=False, decompose_factor=2),
    "LoKr with cores": LoKrConfig(
        **COMMON, alpha=ALPHA, init_weights=False, use_effective_conv2d=True, decompose_factor=2
    ),
    "LoKr of two products": LoKrConfig(
        **{**COMMON, "r": 1}, alpha=ALPHA, init_weights=False, decompose_both=True, decompose_factor=4
    ),
    "LoKr of whole factors": LoKrConfig(**{**COMMON, "r": 64}, alpha=64, init_weights=False),
    "DoRA": LoraConfig(**COMMON, lora_alpha=ALPHA, init_lora_weights=False, use_dora=True),
}


def trained(pair: Pair, kind: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """Their U-Net with an adapter of random weights, and the adapter's tensors by layer and role in PEFT's names."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        network = inject_adapter_in_model(KINDS[kind], copy.deepcopy(pair.theirs.unet)).eval()
    tensors = {}
    for name, parameter in network.named_parameters():
        if ".default" not in name:
            continue
        if "magnitude" in name:
            parameter.data.mul_(torch.linspace(0.6, 1.5, parameter.numel()).reshape(parameter.shape))
        tensors[name.replace(".default", "")] = parameter.detach().clone().contiguous()
    assert tensors
    return network, tensors


ROLES = {"lora_A.weight": "lora_down.weight", "lora_B.weight": "lora_up.weight"}


def in_kohyas_names(tensors: dict[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """As kohya's trainer and LyCORIS write them, with an alpha for each layer."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        mark = next(mark for mark in (".lora_", ".hada_", ".lokr_") if mark in name)
        layer, role = name.split(mark, 1)
        role = mark[1:] + role
        if "magnitude" in role:
            role, tensor = "dora_scale", tensor.reshape(-1, *(1 for _ in range(3 if tensor.ndim > 1 else 1)))
        key = f"lora_unet_{layer.replace('.', '_')}"
        found[f"{key}.{ROLES.get(role, role)}"] = tensor
        found[f"{key}.alpha"] = torch.tensor(alpha)
    return found


def merged(pair: Pair, folder: Path, prompt: str) -> ModelBundle:
    pipeline = Pipeline(pair.ours.bundle)
    pipeline.adapters.folder = AdapterFolder(folder)
    return pipeline.adapters.apply(Request(prompt=prompt)).bundle


def written(folder: Path, name: str, tensors: dict[str, Tensor]) -> None:
    (folder / "adapters").mkdir(exist_ok=True)
    save_file(tensors, folder / "adapters" / f"{name}.safetensors")


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_the_network_gives_what_pefts_gives(twins: Twins, kind: str, tmp_path: Path) -> None:
    pair = twins.of("sd1")
    theirs, tensors = trained(pair, kind)
    alpha = float(getattr(KINDS[kind], "lora_alpha", None) or KINDS[kind].alpha)
    written(tmp_path, "kohya", in_kohyas_names(tensors, alpha))
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(1, 4, 8, 8, generator=generator)
    context = torch.randn(1, 77, 32, generator=generator)
    wanted = theirs(x, 321, context).sample
    plain = pair.ours.bundle.unet(x, torch.tensor([321.0]), context)
    found = merged(pair, tmp_path, "<lora:kohya>").unet(x, torch.tensor([321.0]), context)
    assert (found - wanted).abs().max() <= 2e-5 * max(1.0, float(wanted.abs().max()))
    assert (found - plain).abs().max() > 1e-2
    (told,) = list_adapters(tmp_path)
    assert told.label.startswith(kind.split(" ")[0])
    assert "of the U-Net" in told.label


@torch.no_grad()
@pytest.mark.parametrize("kind", ["LoHa", "LoKr", "DoRA"])
def test_pefts_own_names(twins: Twins, kind: str, tmp_path: Path) -> None:
    """A file in PEFT's names has no alpha, which means that it is the rank."""
    pair = twins.of("sd1")
    _, tensors = trained(pair, kind)
    written(tmp_path, "peft", {f"base_model.model.{name}": tensor for name, tensor in tensors.items()})
    written(tmp_path, "kohya", in_kohyas_names(tensors, RANK))
    first, second = (merged(pair, tmp_path, f"<lora:{name}>").unet.state_dict() for name in ("peft", "kohya"))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("by_output", [True, False])
def test_magnitudes_of_outputs_and_of_inputs(by_output: bool) -> None:
    """Rows (or columns) of the result have exactly the magnitudes, and the direction of the changed weight."""
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(6, 4, 3, 3, generator=generator)
    up, down = torch.randn(6, 2, 1, 1, generator=generator), torch.randn(2, 4, 3, 3, generator=generator)
    magnitude = torch.rand(6 if by_output else 4, generator=generator) + 0.5
    inner = LowRank(down, up, None, 0.7)
    result = weight + Decomposed(inner, magnitude, by_output).difference(weight)
    axis = 0 if by_output else 1
    rows = result.movedim(axis, 0).flatten(1)
    assert torch.allclose(rows.norm(dim=1), magnitude, atol=1e-5)
    changed = (weight + inner.difference(weight)).movedim(axis, 0).flatten(1)
    assert torch.allclose(rows / rows.norm(dim=1, keepdim=True), changed / changed.norm(dim=1, keepdim=True), atol=1e-5)


def test_a_prompts_weight_scales_the_finished_change(tiny: ModelBundle, tmp_path: Path) -> None:
    """As in A1111 and ComfyUI: half of a DoRA is half the way to it. LyCORIS's magnitudes stand along the inputs."""
    place = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    key = f"lora_unet_{place.replace('.', '_')}"
    generator = torch.Generator().manual_seed(2)
    scale = torch.rand(1, 16, generator=generator) + 0.5
    tensors = {
        f"{key}.lora_down.weight": torch.randn(2, 16, generator=generator),
        f"{key}.lora_up.weight": torch.randn(16, 2, generator=generator),
        f"{key}.dora_scale": scale,
    }
    written(tmp_path, "dora", tensors)
    pipeline = Pipeline(tiny)
    pipeline.adapters.folder = AdapterFolder(tmp_path)
    own = tiny.unet.get_submodule(place).get_parameter("weight")
    whole, half = (
        pipeline.adapters.apply(Request(prompt=f"<lora:dora:{weight}>")).bundle.unet.get_submodule(place)
        for weight in (1, 0.5)
    )
    assert torch.allclose(whole.get_parameter("weight").norm(dim=0), scale[0], atol=1e-5)
    assert torch.allclose(half.get_parameter("weight"), (own + whole.get_parameter("weight")) / 2, atol=1e-6)


def broken(kind: str) -> dict[str, Tensor]:
    key = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    loha = {
        f"{key}.hada_w{k}_{half}": torch.ones(16, 2) if half == "a" else torch.ones(2, 16)
        for k in (1, 2)
        for half in "ab"
    }
    lokr = {
        f"{key}.lokr_w1": torch.ones(4, 4),
        f"{key}.lokr_w2_a": torch.ones(4, 2),
        f"{key}.lokr_w2_b": torch.ones(2, 4),
    }
    return {
        "LoHa without a half": {name: tensor for name, tensor in loha.items() if not name.endswith("w2_b")},
        "LoHa with one core": loha | {f"{key}.hada_t1": torch.ones(2, 2, 3, 3)},
        "LoHa of another shape": loha | {f"{key}.hada_w2_b": torch.ones(2, 15)},
        "LoHa whose factors don't meet": loha | {f"{key}.hada_w1_b": torch.ones(3, 16)},
        "LoKr without a half": {name: tensor for name, tensor in lokr.items() if not name.endswith("w2_b")},
        "LoKr of another shape": lokr | {f"{key}.lokr_w1": torch.ones(4, 5)},
        "LoKr twice": lokr | {f"{key}.lokr_w2": torch.ones(4, 4)},
        "LoKr and LoHa": lokr | loha,
        "magnitudes alone": {f"{key}.dora_scale": torch.ones(16, 1)},
        "magnitudes of another count": lokr | {f"{key}.dora_scale": torch.ones(15, 1)},
        "empty": lokr | {f"{key}.lokr_w1": torch.ones(0, 4)},
    }[kind]


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("LoHa without a half", "half of a change"),
        ("LoHa with one core", "half of a change"),
        ("LoHa of another shape", r"LoHa \[16, 16\] \* \[16, 15\]"),
        ("LoHa whose factors don't meet", "another shape"),
        ("LoKr without a half", "half of a change"),
        ("LoKr of another shape", r"LoKr \[4, 5\] x \[4, 4\]"),
        ("LoKr twice", "half of a change"),
        ("LoKr and LoHa", "half of a change"),
        ("magnitudes alone", "half of a change"),
        ("magnitudes of another count", "15 magnitudes"),
        ("empty", "bad alpha"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(tiny: ModelBundle, tmp_path: Path, kind: str, told: str) -> None:
    written(tmp_path, "bad", broken(kind))
    pipeline = Pipeline(tiny)
    pipeline.adapters.folder = AdapterFolder(tmp_path)
    with pytest.raises(IncompatibleCheckpoint, match=told):
        pipeline.run(Request(prompt="a cat <lora:bad>"))
