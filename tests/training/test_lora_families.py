"""LoRA, LoCon, DoRA and text encoders of every family: our pipeline and diffusers paint with the file what was trained.

Models are tiny random ones that diffusers wrote, so that the same file meets the same weights in both programs.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import tests.training.lora_twins as training
import torch
from tests.pipeline.twins import Twins
from torch import Tensor

from gouache.checkpoints.adapters.kinds import find_adapter
from gouache.checkpoints.adapters.layer_names import LayerNames
from gouache.checkpoints.adapters.lora import read_lora
from gouache.checkpoints.formats.header import read_header
from gouache.checkpoints.load import load_bundle
from gouache.checkpoints.merging.lora_files import spelled_layers
from gouache.checkpoints.save import bundle_to_write
from gouache.errors import ConfigError
from gouache.models.bundle import ModelBundle
from gouache.pipeline.prompts.adapters import with_loras
from gouache.pipeline.prompts.syntax import AdapterTag

if TYPE_CHECKING:
    from tests.pipeline.sd3_twins import Sd3Twins

FAMILIES = ("sd1", "sd2", "sdxl", "sdxl-refiner", "sd3")
SAME = 1e-5
"""Rounding of fp32: files are written in fp32 here."""


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Twins:
    """The U-Net families in both programs."""
    folder = tmp_path_factory.mktemp("twins")
    return Twins(folder)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five captioned pictures, packed."""
    return training.packed(tmp_path_factory.mktemp("data"))


def both(family: str, twins: Twins, sd3: Sd3Twins, folder: Path) -> tuple[Path, Any]:
    """A family's folder, and diffusers' pipeline of it."""
    if family == "sd3":
        return sd3.path("3.5 medium"), sd3.theirs("3.5 medium")
    pair = twins.of(family)
    pair.save(folder)
    return folder, pair.theirs


def merged(file: Path, start: Path) -> tuple[ModelBundle, ModelBundle]:
    """The model, and as our pipeline uses it with `<lora:file:1>`."""
    bundle = load_bundle(start, dtype=torch.float32)
    lora = read_lora(file, LayerNames(bundle.unet, bundle.text, bundle.prior), bundle.family)
    assert not lora.notes, "every tensor has its place"
    return bundle, with_loras(bundle, [(lora, AdapterTag("it", 1.0, 1.0))])


def inputs_of(bundle: ModelBundle) -> tuple[dict[str, Tensor], Tensor | None]:
    """Noise, time and text for two pictures; and the size numbers of those that take some."""
    config, generator = bundle.unet.config, torch.Generator().manual_seed(0)
    numbers = 100 * torch.rand(2, bundle.size_numbers, generator=generator) if bundle.size_numbers else None
    given = {
        "x": torch.randn(2, config.in_channels, 4, 4, generator=generator),
        "timestep": torch.tensor([500.0, 100.0]),
        "context": torch.randn(2, 7, config.context_width, generator=generator),
    }
    if config.pooled_width:
        given["pooled"] = torch.randn(2, bundle.text.pooled_width, generator=generator)
    return given, numbers


def ours(bundle: ModelBundle, unet: Any, given: dict[str, Tensor], numbers: Tensor | None) -> Tensor:
    pooled = bundle.pooled_vector(given["pooled"], numbers) if "pooled" in given else None
    out: Tensor = unet(given["x"], given["timestep"], given["context"], pooled=pooled)
    return out


def theirs_of(pipeline: Any, given: dict[str, Tensor], numbers: Tensor | None) -> Tensor:
    network = getattr(pipeline, "transformer", None) or pipeline.unet
    out: Tensor
    if hasattr(pipeline, "transformer"):
        out = network(given["x"], given["context"], given["pooled"], given["timestep"]).sample
    else:
        more = {} if numbers is None else {"added_cond_kwargs": {"text_embeds": given["pooled"], "time_ids": numbers}}
        out = network(given["x"], given["timestep"], given["context"], **more).sample
    return out


CASES = [f"{family} {kind}" for family in FAMILIES for kind in training.KINDS if (family, kind) != ("sd3", "LoCon")]


@pytest.mark.every_time("sd1 LoCon", "sd3 DoRA")
@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_what_was_trained_is_what_our_pipeline_and_diffusers_use(
    case: str, twins: Twins, sd3: Sd3Twins, data: Path, tmp_path: Path
) -> None:
    family, kind = case.split()
    start, pipeline = both(family, twins, sd3, tmp_path / "model")
    table = {key: value for key, value in training.KINDS[kind].items() if family != "sd3" or key != "conv_rank"}
    with torch.enable_grad():
        trained = training.Trained(start, data, tmp_path / "run", **table)
    bundle, used = merged(trained.file, start)
    given, numbers = inputs_of(bundle)
    expected = ours(used, used.unet, given, numbers)
    assert not torch.allclose(expected, ours(bundle, bundle.unet, given, numbers), atol=100 * SAME)
    hooked = trained.hooked(lambda: ours(bundle, trained.stage.unet, given, numbers))
    assert torch.allclose(hooked, expected, atol=SAME)
    pipeline.load_lora_weights(trained.file)
    try:
        # diffusers 0.42 leaves the lengths of DoRA out of kohya's layout, with a warning that says so.
        if kind != "DoRA" or family == "sd3":
            assert torch.allclose(theirs_of(pipeline, given, numbers), expected, atol=SAME)
        if kind == "text":
            check_text(pipeline, trained, used)
    finally:
        pipeline.unload_lora_weights()
    header = read_header(trained.file)
    adapter = find_adapter(header.tensors, header.metadata)
    assert adapter is not None
    assert adapter.family == family


