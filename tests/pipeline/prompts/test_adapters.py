"""LoRA files and textual inversions: diffusers with peft is the judge, on the same random weights."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gouache.checkpoints.adapters.library import AdapterFolder
from gouache.errors import CorruptCheckpoint, IncompatibleCheckpoint
from gouache.models.bundle import ModelBundle
from gouache.pipeline.generate.generation import Painted
from gouache.pipeline.pipeline import Pipeline
from gouache.pipeline.request import Request

if TYPE_CHECKING:
    from tests.pipeline.twins import Pair, Twins

# diffusers and peft speak of their own future, and of layers whose bias they leave alone.
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
    pytest.mark.filterwarnings("ignore:While injecting the PEFT adapters"),
    pytest.mark.filterwarnings("ignore:Already found a `peft_config`"),
]

RANK, ALPHA = 3, 2.0
TIGHT = 1e-5


def folder_with(tmp_path: Path, name: str, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    path = tmp_path / "adapters" / f"{name}.safetensors"
    path.parent.mkdir(exist_ok=True)
    save_file(tensors, path, metadata)
    return path


def layers_of(network: nn.Module, *marks: str) -> dict[str, nn.Module]:
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and (not marks or any(mark in name for mark in marks))
    }


def weight_of(network: nn.Module, place: str) -> Tensor:
    return network.get_submodule(place).get_parameter("weight").detach()


def pair_of_halves(module: nn.Module, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    shape = module.get_parameter("weight").shape
    kernel = tuple(shape[2:])
    down = torch.randn(RANK, *shape[1:], generator=generator) * 0.2
    up = torch.randn(shape[0], RANK, *(1 for _ in kernel), generator=generator) * 0.2
    return down, up


def kohya(pair: Pair, *, unet: tuple[str, ...] = (), seed: int = 0, alphas: bool = True) -> dict[str, Tensor]:
    """A file as kohya's trainer writes it. (diffusers drops some of several alphas: no judge there.)"""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    networks = {"lora_unet_": (pair.theirs.unet, unet)}
    two = pair.family == "sdxl"
    networks["lora_te1_" if two else "lora_te_"] = (pair.theirs.text_encoder, ("self_attn", "mlp"))
    if two:
        networks["lora_te2_"] = (pair.theirs.text_encoder_2, ("self_attn", "mlp"))
    for prefix, (network, marks) in networks.items():
        for name, module in layers_of(network, *marks).items():
            inside = name if "unet" in prefix or name.startswith("text_model.") else f"text_model.{name}"
            key = prefix + inside.replace(".", "_")
            down, up = pair_of_halves(module, generator)
            tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
            if alphas:
                tensors[f"{key}.alpha"] = torch.tensor(ALPHA)
    return tensors


TO_Q = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2")
CONVOLUTIONS = ("conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv", "time_emb_proj")


@pytest.fixture
def clean(own_twins: Twins) -> Iterator[Twins]:
    """The twins; adapters that a test gave to diffusers are taken out again."""
    yield own_twins
    for pair in list(own_twins._built.values()):
        pair.theirs.unload_lora_weights()
        pair.ours.adapters.folder = AdapterFolder(Path("nowhere"))


def use_folder(pipeline: Pipeline, folder: Path) -> None:
    pipeline.adapters.folder = AdapterFolder(folder)


