"""Every form that LyCORIS' trainers write: its own modules are the judge, and write the files.

The kind: a LoRA file of another form than up and down was refused ("a GLoRA adapter", "a full difference adapter"), or
lost a part of what it says. Each form of LyCORIS is made by LyCORIS' module, saved by it, and has to change the layer
as the module's own forward does. (Its `get_merged_weight` isn't asked: 4.1.3 has alpha / rank twice there, for LoHa and
LoKr.)
"""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from lycoris.modules import (
    ButterflyOFTModule,
    DiagOFTModule,
    FullModule,
    GLoRAModule,
    IA3Module,
    LoConModule,
    LohaModule,
    LokrModule,
    NormModule,
)
from safetensors.torch import save_file
from torch import Tensor, nn

from gouache.checkpoints.adapters.kinds import find_adapter
from gouache.checkpoints.adapters.layer_names import LoraLayer
from gouache.checkpoints.adapters.lora import Lora, read_lora
from gouache.checkpoints.formats.header import open_header
from gouache.errors import CheckpointError, IncompatibleCheckpoint

if TYPE_CHECKING:
    from tests.checkpoints.adapters.conftest import Layers

LINEAR = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
SQUARE = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
BIASED = "down_blocks.0.attentions.0.transformer_blocks.0.ff.net.2"
CONV = "down_blocks.0.resnets.0.conv1"
POINT = "up_blocks.0.resnets.0.conv_shortcut"
GROUP_NORM = "down_blocks.0.resnets.0.norm1"
LAYER_NORM = "down_blocks.0.attentions.0.transformer_blocks.0.norm2"

LOW: dict[str, Any] = {"lora_dim": 3, "alpha": 1.5}
CASES: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "LoRA": (LoConModule, LINEAR, LOW),
    "LoRA of a convolution": (LoConModule, CONV, LOW),
    "LoRA of a 1x1 convolution": (LoConModule, POINT, LOW),
    "LoRA with a core": (LoConModule, CONV, LOW | {"use_tucker": True}),
    "rsLoRA": (LoConModule, LINEAR, LOW | {"rs_lora": True}),
    "DoRA": (LoConModule, LINEAR, LOW | {"weight_decompose": True}),
    "DoRA of a convolution": (LoConModule, CONV, LOW | {"weight_decompose": True}),
    "DoRA by inputs": (LoConModule, LINEAR, LOW | {"weight_decompose": True, "wd_on_out": False}),
    "LoHa": (LohaModule, LINEAR, LOW),
    "LoHa of a convolution": (LohaModule, CONV, LOW),
    "LoHa with cores": (LohaModule, CONV, LOW | {"use_tucker": True}),
    "LoHa with magnitudes": (LohaModule, LINEAR, LOW | {"weight_decompose": True}),
    "LoKr": (LokrModule, BIASED, LOW | {"factor": 4}),
    "LoKr of a convolution": (LokrModule, CONV, LOW | {"factor": 2}),
    "LoKr with a core": (LokrModule, CONV, LOW | {"factor": 2, "use_tucker": True}),
    "LoKr of two products": (LokrModule, BIASED, {"lora_dim": 1, "alpha": 0.5, "factor": 8, "decompose_both": True}),
    "LoKr of whole factors": (LokrModule, BIASED, {"lora_dim": 100000, "alpha": 1, "factor": 4}),
    "LoKr with magnitudes": (LokrModule, BIASED, LOW | {"factor": 4, "weight_decompose": True}),
    "GLoRA": (GLoRAModule, LINEAR, LOW),
    "GLoRA of a square layer": (GLoRAModule, SQUARE, LOW),
    "GLoRA of a convolution": (GLoRAModule, CONV, LOW),
    "full": (FullModule, LINEAR, {}),
    "full with a bias": (FullModule, BIASED, {}),
    "full of a convolution": (FullModule, CONV, {}),
    "norm": (NormModule, GROUP_NORM, {}),
    "norm of a layer": (NormModule, LAYER_NORM, {}),
    "OFT": (DiagOFTModule, LINEAR, {"lora_dim": 4}),
    "OFT of a convolution": (DiagOFTModule, CONV, {"lora_dim": 4}),
    "OFT within a bound": (DiagOFTModule, LINEAR, {"lora_dim": 4, "constraint": 0.1}),
    "OFT with factors": (DiagOFTModule, LINEAR, {"lora_dim": 4, "rescaled": True}),
    "BOFT": (ButterflyOFTModule, LINEAR, {"lora_dim": 4}),
    "BOFT of a convolution": (ButterflyOFTModule, CONV, {"lora_dim": 2}),
    "BOFT within a bound": (ButterflyOFTModule, LINEAR, {"lora_dim": 4, "constraint": 0.1}),
    "BOFT with factors": (ButterflyOFTModule, BIASED, {"lora_dim": 4, "rescaled": True}),
    "IA3": (IA3Module, LINEAR, {}),
    "IA3 of inputs": (IA3Module, LINEAR, {"train_on_input": True}),
    "IA3 of a convolution": (IA3Module, CONV, {}),
}