def context_of(encoder: Any, ids: Tensor) -> Tensor:
    context: Tensor = encoder(ids).context
    return context


def check_text(pipeline: Any, trained: training.Trained, used: ModelBundle) -> None:
    """The states of both programs' text encoders, with the changes; they differ from those without."""
    ids = torch.tensor([[49406, 320, 736, *[49407] * 74]])
    names = ("text_encoder_2",) if used.family == "sdxl-refiner" else ("text_encoder", "text_encoder_2")
    for name, encoder, plain in zip(names, used.text.encoders, trained.stage.text.encoders, strict=False):
        theirs, expected = getattr(pipeline, name), encoder(ids).context
        hooked = trained.hooked(partial(context_of, plain, ids))
        assert torch.allclose(hooked, expected, atol=SAME)
        with trained.stage.attached.using(None):
            assert not torch.allclose(plain(ids).context, expected, atol=100 * SAME)
        found = theirs(ids, output_hidden_states=True)
        states = [*found.hidden_states, getattr(found, "last_hidden_state", found.hidden_states[0])]
        assert any(torch.allclose(state, expected, atol=SAME) for state in states)


def kohyas_names(pipeline: Any, family: str, *, convolutions: bool) -> set[str]:
    """By the rules of sd-scripts: `lora_unet_` and the path of every linear layer and convolution in the transformers
    (and in residual blocks and samplers), with CompVis's paths in SDXL."""
    names = set()
    for name, module in pipeline.unet.named_modules():
        kind = type(module).__name__
        inside = ".attentions." in name
        wide = kind == "Conv2d" and not inside
        if kind in ("Linear", "Conv2d") and (inside or (convolutions and wide and "_blocks" in name + "_blocks")):
            if not inside and not re.match(r"(down|up)_blocks|mid_block", name):
                continue
            names.add(f"lora_unet_{compvis(name) if family == 'sdxl' else name}".replace(".", "_"))
    return names


def compvis(name: str) -> str:
    """diffusers' path of a layer of a U-Net with one residual block a level, two on the way up, as CompVis's."""
    parts = name.split(".")
    kind = {"resnets": "0", "attentions": "1"}
    inner = {"conv1": "in_layers.2", "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}
    tail = ".".join(inner.get(part, part) for part in parts[4 if parts[0] != "mid_block" else 3 :])
    if parts[0] == "mid_block":
        place = "1" if parts[1] == "attentions" else str(2 * int(parts[2]))
        return f"middle_block.{place}.{tail}"
    level, block = int(parts[1]), int(parts[3])
    if parts[2] == "downsamplers":
        return f"input_blocks.{2 * level + 2}.0.op"
    if parts[2] == "upsamplers":
        return f"output_blocks.{2 * level + 1}.{2 if level else 1}.conv"
    if parts[0] == "down_blocks":
        return f"input_blocks.{2 * level + block + 1}.{kind[parts[2]]}.{tail}"
    return f"output_blocks.{2 * level + block}.{kind[parts[2]]}.{tail}"


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_layers_have_the_names_that_kohyas_trainer_gives_them(family: str, twins: Twins) -> None:
    pair = twins.of(family)
    names = {name for _, name in spelled_layers(bundle_to_write(pair.ours.bundle))}
    unet = {name for name in names if name.startswith("lora_unet_")}
    expected = kohyas_names(pair.theirs, family, convolutions=True)
    if family == "sdxl":
        # The pair's SDXL has attention at both levels, so that samplers of the way up lie behind it.
        expected = {re.sub(r"output_blocks_1_1_conv", "output_blocks_1_2_conv", name) for name in expected}
    assert unet == expected
    text = names - unet
    prefixes = {"sd1": ("lora_te_",), "sdxl": ("lora_te1_", "lora_te2_")}[family]
    encoders = (pair.theirs.text_encoder, getattr(pair.theirs, "text_encoder_2", None))
    assert text == {
        f"{prefix}{path if path.startswith('text_model') else f'text_model.{path}'}".replace(".", "_")
        for prefix, encoder in zip(prefixes, encoders, strict=False)
        for path, module in encoder.named_modules()
        if type(module).__name__ == "Linear" and "projection" not in path
    }


def test_layers_that_a_model_lacks_are_refused(sd3: Sd3Twins, data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"lora.conv_rank: given 2, expected 0"):
        training.Trained(sd3.path("3.5 medium"), data, tmp_path / "run", conv_rank=2)
    with pytest.raises(ConfigError, match=r"lora.layers: given \*nowhere\*"):
        training.Trained(sd3.path("3.5 medium"), data, tmp_path / "run", layers=("*nowhere*",))