def outputs(pair: Pair, bundle: ModelBundle) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What every changed network gives, ours and theirs, for the same input."""
    generator = torch.Generator().manual_seed(5)
    width = pair.theirs.unet.config.cross_attention_dim
    x = torch.randn(1, pair.theirs.unet.config.in_channels, 8, 8, generator=generator)
    context = torch.randn(1, 77, width, generator=generator)
    ids = torch.tensor([[49406, 320, 736, 4231, *[49407] * 73]])
    pooled_width = bundle.unet.config.pooled_width
    with torch.no_grad():
        more: dict[str, Any] = {}
        ours = {"unet": torch.empty(0)}
        if pooled_width:
            numbers = torch.arange(6.0)[None]
            pooled = torch.randn(1, pooled_width - 6 * 256, generator=generator)
            more["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": numbers}
            vector = bundle.pooled_vector(pooled, numbers)
            ours["unet"] = bundle.unet(x, torch.tensor([321.0]), context, pooled=vector)
        else:
            ours["unet"] = bundle.unet(x, torch.tensor([321.0]), context)
        theirs = {"unet": pair.theirs.unet(x, 321, context, **more).sample}
        for index, encoder in enumerate(bundle.text.encoders):
            theirs_encoder = pair.theirs.text_encoder if index == 0 else pair.theirs.text_encoder_2
            states = theirs_encoder(ids, output_hidden_states=True)
            hidden = states.hidden_states[-2] if pair.family == "sdxl" else states.last_hidden_state
            ours[f"text {index}"], theirs[f"text {index}"] = encoder(ids).context, hidden
    return ours, theirs


def assert_same(pair: Pair, bundle: ModelBundle, *, changed: set[str]) -> None:
    ours, theirs = outputs(pair, bundle)
    plain, _ = outputs(pair, pair.ours.bundle)
    for name in ours:
        difference = float((ours[name] - theirs[name]).abs().max())
        scale = max(1.0, float(theirs[name].abs().max()))
        assert difference <= TIGHT * scale, f"{name}: {difference} at {scale}"
        moved = float((ours[name] - plain[name]).abs().max())
        assert (moved > 1e-2) == (name in changed), f"{name} moved by {moved}"


def adapted(pair: Pair, prompt: str) -> ModelBundle:
    return pair.ours.adapters.apply(Request(prompt=prompt)).bundle


@pytest.mark.every_time("sd1-False", "sdxl-True")
@pytest.mark.parametrize(("family", "alphas"), [("sd1", True), ("sd1", False), ("sd2", True), ("sdxl", True)])
def test_kohyas_files_are_fused_as_diffusers_does(clean: Twins, family: str, alphas: bool, tmp_path: Path) -> None:
    pair = clean.of(family)
    path = folder_with(tmp_path, "film", kohya(pair, unet=(*ATTENTION, *CONVOLUTIONS), alphas=alphas))
    use_folder(pair.ours, tmp_path)
    pair.theirs.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name="film")
    parts = ["unet", "text_encoder"] + (["text_encoder_2"] if family == "sdxl" else [])
    pair.theirs.fuse_lora(components=parts, lora_scale=0.7)
    try:
        texts = {"text 0", "text 1"} if family == "sdxl" else {"text 0"}
        assert_same(pair, adapted(pair, "a cat <lora:film:0.7>"), changed={"unet", *texts})
    finally:
        pair.theirs.unfuse_lora(components=parts)


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_a_file_that_diffusers_wrote(clean: Twins, family: str, tmp_path: Path) -> None:
    """peft trains it, diffusers saves it with its alpha in the metadata, and loads it again as the judge."""
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    pair = clean.of(family)
    pair.theirs.unet.add_adapter(
        LoraConfig(r=4, lora_alpha=6, init_lora_weights=False, target_modules=["to_q", "to_v", "to_out.0"])
    )
    pair.theirs.text_encoder.add_adapter(
        LoraConfig(r=2, lora_alpha=3, init_lora_weights=False, target_modules=["q_proj", "fc1"])
    )
    type(pair.theirs).save_lora_weights(
        tmp_path / "adapters",
        unet_lora_layers=convert_state_dict_to_diffusers(get_peft_model_state_dict(pair.theirs.unet)),
        text_encoder_lora_layers=convert_state_dict_to_diffusers(get_peft_model_state_dict(pair.theirs.text_encoder)),
        unet_lora_adapter_metadata=pair.theirs.unet.peft_config["default"].to_dict(),
        text_encoder_lora_adapter_metadata=pair.theirs.text_encoder.peft_config["default"].to_dict(),
    )
    pair.theirs.unload_lora_weights()
    pair.theirs.load_lora_weights(str(tmp_path / "adapters"))
    use_folder(pair.ours, tmp_path)
    bundle = adapted(pair, "a cat <lora:pytorch_lora_weights>")
    assert_same(pair, bundle, changed={"unet", "text 0"})


def test_the_oldest_names_of_diffusers(clean: Twins, tmp_path: Path) -> None:
    pair = clean.of("sd1")
    generator = torch.Generator().manual_seed(3)
    tensors: dict[str, Tensor] = {}
    for name, module in layers_of(pair.theirs.unet, "attn1.to_").items():
        down, up = pair_of_halves(module, generator)
        head, last = name.removesuffix(".0").rsplit(".", 1)
        key = f"unet.{head}.processor.{last}_lora"
        tensors |= {f"{key}.down.weight": down, f"{key}.up.weight": up}
    path = folder_with(tmp_path, "old", tensors)
    use_folder(pair.ours, tmp_path)
    pair.theirs.load_lora_weights(str(path.parent), weight_name=path.name)
    assert_same(pair, adapted(pair, "a cat <lora:old>"), changed={"unet"})


def test_sdxls_files_by_kohya_have_compvis_names(clean: Twins, tmp_path: Path) -> None:
    pair = clean.of("sdxl")
    ours = kohya(pair, unet=("to_q", "to_out.0"))
    table = {
        "down_blocks_0_attentions_0": "input_blocks_1_1",
        "mid_block_attentions_0": "middle_block_1",
        "up_blocks_0_attentions_1": "output_blocks_1_1",
    }
    chosen: dict[str, Tensor] = {}
    sgm: dict[str, Tensor] = {}
    for name, tensor in ours.items():
        for diffusers_name, compvis_name in table.items():
            if diffusers_name in name:
                chosen[name] = tensor
                sgm[name.replace(diffusers_name, compvis_name)] = tensor
    assert len(sgm) > 20
    folder_with(tmp_path, "plain", chosen)
    folder_with(tmp_path, "sgm", sgm)
    use_folder(pair.ours, tmp_path)
    first, second = (adapted(pair, f"<lora:{name}>").unet.state_dict() for name in ("plain", "sgm"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    changed = [
        name for name, tensor in pair.ours.bundle.unet.state_dict().items() if not torch.equal(tensor, second[name])
    ]
    assert len(changed) == len({name.partition(".")[0] for name in sgm})


def test_every_layer_has_its_own_alpha(tiny: ModelBundle, tmp_path: Path) -> None:
    """kohya's rule: alpha / rank, and 1 where there is no alpha."""
    tensors: dict[str, Tensor] = {}
    places = {
        f"down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_{part}": alpha
        for part, alpha in (("q", 1.0), ("k", 8.0), ("v", None))
    }
    for place, alpha in places.items():
        key = f"lora_unet_{place.replace('.', '_')}"
        tensors |= {f"{key}.lora_down.weight": torch.eye(4, 16), f"{key}.lora_up.weight": torch.eye(16, 4)}
        tensors |= {} if alpha is None else {f"{key}.alpha": torch.tensor(alpha)}
    folder_with(tmp_path, "alphas", tensors)
    pipeline = Pipeline(tiny)
    use_folder(pipeline, tmp_path)
    merged = pipeline.adapters.apply(Request(prompt="<lora:alphas:2>")).bundle.unet
    for place, alpha in places.items():
        change = weight_of(merged, place) - weight_of(tiny.unet, place)
        wanted = torch.zeros(16, 16)
        wanted[range(4), range(4)] = 2 * (1.0 if alpha is None else alpha / 4)
        assert torch.allclose(change, wanted, atol=1e-6)