def trained(layer: nn.Module, case: str) -> Any:
    """LyCORIS' module for a layer, with random numbers in place of training."""
    kind, _, options = CASES[case]
    module = kind("x", copy.deepcopy(layer), **options)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        if kind is FullModule:
            module.apply_to()
            for parameter in module.parameters():
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
            return module
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            about_one = "dora_scale" in name or "rescale" in name
            parameter.copy_(parameter * (1 + 0.1 * noise) if about_one else 0.8 * noise)
    return module


def write(folder: Path, place: str, state: dict[str, Tensor]) -> Path:
    path = folder / "adapter.safetensors"
    key = f"lora_unet_{place.replace('.', '_')}"
    save_file({f"{key}.{role}": tensor.detach().clone().contiguous() for role, tensor in state.items()}, path)
    return path


def merged(lora: Lora, layers: Layers, place: str, parameter: str) -> Tensor:
    own = layers.module(place).get_parameter(parameter).detach()
    change = lora.changes.get(LoraLayer("unet", 0, place, parameter))
    return own if change is None else own + change.difference(own)


def something_for(layer: nn.Module) -> Tensor:
    shape = layer.get_parameter("weight").shape
    flat = (2, 5, shape[-1]) if isinstance(layer, nn.Linear | nn.LayerNorm) else (2, shape[len(shape) > 1], 6, 6)
    return torch.randn(flat, generator=torch.Generator().manual_seed(4))


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_a_layer_changes_as_lycoris_changes_it(layers: Layers, tmp_path: Path, case: str) -> None:
    place = CASES[case][1]
    plain = layers.module(place)
    judge = trained(plain, case)
    path = write(tmp_path, place, judge.state_dict())
    lora = read_lora(path, layers.names, "sdxl")
    ours = copy.deepcopy(plain)
    for name, _ in plain.named_parameters():
        ours.register_parameter(name, nn.Parameter(merged(lora, layers, place, name)))
    x = something_for(plain)
    wanted, found, before = judge(x), ours(x), plain(x)
    scale = float(wanted.abs().max())
    assert float((wanted - before).abs().max()) > 1e-2 * scale
    assert float((wanted - found).abs().max()) <= 1e-5 * scale
    assert lora.notes == ()
    header = open_header(path)
    told = find_adapter(header.tensors, header.metadata)
    assert told is not None
    assert told.kind == "lora"


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn])
@pytest.mark.parametrize("case", ["LoRA", "LoHa", "LoKr", "GLoRA", "OFT", "IA3", "full"])
def test_number_formats(layers: Layers, tmp_path: Path, dtype: torch.dtype, case: str) -> None:
    """The same file in another format gives the change of its rounded numbers; alpha is one number, with any shape."""
    place = CASES[case][1]
    state = {name: tensor.detach() for name, tensor in trained(layers.module(place), case).state_dict().items()}
    rounded = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    if "alpha" in rounded:
        rounded["alpha"] = rounded["alpha"].reshape(1)
    plain = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in rounded.items()}
    first = merged(read_lora(write(tmp_path, place, rounded), layers.names, "sdxl"), layers, place, "weight")
    second = merged(read_lora(write(tmp_path, place, plain), layers.names, "sdxl"), layers, place, "weight")
    assert torch.allclose(first, second, atol=1e-6)


