"""What programs call the layers of a LoRA.

The kind: a LoRA that another program wrote was refused for its names, with a false reason. Every spelling of prefix,
path and role has to give the same changes, with nothing left over.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from gouache.checkpoints.adapters.keys import lora_summary
from gouache.checkpoints.adapters.kinds import find_adapter
from gouache.checkpoints.adapters.layer_names import LayerNames
from gouache.checkpoints.adapters.lora import Lora, read_lora
from gouache.checkpoints.formats.header import open_header
from gouache.errors import IncompatibleCheckpoint
from gouache.models.unet import UNet

if TYPE_CHECKING:
    from tests.checkpoints.adapters.conftest import Layers

UNET = (
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
    "down_blocks.1.attentions.0.transformer_blocks.1.attn2.to_out.0",
    "down_blocks.0.resnets.0.conv1",
    "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj",
    "up_blocks.1.attentions.1.proj_in",
    "up_blocks.0.upsamplers.0.conv",
    "time_embedding.linear_1",
    "conv_in",
)
COMPVIS = {
    "down_blocks.0.attentions.0": "input_blocks.1.1",
    "down_blocks.1.attentions.0": "input_blocks.3.1",
    "down_blocks.0.resnets.0.conv1": "input_blocks.1.0.in_layers.2",
    "mid_block.attentions.0": "middle_block.1",
    "up_blocks.1.attentions.1": "output_blocks.3.1",
    "up_blocks.0.upsamplers.0.conv": "output_blocks.1.2.conv",
    "time_embedding.linear_1": "time_embed.0",
    "conv_in": "input_blocks.0.0",
}
TEXT = ("encoder.layers.0.self_attn.q_proj", "encoder.layers.1.self_attn.out_proj", "encoder.layers.1.mlp.fc1")
OPEN_CLIP = {
    "encoder.layers.0.self_attn.q_proj": "",  # fused there
    "encoder.layers.1.self_attn.out_proj": "transformer.resblocks.1.attn.out_proj",
    "encoder.layers.1.mlp.fc1": "transformer.resblocks.1.mlp.c_fc",
}
Name = Callable[[str], str]


def joined(path: str) -> str:
    return path.replace(".", "_")


def compvis(path: str) -> str:
    ours = next(start for start in COMPVIS if path.startswith(start))
    return COMPVIS[ours] + path.removeprefix(ours)


def processor(path: str) -> str:
    return re.sub(r"(attn\d)\.(to_\w+?)(\.0)?$", r"\1.processor.\2", path)


KOHYA = ("lora_down.weight", "lora_up.weight")
PEFT = ("lora_A.weight", "lora_B.weight")
# Name of a U-Net's layer, names of the layers of two text encoders (without "text_model."), roles.
SPELLINGS: dict[str, tuple[Name, Name, Name, tuple[str, str]]] = {
    "kohya, diffusers' paths": (
        lambda path: f"lora_unet_{joined(path)}",
        lambda path: f"lora_te1_text_model_{joined(path)}",
        lambda path: f"lora_te2_text_model_{joined(path)}",
        KOHYA,
    ),
    "kohya, CompVis's paths": (
        lambda path: f"lora_unet_{joined(compvis(path))}",
        lambda path: f"lora_te1_text_model_{joined(path)}",
        lambda path: f"lora_te2_text_model_{joined(path)}",
        KOHYA,
    ),
    "OneTrainer, OMI": (
        lambda path: f"unet.{compvis(path)}",
        lambda path: f"clip_l.text_model.{path}",
        lambda path: f"clip_g.text_model.{path}",
        KOHYA,
    ),
    "OneTrainer, dots": (
        lambda path: f"lora_unet.{path}",
        lambda path: f"lora_te1.text_model.{path}",
        lambda path: f"lora_te2.text_model.{path}",
        KOHYA,
    ),
    "ComfyUI": (
        lambda path: f"diffusion_model.{compvis(path)}",
        lambda path: f"text_encoders.clip_l.transformer.text_model.{path}",
        lambda path: f"text_encoders.clip_g.transformer.text_model.{path}",
        KOHYA,
    ),
    "a checkpoint's own names": (
        lambda path: f"model.diffusion_model.{compvis(path)}",
        lambda path: f"conditioner.embedders.0.transformer.text_model.{path}",
        lambda path: f"conditioner.embedders.1.model.{OPEN_CLIP[path]}",
        KOHYA,
    ),
    "A1111's names": (
        lambda path: f"diffusion_model_{joined(compvis(path))}",
        lambda path: f"0_transformer_text_model_{joined(path)}",
        lambda path: f"1_model_{joined(OPEN_CLIP[path])}",
        KOHYA,
    ),
    "LyCORIS": (
        lambda path: f"lycoris_{joined(path)}",
        lambda path: f"lycoris_text_encoder_text_model_{joined(path)}",
        lambda path: f"lycoris_text_encoder_2_text_model_{joined(path)}",
        KOHYA,
    ),
    "LyCORIS, parts named": (
        lambda path: f"lycoris_unet_{joined(path)}",
        lambda path: f"lycoris_te1_text_model_{joined(path)}",
        lambda path: f"lycoris_te2_text_model_{joined(path)}",
        KOHYA,
    ),
    "diffusers with PEFT": (
        lambda path: f"unet.{path}",
        lambda path: f"text_encoder.text_model.{path}",
        lambda path: f"text_encoder_2.text_model.{path}",
        PEFT,
    ),
    "diffusers with PEFT's adapter names": (
        lambda path: f"unet.{path}",
        lambda path: f"text_encoder.text_model.{path}",
        lambda path: f"text_encoder_2.text_model.{path}",
        ("lora_A.default.weight", "lora_B.default.weight"),
    ),
    "roles without weight": (
        lambda path: f"unet.{path}",
        lambda path: f"text_encoder.text_model.{path}",
        lambda path: f"text_encoder_2.text_model.{path}",
        ("lora_A", "lora_B"),
    ),
    "A1111's names in one word with kohya's prefix": (
        lambda path: f"lora_unet_model_diffusion_model_{joined(compvis(path))}",
        lambda path: f"te1_text_model_{joined(path)}",
        lambda path: f"te2_text_model_{joined(path)}",
        KOHYA,
    ),
    "diffusers' attention processors": (
        lambda path: f"unet.{processor(path)}_lora",
        lambda path: f"text_encoder.text_model.{path}.lora_linear_layer",
        lambda path: f"text_encoder_2.text_model.{path}.lora_linear_layer",
        ("down.weight", "up.weight"),
    ),
    "diffusers' layers": (
        lambda path: f"unet.{path}.lora",
        lambda path: f"text_encoder.text_model.{path}.lora",
        lambda path: f"text_encoder_2.text_model.{path}.lora",
        ("down.weight", "up.weight"),
    ),
    "diffusers without prefix": (
        lambda path: path,
        lambda path: f"text_encoder.{path}",
        lambda path: f"text_encoder_2.{path}",
        PEFT,
    ),
    "PEFT around a pipeline": (
        lambda path: f"base_model.model.unet.{path}",
        lambda path: f"base_model.model.text_encoder.text_model.{path}",
        lambda path: f"base_model.model.text_encoder_2.text_model.{path}",
        PEFT,
    ),
    "PEFT around each part": (
        lambda path: f"base_model.model.{path}",
        lambda path: f"base_model.model.text_model.{path}",
        lambda path: f"base_model.model.text_model.{path}",
        PEFT,
    ),
    "PEFT around a compiled part": (
        lambda path: f"base_model.model._orig_mod.{path}",
        lambda path: f"base_model.model.text_encoder._orig_mod.text_model.{path}".replace(
            "text_encoder._orig_mod.", ""
        ),
        lambda path: f"base_model.model.text_encoder_2.text_model.{path}",
        PEFT,
    ),
    "CompVis's paths in PEFT's roles": (
        lambda path: f"diffusion_model.{compvis(path)}",
        lambda path: f"te1.text_model.{path}",
        lambda path: f"te2.text_model.{path}",
        PEFT,
    ),
}


def halves(shape: tuple[int, ...], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    down = torch.randn(2, *shape[1:], generator=generator)
    return down, torch.randn(shape[0], 2, *(1 for _ in shape[2:]), generator=generator)


def file_of(layers: Layers, spelling: str) -> dict[str, Tensor]:
    """The same numbers in one spelling."""
    generator = torch.Generator().manual_seed(9)
    unet, first, second, (down, up) = SPELLINGS[spelling]
    tensors: dict[str, Tensor] = {}
    for network, name, paths in (
        (layers.unet, unet, UNET),
        (layers.text.encoders[0], first, TEXT),
        (layers.text.encoders[1], second, TEXT),
    ):
        for path in paths:
            a, b = halves(tuple(network.get_submodule(path).get_parameter("weight").shape), generator)
            if name(path).endswith((".", "_model_")):
                continue
            base = name(path)
            dot = "" if base.endswith("_lora") and down.startswith("lora") else "."
            tensors |= {f"{base}{dot}{down}": a, f"{base}{dot}{up}": b}
    return tensors


def read(folder: Path, layers: Layers, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Lora:
    path = folder / "film.safetensors"
    save_file(tensors, path, metadata)
    return read_lora(path, layers.names, "sdxl")


def assert_same(layers: Layers, found: Lora, wanted: Lora) -> None:
    for layer, change in found.changes.items():
        shape = layers.names.shapes[layer]
        assert torch.equal(change.difference(torch.zeros(shape)), wanted.changes[layer].difference(torch.zeros(shape)))


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_means_the_same_layers(layers: Layers, tmp_path: Path, spelling: str) -> None:
    wanted = read(tmp_path, layers, file_of(layers, "kohya, diffusers' paths"))
    assert len(wanted.changes) == len(UNET) + 2 * len(TEXT)
    tensors = file_of(layers, spelling)
    if spelling == "PEFT around each part":  # one file for each part, and both encoders have the same names
        assert len(tensors) == 2 * (len(UNET) + len(TEXT))
    found = read(tmp_path, layers, tensors)
    assert_same(layers, found, wanted)
    assert found.notes == ()
    assert len(found.changes) == len(tensors) // 2
    header = open_header(tmp_path / "film.safetensors")
    told = find_adapter(header.tensors, header.metadata)
    assert told is not None
    assert (told.kind, told.family) == ("lora", "sdxl")
    assert "layers of the text encoders" in lora_summary(header.tensors)


def test_the_shapes_say_which_text_encoder_is_meant(layers: Layers, tmp_path: Path) -> None:
    """PEFT's folder of a text encoder doesn't tell; widths do."""
    generator = torch.Generator().manual_seed(9)
    for index in (0, 1):
        shape = layers.text.encoders[index].get_submodule(TEXT[0]).get_parameter("weight").shape
        a, b = halves(tuple(shape), generator)
        key = f"base_model.model.text_model.{TEXT[0]}"
        (layer,) = read(tmp_path, layers, {f"{key}.lora_A.weight": a, f"{key}.lora_B.weight": b}).changes
        assert (layer.part, layer.index, layer.name) == ("text", index, TEXT[0])


def test_one_stray_among_many_is_named_and_the_others_are_applied(layers: Layers, tmp_path: Path) -> None:
    good = file_of(layers, "kohya, diffusers' paths")
    wanted = read(tmp_path, layers, good)
    stray = {
        "lora_unet_nowhere.lora_up.weight": torch.ones(2, 2),
        "lora_te3_text_model_x.alpha": torch.ones(()),
        "lora_unet_conv_in.unknown": torch.ones(2),
        "v_pred": torch.ones(0),
    }
    found = read(tmp_path, layers, good | stray)
    assert found.changes.keys() == wanted.changes.keys()
    assert_same(layers, found, wanted)
    (note,) = found.notes
    assert note.startswith(f"LoRA 'film': {len(stray)} of {len(good) + len(stray)} tensors were left out")
    assert all(name in note for name in stray)
    assert note.endswith(f"; {len(wanted.changes)} layers were changed")


@pytest.mark.parametrize(
    ("tensors", "metadata", "told"),
    [
        (
            {"some.layer.lora_A.weight": torch.ones(2, 2), "some.layer.lora_B.weight": torch.ones(2, 2)},
            {},
            "match no layer",
        ),
        ({"lora_unet_conv_in.lora_down.weight": torch.ones(2, 4, 3, 3)}, {}, "half of a change"),
        (
            {
                "lora_unet_conv_in.lora_down.weight": torch.ones(2, 5, 3, 3),
                "lora_unet_conv_in.lora_up.weight": torch.ones(16, 2),
            },
            {},
            "another shape than their layers",
        ),
    ],
)
def test_a_file_of_which_nothing_fits_is_refused_with_the_true_reason(
    layers: Layers, tmp_path: Path, tensors: dict[str, Tensor], metadata: dict[str, str], told: str
) -> None:
    with pytest.raises(IncompatibleCheckpoint, match=told) as caught:
        read(tmp_path, layers, tensors, metadata)
    assert "another family" not in str(caught.value)


def test_another_family_is_the_reason_where_it_is(layers: Layers, tmp_path: Path) -> None:
    tensors = file_of(layers, "kohya, diffusers' paths")
    path = tmp_path / "film.safetensors"
    save_file(tensors | {"lora_unet_x.alpha": torch.ones(())}, path)
    with pytest.raises(IncompatibleCheckpoint, match=r"a LoRA of sdxl.* expected a LoRA of sd1.* another family"):
        read_lora(path, layers.names, "sd1")


def test_the_first_convolution_of_a_model_with_more_channels(layers: Layers, tmp_path: Path) -> None:
    """A plain model's LoRA in an inpainting model: the latents' channels change, those of mask and picture stay."""
    wide = UNet(layers.unet.config.model_copy(update={"draft_channels": 5}))
    names = LayerNames(wide, layers.text)
    down, up = halves((16, 4, 3, 3), torch.Generator().manual_seed(1))
    path = tmp_path / "film.safetensors"
    save_file({"lora_unet_conv_in.lora_down.weight": down, "lora_unet_conv_in.lora_up.weight": up}, path)
    lora = read_lora(path, names, "sdxl")
    (change,) = lora.changes.values()
    weight = wide.conv_in.weight.detach()
    wanted = torch.zeros(16, 9, 3, 3)
    wanted[:, :4] = (up.flatten(1) @ down.flatten(1)).reshape(16, 4, 3, 3)
    assert torch.allclose(change.difference(weight), wanted, atol=1e-5)
    assert "applied to the first 4 channels" in lora.notes[0]


class TestCloneofsimo:
    """Numbered layers, in the order of the modules; judged by the order of diffusers' own modules."""

    @staticmethod
    def order(layers: Layers, *, old: bool) -> list[str]:
        """The walk of that trainer over diffusers' U-Net: ancestors in order, then the linear layers inside."""
        from diffusers import UNet2DConditionModel

        network = UNet2DConditionModel(
            block_out_channels=(16, 32),
            layers_per_block=1,
            transformer_layers_per_block=(1, 2),
            attention_head_dim=(2, 2),
            cross_attention_dim=56,
            use_linear_projection=True,
            norm_num_groups=8,
            down_block_types=("CrossAttnDownBlock2D",) * 2,
            up_block_types=("CrossAttnUpBlock2D",) * 2,
        )
        names: list[str] = []
        for name, module in network.named_modules():
            if type(module).__name__ in ("Attention", "GEGLU"):
                names += [
                    f"{name}.{inner}" for inner, one in module.named_modules() if isinstance(one, torch.nn.Linear)
                ]
        blocks: dict[str, list[str]] = {}
        for name in names:
            blocks.setdefault(name.partition(".attn")[0].partition(".ff.")[0], []).append(name)
        rank = {"attn1": 0, "ff": 1, "attn2": 2} if old else {}
        walked = []
        for block, inside in blocks.items():
            walked += sorted(inside, key=lambda name: rank.get(name.removeprefix(f"{block}.").partition(".")[0], 0))
        assert set(walked) <= {layer.name for layer in layers.names.shapes}
        return walked

    @pytest.mark.parametrize("old", [False, True])
    @pytest.mark.parametrize("kind", ["safetensors", "pt"])
    def test_numbered_layers(self, layers: Layers, tmp_path: Path, kind: str, old: bool) -> None:
        names = self.order(layers, old=old)
        generator = torch.Generator().manual_seed(4)
        pairs = [
            halves(tuple(layers.module(name).get_parameter("weight").shape), generator) for name in names
        ]  # (down, up)
        path = tmp_path / f"lora.{kind}"
        if kind == "pt":
            torch.save([half.half() for down, up in pairs for half in (up, down)], path)
        else:
            tensors = {
                f"unet:{i}:{role}": pair[k] for i, pair in enumerate(pairs) for k, role in enumerate(("down", "up"))
            }
            tensors["<s1>"] = torch.ones(32)
            save_file(tensors, path, {"unet": '["CrossAttention", "GEGLU"]', "<s1>": "<embed>"})
        lora = read_lora(path, layers.names, "sd1")
        assert lora.notes == ()
        assert [layer.name for layer in lora.changes] == names
        for change, (down, up) in zip(lora.changes.values(), pairs, strict=True):
            assert torch.allclose(change.difference(up @ down), up @ down, atol=2e-2)
        header = open_header(path)
        told = find_adapter(header.tensors, header.metadata)
        assert told is not None
        assert told.kind == "lora"
        assert f"rank 2 in {len(names)} layers of the U-Net" in lora_summary(header.tensors)
        assert list(lora.embeddings) == ([] if kind == "pt" else ["<s1>"])

    def test_a_text_encoders_list(self, layers: Layers, tmp_path: Path) -> None:
        """CLIPAttention has keys, values, queries, then what goes out; transformers is the judge."""
        from transformers import CLIPTextConfig, CLIPTextModel

        config = CLIPTextConfig(
            vocab_size=100, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2
        )
        names = []
        for name, module in CLIPTextModel(config).named_modules():
            if type(module).__name__ == "CLIPAttention":
                names += [
                    f"{name}.{inner}".removeprefix("text_model.") for inner, one in module.named_modules() if inner
                ]
        generator = torch.Generator().manual_seed(4)
        pairs = [halves((32, 32), generator) for _ in names]
        path = tmp_path / "lora.text_encoder.pt"
        torch.save([half for down, up in pairs for half in (up, down)], path)
        lora = read_lora(path, layers.names, "sd1")
        assert [layer.name for layer in lora.changes] == names