def test_a_core_between_down_and_up(tiny: ModelBundle, tmp_path: Path) -> None:
    """LoCon with `lora_mid`: the three convolutions one after the other are the judge."""
    generator = torch.Generator().manual_seed(4)
    place = "down_blocks.0.resnets.0.conv1"
    layer = tiny.unet.get_submodule(place)
    down, mid, up = (torch.randn(*shape, generator=generator) for shape in ((3, 16, 1, 1), (3, 3, 3, 3), (16, 3, 1, 1)))
    key = f"lora_unet_{place.replace('.', '_')}"
    names = {"lora_down": down, "lora_mid": mid, "lora_up": up}
    folder_with(tmp_path, "core", {f"{key}.{role}.weight": tensor for role, tensor in names.items()})
    pipeline = Pipeline(tiny)
    use_folder(pipeline, tmp_path)
    merged = pipeline.adapters.apply(Request(prompt="<lora:core:0.5>")).bundle.unet.get_submodule(place)
    x = torch.randn(1, 16, 9, 9, generator=generator)
    conv = nn.functional.conv2d
    judge = layer(x) + 0.5 * conv(conv(conv(x, down), mid, padding=1), up)
    assert torch.allclose(merged(x), judge, atol=1e-4)


def test_weights_of_text_and_unet_apart_and_several_at_once(clean: Twins, tmp_path: Path) -> None:
    pair = clean.of("sd1")
    theirs = pair.theirs
    parts = {"text_encoder": theirs.text_encoder, "unet": theirs.unet}
    saved = {part: {name: tensor.clone() for name, tensor in one.state_dict().items()} for part, one in parts.items()}
    # diffusers can't lay one such file over another, so the first is fused before the second comes.
    for name, seed, scales in (("first", 1, (0.3, 0.9)), ("second", 2, (-0.5, 0.25))):
        path = folder_with(tmp_path, name, kohya(pair, unet=ATTENTION, seed=seed))
        theirs.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name=name)
        for part, scale in zip(parts, scales, strict=True):
            theirs.fuse_lora(components=[part], lora_scale=scale)
        theirs.unload_lora_weights()
    use_folder(pair.ours, tmp_path)
    try:
        bundle = adapted(pair, "a cat <lora:first:0.3:0.9> <lora:second:unet=.25:te=-0.5>")
        assert_same(pair, bundle, changed={"unet", "text 0"})
    finally:
        for part, one in parts.items():
            one.load_state_dict(saved[part])
    only_text = adapted(pair, "<lora:first:1:0>")
    assert only_text.unet.state_dict().keys() == pair.ours.bundle.unet.state_dict().keys()
    assert all(
        tensor is only_text.unet.get_parameter(name) for name, tensor in pair.ours.bundle.unet.named_parameters()
    ), "a weight of 0 leaves the U-Net's own tensors in place"