@torch.no_grad()
def test_glora_of_lycoris_1_has_its_halves_the_other_way_round(layers: Layers, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(2)
    shapes = {"a1": (3, 56), "a2": (56, 3), "b1": (3, 56), "b2": (16, 3)}
    old = {f"{role}.weight": torch.randn(*shape, generator=generator) for role, shape in shapes.items()}
    old["alpha"] = torch.tensor(6.0)
    weight = layers.module(LINEAR).get_parameter("weight")
    a1, a2, b1, b2 = (old[f"{role}.weight"] for role in shapes)
    wanted = weight + 2 * (b2 @ b1 + weight @ a2 @ a1)
    found = merged(read_lora(write(tmp_path, LINEAR, old), layers.names, "sdxl"), layers, LINEAR, "weight")
    assert torch.allclose(found, wanted, atol=1e-3)


@torch.no_grad()
def test_a_bias_for_a_layer_without_one(layers: Layers, tmp_path: Path) -> None:
    path = write(tmp_path, SQUARE, {"diff_b": torch.ones(16)})
    lora = read_lora(path, layers.names, "sdxl")
    (layer,) = lora.changes
    assert (layer.name, layer.parameter) == (SQUARE, "bias")


@pytest.mark.parametrize(
    ("state", "told"),
    [
        ({"oft_diag": torch.ones(4, 4, 4)}, "half of a change"),
        ({"oft_blocks": torch.ones(4, 3, 3)}, r"OFT \[4, 3, 3\]"),
        ({"oft_blocks": torch.ones(4, 4, 4, 4)}, r"BOFT \[4, 4, 4, 4\]"),
        ({"a1.weight": torch.ones(56, 3), "b1.weight": torch.ones(16, 3)}, "half of a change"),
        ({"on_input": torch.tensor(0)}, "half of a change"),
        ({"weight": torch.ones(5), "on_input": torch.tensor(0)}, "IA3 of 5 outputs"),
        ({"weight": torch.ones(16, 56)}, "a layer's own, and no change of it"),
        ({"diff": torch.ones(16, 55)}, r"difference \[16, 55\]"),
        ({"dora_scale": torch.ones(16, 1), "diff": torch.ones(16, 56)}, "half of a change"),
        ({"q_layer.weight": torch.ones(3, 56), "lambda_layer": torch.ones(1, 3)}, "match no layer"),
        ({"lora_up.weight": torch.ones(16, 3), "lora_A.weight": torch.ones(4, 56)}, r"LoRA \[16, 3\] x \[4, 56\]"),
        ({"alpha": torch.tensor(1.0)}, "half of a change"),
        ({"oft_R.weight": torch.ones(4, 7)}, r"OFT \[4, 7\] of the inputs"),
    ],
)
def test_what_makes_no_change_is_named(layers: Layers, tmp_path: Path, state: dict[str, Tensor], told: str) -> None:
    with pytest.raises(IncompatibleCheckpoint, match=told) as caught:
        read_lora(write(tmp_path, LINEAR, state), layers.names, "sdxl")
    assert "another family" not in str(caught.value)


ROLES = (
    *(
        "lora_down.weight",
        "lora_up.weight",
        "lora_mid.weight",
        "lora_A.weight",
        "lora_B.weight",
        "lora_B.bias",
        "alpha",
    ),
    *(
        "hada_w1_a",
        "hada_w1_b",
        "hada_w2_a",
        "hada_w2_b",
        "hada_t1",
        "hada_t2",
        "dora_scale",
        "scale",
        "weight",
        "bias",
    ),
    *("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2", "on_input", "rescale"),
    *(
        "a1.weight",
        "a2.weight",
        "b1.weight",
        "b2.weight",
        "diff",
        "diff_b",
        "w_norm",
        "b_norm",
        "oft_blocks",
        "oft_diag",
    ),
    *("oft_R.weight", "boft_R", "boft_s", "ia3_l", "lora_magnitude_vector.weight"),
)
FORMS = (
    *(("lora_down.weight", "lora_up.weight"), ("lora_down.weight", "lora_up.weight", "lora_mid.weight")),
    *(("lora_down.weight", "lora_up.weight", "dora_scale"), ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")),
    *(("lokr_w1", "lokr_w2"), ("lokr_w1", "lokr_w2_a", "lokr_w2_b", "lokr_t2"), ("weight", "on_input"), ("diff",)),
    *(("a1.weight", "a2.weight", "b1.weight", "b2.weight"), ("oft_blocks", "rescale"), ("oft_R.weight",), ("ia3_l",)),
    *(("boft_R", "boft_s"), ("w_norm", "b_norm"), ("diff_b",), ("weight", "bias")),
)


@torch.no_grad()
def test_files_of_any_shapes_end_in_changes_or_typed_errors(layers: Layers, tmp_path: Path) -> None:
    """600 files: whole forms and loose roles with random shapes, for layers of every kind."""
    draw = random.Random(1)
    accepted = 0
    for _ in range(600):
        place = draw.choice((LINEAR, SQUARE, BIASED, CONV, POINT, GROUP_NORM, LAYER_NORM, "conv_in"))
        roles = draw.choice(FORMS) if draw.random() < 0.8 else draw.sample(ROLES, draw.randint(1, 5))
        sizes = (1, 2, *layers.module(place).get_parameter("weight").shape)
        counts = (0, 1, 1, 2, 2, 2, 2, 3, 4)
        state = {role: torch.full([draw.choice(sizes) for _ in range(draw.choice(counts))], 0.1) for role in roles}
        if draw.random() < 0.5:
            state["alpha"] = torch.tensor(1.0)
        prefix = draw.choice(("lora_unet_", "base_model.model."))
        key = place.replace(".", "_") if prefix == "lora_unet_" else place
        path = tmp_path / "film.safetensors"
        save_file({f"{prefix}{key}.{role}": tensor for role, tensor in state.items()}, path)
        try:
            lora = read_lora(path, layers.names, "sdxl")
        except CheckpointError:
            continue
        accepted += 1
        for layer, change in lora.changes.items():
            shape = layers.names.shapes[layer]
            assert change.difference(torch.ones(shape)).shape == torch.Size(shape)
    assert accepted
