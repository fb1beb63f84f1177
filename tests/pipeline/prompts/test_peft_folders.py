"""PEFT's own folders: ``adapter_model.safetensors`` with ``adapter_config.json``. peft trains, saves and judges.

The kind: what PEFT writes beside the tensors was not read. alpha / rank was taken as 1, whatever the folder said (a
quarter of the change for alpha 16 and rank 4), and every such file has the same name, so that two of them collided.
"""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from peft import (
    BOFTConfig,
    IA3Config,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    OFTConfig,
    PeftModel,
    VeraConfig,
    get_peft_model,
)
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from typer.testing import CliRunner

from gouache.checkpoints.adapters.library import AdapterFolder, list_adapters
from gouache.cli.main import app
from gouache.errors import IncompatibleCheckpoint, InvalidInput
from gouache.pipeline.pipeline import Pipeline
from gouache.pipeline.prompts.adapters import Adapted
from gouache.pipeline.request import Request

if TYPE_CHECKING:
    from tests.pipeline.twins import Pair, Twins

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]

LAYERS = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.2"]
BOTH = [*LAYERS, "conv1", "conv_shortcut"]
LORA: dict[str, Any] = {"r": 4, "lora_alpha": 16, "init_lora_weights": False, "target_modules": BOTH}
HADAMARD: dict[str, Any] = {"r": 4, "alpha": 2, "init_weights": False, "target_modules": BOTH}
PATTERNS: dict[str, Any] = {
    "rank_pattern": {"to_q": 2, "attn2.to_k": 6, "^mid_block.*to_v": 3},
    "alpha_pattern": {"to_v": 5, r"down_blocks\.0\..*conv1": 1},
}
KINDS: dict[str, Any] = {
    "LoRA": LoraConfig(**LORA),
    "LoRA, alpha below the rank": LoraConfig(**LORA | {"lora_alpha": 1}),
    "rsLoRA": LoraConfig(**LORA, use_rslora=True),
    "rsLoRA with patterns": LoraConfig(**LORA, **PATTERNS, use_rslora=True),
    "LoRA with patterns": LoraConfig(**LORA, **PATTERNS),
    "DoRA": LoraConfig(**LORA, use_dora=True),
    "LoRA with biases": LoraConfig(**LORA, lora_bias=True),
    "LoRA of one name": LoraConfig(**LORA | {"target_modules": r".*down_blocks.*\.to_q"}),
    "LoRA beside a whole layer": LoraConfig(**LORA, modules_to_save=["conv_in"]),
    "LoHa": LoHaConfig(**HADAMARD),
    "LoHa with patterns": LoHaConfig(**HADAMARD, **PATTERNS),
    "LoHa with cores": LoHaConfig(**HADAMARD, use_effective_conv2d=True),
    "LoKr": LoKrConfig(**HADAMARD, decompose_factor=2),
    "LoKr of whole factors": LoKrConfig(**HADAMARD | {"r": 64}, decompose_factor=4),
    "LoKr of two products": LoKrConfig(**HADAMARD | {"r": 1}, decompose_both=True, decompose_factor=4),
    "LoKr with patterns": LoKrConfig(**HADAMARD, **PATTERNS, decompose_factor=2),
    "IA3": IA3Config(target_modules=BOTH, feedforward_modules=["ff.net.2", "conv1"], init_ia3_weights=False),
    "OFT": OFTConfig(oft_block_size=4, r=0, init_weights=False, target_modules=LAYERS),
    "OFT of convolutions": OFTConfig(oft_block_size=8, r=0, init_weights=False, target_modules=["conv1"]),
    "OFT, exact": OFTConfig(oft_block_size=8, r=0, init_weights=False, target_modules=LAYERS, use_cayley_neumann=False),
    "OFT of three terms": OFTConfig(
        oft_block_size=4, r=0, init_weights=False, target_modules=LAYERS, num_cayley_neumann_terms=3
    ),
    "OFT, one block": OFTConfig(oft_block_size=4, r=0, init_weights=False, target_modules=LAYERS, block_share=True),
    "OFT within a radius": OFTConfig(
        oft_block_size=4, r=0, init_weights=False, target_modules=LAYERS, coft=True, eps=0.1
    ),
    "BOFT": BOFTConfig(boft_block_size=4, init_weights=False, target_modules=LAYERS),
}