def test_the_loaded_weights_stay_bit_for_bit(clean: Twins, tmp_path: Path) -> None:
    pair = clean.of("sd1")
    folder_with(tmp_path, "film", kohya(pair, unet=(*ATTENTION, *CONVOLUTIONS)))
    use_folder(pair.ours, tmp_path)
    before = {name: tensor.clone() for name, tensor in pair.ours.bundle.unet.state_dict().items()}
    request = Request(prompt="a cat", seed=3, num_inference_steps=2)
    plain = pair.ours.paint(request)[0]
    # A run that is left half way changes nothing for the next one.
    half = pair.ours.run(request.replace({"prompt": "a cat <lora:film>"}))
    next(half)
    between = pair.ours.paint(request)[0]
    (rest,) = [event for event in half if isinstance(event, Painted)]
    after = pair.ours.paint(request)[0]
    assert plain.recipe.pixels == between.recipe.pixels == after.recipe.pixels != rest.recipe.pixels
    assert all(torch.equal(tensor, before[name]) for name, tensor in pair.ours.bundle.unet.state_dict().items())
    zero = pair.ours.paint(request.replace({"prompt": "a cat <lora:film:0>"}))[0]
    assert zero.recipe.pixels != rest.recipe.pixels


def broken(kind: str, pair: Pair) -> dict[str, Tensor]:
    good = kohya(pair, unet=("to_q",))
    key = next(name for name in good if name.endswith("lora_up.weight"))
    base = key.removesuffix(".lora_up.weight")
    return {
        "unmatched": good | {"lora_unet_nowhere_to_q.lora_up.weight": torch.ones(4, 3)},
        "half": {name: tensor for name, tensor in good.items() if name != key},
        "shape": good | {key: torch.ones(5, RANK)},
        "dora": good | {f"{base}.dora_scale": torch.ones(5, 1)},
        "oft": {f"{base}.oft_blocks": torch.ones(4, 3, 3)},
        "glora": {f"{base}.a1.weight": torch.ones(4, 3), f"{base}.b1.weight": torch.ones(3, 4)},
        "difference": {f"{base}.diff": torch.ones(4, 3)},
        "other words": {"hello": torch.ones(2)},
        "twice": good | {f"unet.{TO_Q}.lora_B.weight": torch.ones(16, RANK)},
        "nan": good | {key: torch.full_like(good[key], float("nan"))},
        "alpha": good | {f"{base}.alpha": torch.ones(2)},
    }[kind]


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("oft", r"OFT \[4, 3, 3\] for a weight of"),
        ("glora", "a GLoRA adapter of which nothing fits.* half of a change"),
        ("difference", r"difference \[4, 3\] for a weight of"),
        ("other words", "match no layer of this model: hello"),
        ("nan", "NaN"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_by_name(clean: Twins, tmp_path: Path, kind: str, told: str) -> None:
    pair = clean.of("sd1")
    folder_with(tmp_path, "bad", broken(kind, pair))
    use_folder(pair.ours, tmp_path)
    with pytest.raises((IncompatibleCheckpoint, CorruptCheckpoint), match=told) as caught:
        pair.ours.run(Request(prompt="a cat <lora:bad>"))
    assert "another family" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "told", "changed"),
    [
        ("unmatched", "1 of .* match no layer of this model: lora_unet_nowhere_to_q.lora_up.weight", True),
        ("half", "2 of .* half of a change", False),
        ("shape", r"another shape than their layers: .*LoRA \[5, 3\]", False),
        ("dora", "5 magnitudes", False),
        ("twice", "1 of .* half of a change: unet.*lora_B|second time", True),
        ("alpha", "bad alpha", False),
    ],
)
def test_one_stray_tensor_does_not_refuse_the_others(
    clean: Twins, tmp_path: Path, kind: str, told: str, changed: bool
) -> None:
    """What fits is applied as without the stray one, which a note in the recipe names."""
    pair = clean.of("sd1")
    good = kohya(pair, unet=("to_q",))
    folder_with(tmp_path, "good", good)
    folder_with(tmp_path, "stray", broken(kind, pair))
    use_folder(pair.ours, tmp_path)
    plain = pair.ours.bundle.unet.state_dict()
    wanted, applied = (pair.ours.adapters.apply(Request(prompt=f"<lora:{name}>")) for name in ("good", "stray"))
    first, second = wanted.bundle.unet.state_dict(), applied.bundle.unet.state_dict()
    other = [name for name in first if not torch.equal(first[name], second[name])]
    assert len(other) == (0 if changed else 1)
    assert all(torch.equal(second[name], plain[name]) for name in other), "the stray one's layer is left as it is"
    assert sum(not torch.equal(plain[name], second[name]) for name in plain) == len(
        layers_of(pair.theirs.unet, "to_q")
    ) - len(other)
    (note,) = applied.notes
    assert re.search(told, note)
    painted = pair.ours.paint(Request(prompt="a <lora:stray>", seed=1, num_inference_steps=1))[0]
    assert note in painted.recipe.notes
    assert wanted.notes == ()


def test_a_lora_of_another_family_is_refused(clean: Twins, tmp_path: Path) -> None:
    folder_with(tmp_path, "xl", kohya(clean.of("sdxl"), unet=ATTENTION))
    pair = clean.of("sd1")
    use_folder(pair.ours, tmp_path)
    with pytest.raises(IncompatibleCheckpoint, match="model of another family"):
        pair.ours.run(Request(prompt="a cat <lora:xl>"))


def test_recipe_and_a1111_text_name_the_adapters(clean: Twins, tmp_path: Path) -> None:
    from hashlib import sha256

    pair = clean.of("sd1")
    path = folder_with(tmp_path, "film", kohya(pair, unet=ATTENTION))
    use_folder(pair.ours, tmp_path)
    request = Request(prompt="a cat <lora:film:0.5>", seed=2, num_inference_steps=1)
    painted = pair.ours.paint(request)[0]
    data = path.read_bytes()
    behind = data[8 + int.from_bytes(data[:8], "little") :]
    text = painted.texts()["parameters"]
    assert f'Lora hashes: "film: {sha256(behind).hexdigest()[:12]}"' in text
    assert text.startswith("a cat <lora:film:0.5>\n")
    recipe = json.loads(painted.texts()["gouache"])
    assert [one["sha256"] for one in recipe["adapters"] if one["kind"] == "lora"] == [sha256(data).hexdigest()]


def test_half_precision_weights_are_merged_in_single_precision(tmp_path: Path) -> None:
    from gouache.pipeline.pipeline import untrained_bundle

    bundle = untrained_bundle()
    bundle.unet.half()
    place = "mid_block.attentions.0.proj_in"
    key, weight = f"lora_unet_{place.replace('.', '_')}", weight_of(bundle.unet, place)
    generator = torch.Generator().manual_seed(1)
    down, up = torch.randn(2, 32, generator=generator), torch.randn(32, 2, generator=generator)
    path = folder_with(tmp_path, "h", {f"{key}.lora_down.weight": down.half(), f"{key}.lora_up.weight": up.half()})
    pipeline = Pipeline(bundle)
    use_folder(pipeline, tmp_path)
    merged = weight_of(pipeline.adapters.apply(Request(prompt="<lora:h:0.1>")).bundle.unet, place)
    read = load_file(path)
    product = read[f"{key}.lora_up.weight"].float() @ read[f"{key}.lora_down.weight"].float()
    judge = (weight.float() + 0.1 * product.reshape(weight.shape)).half()
    assert torch.equal(merged, judge)