def trained(pair: Pair, kind: str, folder: Path) -> Any:
    """Their U-Net with an adapter of random weights, saved by PEFT."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        network = get_peft_model(copy.deepcopy(pair.theirs.unet), KINDS[kind]).eval()
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                if "magnitude" in name or ("modules_to_save" in name):
                    parameter.mul_(torch.linspace(0.6, 1.5, parameter.numel()).reshape(parameter.shape))
                elif "ia3_l" in name:
                    parameter.copy_(torch.rand(parameter.shape) + 0.5)
                elif "lora_B" in name and name.endswith("bias"):
                    parameter.copy_(torch.randn(parameter.shape))
    assert isinstance(network, PeftModel)
    network.save_pretrained(folder)
    assert (folder / "adapter_model.safetensors").is_file()
    return network


def adapted(pair: Pair, folder: Path, prompt: str) -> Adapted:
    pipeline = Pipeline(pair.ours.bundle)
    pipeline.adapters.folder = AdapterFolder(folder)
    return pipeline.adapters.apply(Request(prompt=prompt))


def assert_same(pair: Pair, theirs: nn.Module, found: Adapted) -> None:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(1, 4, 8, 8, generator=generator)
    context = torch.randn(1, 77, 32, generator=generator)
    with torch.no_grad():
        wanted = theirs(x, 321, context).sample
        plain = pair.ours.bundle.unet(x, torch.tensor([321.0]), context)
        ours = found.bundle.unet(x, torch.tensor([321.0]), context)
    scale = max(1.0, float(wanted.abs().max()))
    assert float((wanted - plain).abs().max()) > 1e-2 * scale
    assert float((wanted - ours).abs().max()) <= 2e-5 * scale


QUICK = ("LoRA", "rsLoRA", "LoRA with patterns", "DoRA", "LoHa", "LoKr", "IA3", "OFT", "BOFT")


@pytest.mark.parametrize(
    "kind", [kind if kind in QUICK else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]
)
def test_a_folder_means_what_peft_means(twins: Twins, kind: str, tmp_path: Path) -> None:
    pair = twins.of("sd1")
    theirs = trained(pair, kind, tmp_path / "adapters" / "film")
    if kind == "OFT of convolutions":
        theirs = theirs.merge_and_unload()  # PEFT's forward pads another way than its merge
    found = adapted(pair, tmp_path, "a cat <lora:film>")
    assert_same(pair, theirs, found)
    (note,) = found.notes
    assert note.startswith(f"adapter_config.json: {KINDS[kind].peft_type.value}")


def test_the_file_alone_says_so(twins: Twins, tmp_path: Path) -> None:
    """Without the settings alpha is the rank, as PEFT's tensors alone mean; a note tells that they are missing."""
    pair = twins.of("sd1")
    theirs = trained(pair, "LoRA", tmp_path / "adapters" / "film")
    (tmp_path / "adapters" / "film" / "adapter_config.json").unlink()
    found = adapted(pair, tmp_path, "<lora:film>")
    with pytest.raises(AssertionError):
        assert_same(pair, theirs, found)
    assert "no adapter_config.json lies beside adapter_model.safetensors" in found.notes[0]


def test_names_by_folder(twins: Twins, tmp_path: Path) -> None:
    """Two folders are two adapters; a renamed file keeps its settings; a part's folder adds the part."""
    pair = twins.of("sd1")
    top = tmp_path / "adapters"
    theirs = trained(pair, "LoRA", top / "film")
    trained(pair, "LoHa", top / "grain" / "default")
    trained(pair, "IA3", top / "both" / "unet")
    trained(pair, "LoKr", top / "film2" / "checkpoint-500")
    shutil.copytree(top / "film", top / "renamed")
    (top / "renamed" / "adapter_model.safetensors").rename(top / "renamed" / "paint.safetensors")
    listed = {file.name: file.label for file in list_adapters(tmp_path)}
    assert list(listed) == ["both-unet", "film", "film2-checkpoint-500", "grain", "paint"]
    assert listed["film"].startswith("LoRA, PEFT names, rank 4 in")
    assert listed["both-unet"].startswith("IA3, PEFT names, ")
    assert_same(pair, theirs, adapted(pair, tmp_path, "<lora:paint>"))
    with pytest.raises(InvalidInput, match="4 files"):
        AdapterFolder(tmp_path).lora("adapter_model")
    recipe = adapted(pair, tmp_path, "<lora:film> <lora:both-unet:0.5>").refs
    assert [ref.name for ref in recipe] == ["film", "both-unet"]


def test_changed_settings_are_read_again(twins: Twins, tmp_path: Path) -> None:
    pair = twins.of("sd1")
    folder = tmp_path / "adapters" / "film"
    trained(pair, "LoRA", folder)
    pipeline = Pipeline(pair.ours.bundle)
    pipeline.adapters.folder = AdapterFolder(tmp_path)
    first = pipeline.adapters.apply(Request(prompt="<lora:film>"))
    assert pipeline.adapters.apply(Request(prompt="<lora:film>")) is first
    values = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(values | {"lora_alpha": 8}))
    import os

    os.utime(folder / "adapter_config.json", ns=(1, 1))
    second = pipeline.adapters.apply(Request(prompt="<lora:film>"))
    assert "lora_alpha 8" in second.notes[0]


def test_a_neighbours_settings_are_not_taken(twins: Twins, tmp_path: Path) -> None:
    """A file of another name among others is none of PEFT's folder."""
    pair = twins.of("sd1")
    top = tmp_path / "adapters"
    theirs = trained(pair, "LoRA", top)
    tensors = load_file(top / "adapter_model.safetensors")
    kohya: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        layer, _, role = name.removeprefix("base_model.model.").rpartition(".lora_")
        key = f"lora_unet_{layer.replace('.', '_')}"
        kohya[f"{key}.lora_{'down' if role.startswith('A') else 'up'}.weight"] = tensor
        kohya[f"{key}.alpha"] = torch.tensor(16.0)
    save_file(kohya, top / "kohya.safetensors")
    found = adapted(pair, tmp_path, "<lora:kohya>")
    assert found.notes == ()
    assert_same(pair, theirs, found)
    assert_same(pair, theirs, adapted(pair, tmp_path, "<lora:adapter_model>"))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ("no json", "no JSON"),
        (json.dumps({"peft_type": "VERA"}), "peft_type VERA"),
        (json.dumps({"peft_type": "FOURIERFT"}), "peft_type FOURIERFT"),
        (json.dumps({"peft_type": "ADALORA"}), "peft_type ADALORA"),
        (json.dumps({"peft_type": "LN_TUNING"}), "peft_type LN_TUNING"),
    ],
)
def test_other_kinds_of_peft_are_refused_by_name(twins: Twins, tmp_path: Path, settings: str, told: str) -> None:
    folder = tmp_path / "adapters" / "film"
    folder.mkdir(parents=True)
    layer = "base_model.model.conv_in"
    tensors = {f"{layer}.lora_A.weight": torch.ones(2, 4, 3, 3), f"{layer}.lora_B.weight": torch.ones(16, 2, 1, 1)}
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(settings, encoding="utf-8")
    with pytest.raises(IncompatibleCheckpoint, match=told):
        adapted(twins.of("sd1"), tmp_path, "<lora:film>")


def test_a_kind_that_peft_really_writes_is_refused(twins: Twins, tmp_path: Path) -> None:
    pair = twins.of("sd1")
    config = VeraConfig(r=4, target_modules=["to_q"])
    get_peft_model(copy.deepcopy(pair.theirs.unet), config).save_pretrained(tmp_path / "adapters" / "film")
    with pytest.raises(IncompatibleCheckpoint, match="peft_type VERA"):
        adapted(pair, tmp_path, "<lora:film>")


def test_hostile_patterns_are_plain_text(twins: Twins, tmp_path: Path) -> None:
    pair = twins.of("sd1")
    folder = tmp_path / "adapters" / "film"
    theirs = trained(pair, "LoRA", folder)
    values = json.loads((folder / "adapter_config.json").read_text())
    patterns = {"(a+)+b": 1, "((((": 2, "(.*)*(.*)*(.*)*x": 3, "[a-z_.0-9]*" * 20: 4}
    (folder / "adapter_config.json").write_text(json.dumps(values | {"alpha_pattern": patterns}))
    assert_same(pair, theirs, adapted(pair, tmp_path, "<lora:film>"))


def test_inspect_reads_the_folder_and_the_file(twins: Twins, tmp_path: Path) -> None:
    folder = tmp_path / "film"
    trained(twins.of("sd1"), "LoRA", folder)
    for path in (folder, folder / "adapter_model.safetensors"):
        result = CliRunner().invoke(app, ["inspect", str(path)])
        assert result.exit_code == 0, result.output
        assert "LoRA, PEFT names" in result.stdout
        assert "rank 4 in" in result.stdout
        assert "adapter_config.json: LORA, lora_alpha 16, r 4" in result.stdout
