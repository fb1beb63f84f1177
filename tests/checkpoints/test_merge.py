"""Merging: numpy on the raw files, by A1111's formulas and merge-block-weighted's rules; LoRAs judged by diffusers."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from gouache.checkpoints.convert import convert
from gouache.checkpoints.load import load_bundle
from gouache.checkpoints.merging.blocks import block_names, read_blocks
from gouache.checkpoints.merging.loras import LoraToMerge, extract_lora, merge_loras
from gouache.checkpoints.merging.models import MergePlan, merge
from gouache.cli.main import app
from gouache.errors import CorruptCheckpoint, IncompatibleCheckpoint, InvalidInput, UnknownName
from gouache.models.configs import UNetConfig

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
RUNNER = CliRunner()
UNET = "unet/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"
Tensors = dict[str, torch.Tensor]


class Bench:
    """A family's model A as diffusers wrote it, and others of its build: B and C, folders and single files."""

    def __init__(self, plain: Path, folder: Path) -> None:
        self.a, self.folder = plain, folder
        self.b, self.c = (self._other(name, seed) for seed, name in enumerate("bc", 7))
        self._singles: dict[Path, Path] = {}

    def _other(self, name: str, seed: int) -> Path:
        path = self.folder / name
        shutil.copytree(self.a, path)
        generator = torch.Generator().manual_seed(seed)
        for file in (UNET, VAE, TEXT):
            tensors = load_file(path / file)
            changed = {
                key: one + 0.05 * torch.randn(one.shape, generator=generator) if one.is_floating_point() else one
                for key, one in tensors.items()
            }
            save_file(changed, path / file, {"format": "pt"})
        return path

    def single(self, model: Path) -> Path:
        """The same model in one file."""
        if model not in self._singles:
            self._singles[model] = self.folder / f"{model.name}.safetensors"
            convert(model, self._singles[model], "single-file")
        return self._singles[model]


@pytest.fixture(scope="module")
def bench(published: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(published("sd1"), tmp_path_factory.mktemp("merge"))


def close(found: Tensors, expected: Tensors, *, tolerance: float = 2e-6) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert np.allclose(found[name].float().numpy(), tensor.numpy(), rtol=0, atol=tolerance), name


def raw(path: Path) -> Tensors:
    """A file's numbers; text encoders' with one of the two spellings that transformers has had."""
    tensors = load_file(path)
    return {name.removeprefix("text_model."): one for name, one in tensors.items() if one.is_floating_point()}


@pytest.mark.every_time("plan0-*", "plan4-*")
@pytest.mark.parametrize(("plan", "sources", "factors"), [
    (MergePlan(weights=(0.3,)), "ab", (0.7, 0.3)),
    (MergePlan(), "ab", (0.5, 0.5)),
    (MergePlan(weights=(0.25, 0.35)), "abc", (0.4, 0.25, 0.35)),
    (MergePlan("add-difference", (0.8,)), "abc", (1.0, 0.8, -0.8)),
    (MergePlan("add-difference"), "abc", (1.0, 1.0, -1.0)),
])  # fmt: skip
def test_sums_are_the_formula_whatever_the_layouts(
    bench: Bench, tmp_path: Path, plan: MergePlan, sources: str, factors: tuple[float, ...]
) -> None:
    """The second model is a single file, the others folders."""
    models = {"a": bench.a, "b": bench.b, "c": bench.c}
    paths = [bench.single(bench.b) if name == "b" else models[name] for name in sources]
    merge(paths, tmp_path / "out", plan)
    for file in (UNET, VAE, TEXT):
        given = [raw(models[name] / file) for name in sources]
        wanted = {
            key: torch.from_numpy(sum(f * one[key].numpy() for f, one in zip(factors, given, strict=True)))
            for key in given[0]
        }
        close(raw(tmp_path / "out" / file), wanted)
    load_bundle(tmp_path / "out", device="cpu")


def test_nothing_and_all_of_the_second_are_bit_for_bit_the_models(bench: Bench, tmp_path: Path) -> None:
    for share, model in ((0.0, bench.a), (1.0, bench.b)):
        out = tmp_path / f"{share}.safetensors"
        merge([bench.a, bench.b], out, MergePlan(weights=(share,)))
        found, expected = load_file(out), load_file(bench.single(model))
        assert all(torch.equal(found[name], expected[name]) for name in expected)


INPUTS, MIDDLES = 9, 1


def alpha_of(key: str, numbers: list[float], base: float) -> float:
    """merge-block-weighted's rules for a key of a checkpoint."""
    if not key.startswith("model.diffusion_model."):
        return base
    if "time_embed" in key:
        return numbers[0]
    if ".out." in key and "_out." not in key.replace("model.diffusion_model.out.", ""):
        return numbers[-1]
    if found := re.search(r"\.input_blocks\.(\d+)\.", key):
        return numbers[int(found[1])]
    if found := re.search(r"\.output_blocks\.(\d+)\.", key):
        return numbers[INPUTS + MIDDLES + int(found[1])]
    assert ".middle_block." in key, key
    return numbers[INPUTS]


def test_block_weights_are_those_of_merge_block_weighted(bench: Bench, tmp_path: Path) -> None:
    numbers = [round(0.05 * k, 2) for k in range(2 * INPUTS + MIDDLES)]
    text = ",".join(map(str, numbers))
    merge([bench.a, bench.b], tmp_path / "out.safetensors", MergePlan(blocks=text, base=0.9))
    first, second = raw(bench.single(bench.a)), raw(bench.single(bench.b))
    wanted = {}
    for key, tensor in first.items():
        alpha = alpha_of(key, numbers, 0.9)
        wanted[key] = torch.from_numpy((1 - alpha) * tensor.numpy() + alpha * second[key].numpy())
    close(raw(tmp_path / "out.safetensors"), wanted)
    again = MergePlan(blocks=f"0.9,{text}")
    merge([bench.a, bench.b], tmp_path / "again.safetensors", again)
    close(raw(tmp_path / "again.safetensors"), wanted)


def test_blocks_of_the_published_models_have_the_known_names() -> None:
    plain = UNetConfig(channels=(320, 640, 1280, 1280), transformer_layers=(1, 1, 1, 0), heads=(8,) * 4)
    names = block_names(plain)
    assert (len(names), names[11], names[12], names[24]) == (25, "IN11", "M00", "OUT11")
    xl = UNetConfig(channels=(320, 640, 1280), transformer_layers=(0, 2, 10), heads=(5, 10, 20))
    assert (len(block_names(xl)), block_names(xl)[-1]) == (19, "OUT08")
    assert read_blocks("in00=0.1, OUT11=1", plain) == {"IN00": 0.1, "OUT11": 1.0}
    assert len(read_blocks(",".join(["0.5"] * 26), plain)) == 26
    assert len(read_blocks(",".join(["0.5"] * 20), xl)) == 20
    for bad in ("0.5,0.5", "a,b", "IN00=x", "IN00=1,0.5", ""):
        with pytest.raises((InvalidInput, UnknownName)):
            read_blocks(bad or ",", plain)
    with pytest.raises(UnknownName, match="OUT11"):
        read_blocks("OUT12=1", plain)


def test_an_inpainting_model_takes_the_difference_of_plain_ones(
    published: Callable[[str], Path], bench: Bench, tmp_path: Path
) -> None:
    """A1111's way to make one: inpainting + (custom - base); its own five channels stay."""
    wide = published("sd1-inpainting")
    merge([wide, bench.b, bench.c], tmp_path / "out", MergePlan("add-difference"))
    own, second, third = (load_file(path / UNET) for path in (wide, bench.b, bench.c))
    found = load_file(tmp_path / "out" / UNET)
    assert found["conv_in.weight"].shape[1] == 9
    assert torch.equal(found["conv_in.weight"][:, 4:], own["conv_in.weight"][:, 4:])
    wanted = own["conv_in.weight"][:, :4] + second["conv_in.weight"] - third["conv_in.weight"]
    assert torch.allclose(found["conv_in.weight"][:, :4], wanted, atol=2e-6)
    assert load_bundle(tmp_path / "out", device="cpu").unet.config.draft_channels == 5
    with pytest.raises(IncompatibleCheckpoint, match=r"conv_in\.weight.*first"):
        merge([bench.b, wide], tmp_path / "wrong", MergePlan())


def test_parts_types_and_the_record(bench: Bench, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    plan = MergePlan(weights=(0.3,), vae=2, text=1, dtype=torch.float16)
    merged = merge([bench.single(bench.a), bench.b], out, plan)
    assert merged.notes == ()
    found, first, second = (raw(path) for path in (out, bench.single(bench.a), bench.single(bench.b)))
    assert {tensor.dtype for tensor in found.values()} == {torch.float16}
    for prefix, source in (("first_stage_model.", second), ("cond_stage_model.", first)):
        names = [name for name in found if name.startswith(prefix)]
        assert names
        assert all(torch.equal(found[name], source[name].half()) for name in names)
    with safe_open(out, "pt") as file:
        told = file.metadata()
    recipe, models = json.loads(told["sd_merge_recipe"]), json.loads(told["sd_merge_models"])
    assert (recipe["interp_method"], recipe["multiplier"], recipe["save_as_half"]) == ("Weighted sum", 0.3, True)
    assert (recipe["vae"], recipe["text"], recipe["weights"]) == (2, 1, [0.3])
    import hashlib

    digest = hashlib.sha256(bench.single(bench.a).read_bytes()).hexdigest()
    assert recipe["primary_model_hash"] == digest
    assert models[digest]["name"] == bench.single(bench.a).stem
    assert recipe["secondary_model_hash"] is None, "a folder has no hash of one file"
    assert set(recipe["models"][1]["sha256"]) >= {UNET, VAE, TEXT}
    folder = tmp_path / "folder"
    merge([bench.a, bench.b], folder, MergePlan(weights=(0.3,)))
    with safe_open(folder / UNET, "pt") as file:
        assert json.loads(file.metadata()["sd_merge_recipe"])["weights"] == [0.3]


def test_what_does_not_fit_is_refused_with_its_names(
    published: Callable[[str], Path], bench: Bench, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(IncompatibleCheckpoint, match="family sd2"):
        merge([bench.a, published("sd2-v")], out)
    other = tmp_path / "other"
    shutil.copytree(bench.b, other)
    tensors = load_file(other / VAE)
    config = json.loads((other / "vae/config.json").read_text())
    config["layers_per_block"] = 2
    (other / "vae/config.json").write_text(json.dumps(config))
    from diffusers import AutoencoderKL

    AutoencoderKL.from_config(config).save_pretrained(other / "vae")
    assert len(load_file(other / VAE)) > len(tensors)
    with pytest.raises(IncompatibleCheckpoint, match=r"vae.*unexpected.*resnets"):
        merge([bench.a, other], out)
    for plan, words in (
        (MergePlan(weights=(0.1, 0.2)), "one for each model"),
        (MergePlan("add-difference"), "A [+] m"),
        (MergePlan(vae=3), "number of a model"),
        (MergePlan(weights=(float("nan"),)), "numbers"),
        (MergePlan(blocks="BASE=1", base=0.1), "BASE"),
    ):
        with pytest.raises(InvalidInput, match=words):
            merge([bench.a, bench.b], out, plan)
    with pytest.raises(CorruptCheckpoint, match="float16"):
        _overflowing(bench, tmp_path)
    assert not out.exists()


def _overflowing(bench: Bench, tmp_path: Path) -> None:
    huge = tmp_path / "huge"
    shutil.copytree(bench.b, huge)
    tensors = load_file(huge / UNET)
    tensors["conv_in.bias"] = tensors["conv_in.bias"] + 1e6
    save_file(tensors, huge / UNET, {"format": "pt"})
    merge([bench.a, huge], tmp_path / "out", MergePlan(dtype=torch.float16))


def kohya_lora(folder: Path, seed: int, rank: int = 4) -> tuple[Path, Tensors]:
    """A LoRA in kohya's layout, over one layer of the U-Net, a convolution and a layer of the text encoder."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q": ((rank, 32), (32, rank)),
        "lora_unet_down_blocks_0_resnets_0_conv1": ((rank, 32, 3, 3), (32, rank, 1, 1)),
        "lora_te_text_model_encoder_layers_0_mlp_fc1": ((rank, 32), (64, rank)),
    }
    tensors: Tensors = {}
    for layer, (down, up) in shapes.items():
        tensors[f"{layer}.lora_down.weight"] = torch.randn(down, generator=generator)
        tensors[f"{layer}.lora_up.weight"] = torch.randn(up, generator=generator)
        tensors[f"{layer}.alpha"] = torch.tensor(rank / 2)
    path = folder / f"lora{seed}.safetensors"
    save_file(tensors, path)
    return path, tensors


def test_a_lora_is_merged_into_a_model(bench: Bench, tmp_path: Path) -> None:
    path, tensors = kohya_lora(tmp_path, 1)
    merge([bench.a], tmp_path / "out", MergePlan(loras=(LoraToMerge(path, 0.8, 0.5),)))
    for file, name, layer, weight in (
        (UNET, "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight",
         "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q", 0.8),
        (UNET, "down_blocks.0.resnets.0.conv1.weight", "lora_unet_down_blocks_0_resnets_0_conv1", 0.8),
        (TEXT, "encoder.layers.0.mlp.fc1.weight", "lora_te_text_model_encoder_layers_0_mlp_fc1", 0.5),
    ):  # fmt: skip
        before, after = raw(bench.a / file), raw(tmp_path / "out" / file)
        up, down = (tensors[f"{layer}.lora_{role}.weight"].flatten(1).numpy() for role in ("up", "down"))
        wanted = before[name].numpy() + weight * 0.5 * (up @ down).reshape(before[name].shape)
        assert np.allclose(after[name].numpy(), wanted, atol=1e-5), name
        assert [key for key in before if not torch.equal(before[key], after[key])].count(name) == 1
    with safe_open(tmp_path / "out" / UNET, "pt") as file:
        recipe = json.loads(file.metadata()["sd_merge_recipe"])
    assert (recipe["interp_method"], recipe["loras"][0]["weight"]) == ("No interpolation", 0.8)
    stranger = tmp_path / "stranger.safetensors"
    save_file({"lora_unet_nothing.lora_down.weight": torch.ones(2, 3)}, stranger)
    with pytest.raises(IncompatibleCheckpoint, match="nothing fits"):
        merge([bench.a], tmp_path / "no", MergePlan(loras=(LoraToMerge(stranger),)))


@pytest.mark.slow
def test_a_difference_of_full_rank_is_the_tuned_model_again(bench: Bench, tmp_path: Path) -> None:
    lora = tmp_path / "lora.safetensors"
    notes = extract_lora(bench.b, bench.a, lora, rank=1024, conv_rank=1024, dtype=torch.float32)
    assert "100.0 % of the squared difference" in notes[0]
    merge([bench.a], tmp_path / "back", MergePlan(loras=(LoraToMerge(lora),)))
    tuned, back, base = (load_file(path / UNET) for path in (bench.b, tmp_path / "back", bench.a))
    name = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    changed = [key for key in base if not torch.equal(base[key], back[key])]
    assert name in changed
    assert all(torch.allclose(back[key], tuned[key], atol=1e-5) for key in changed)


def test_a_difference_of_a_rank_is_the_closest_and_diffusers_loads_it(bench: Bench, tmp_path: Path) -> None:
    """Eckart and Young: the error is the rest of the singular values; diffusers' fused weights are ours."""
    import diffusers

    lora = tmp_path / "lora.safetensors"
    extract_lora(bench.b, bench.a, lora, rank=6, dtype=torch.float32)
    file = load_file(lora)
    assert {tensor.shape[0] for name, tensor in file.items() if name.endswith("lora_down.weight")} == {6}
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(bench.a, safety_checker=None)
    pipeline.load_lora_weights(lora)
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    fused, base, tuned = pipeline.unet.state_dict(), load_file(bench.a / UNET), load_file(bench.b / UNET)
    for name in (
        "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight",
        "up_blocks.1.attentions.0.transformer_blocks.0.ff.net.0.proj.weight",
        "mid_block.attentions.0.proj_in.weight",
    ):
        wanted = (tuned[name] - base[name]).flatten(1).double().numpy()
        singular = np.linalg.svd(wanted, compute_uv=False)
        error = np.linalg.norm((fused[name] - tuned[name]).flatten(1).double().numpy())
        assert error == pytest.approx(float(np.sqrt((singular[6:] ** 2).sum())), rel=1e-4)
    merge([bench.a], tmp_path / "ours", MergePlan(loras=(LoraToMerge(lora),)))
    ours = load_file(tmp_path / "ours" / UNET)
    assert all(torch.allclose(ours[name], fused[name], atol=1e-5) for name in ours)
    text = raw(tmp_path / "ours" / TEXT)
    theirs = {name.removeprefix("text_model."): one for name, one in pipeline.text_encoder.state_dict().items()}
    assert all(torch.allclose(text[name], theirs[name], atol=1e-5) for name in text)
    with pytest.raises(IncompatibleCheckpoint, match="the same weights"):
        extract_lora(bench.a, bench.a, tmp_path / "none.safetensors")
    for rank in (0, 4000):
        with pytest.raises(InvalidInput, match="rank"):
            extract_lora(bench.b, bench.a, tmp_path / "none.safetensors", rank=rank)


@pytest.mark.slow
def test_an_sdxl_lora_has_kohyas_names_and_goes_back(published: Callable[[str], Path], tmp_path: Path) -> None:
    plain = published("sdxl")
    tuned = tmp_path / "tuned"
    shutil.copytree(plain, tuned)
    files = (UNET, TEXT, "text_encoder_2/model.safetensors")
    for file in files:
        tensors = load_file(tuned / file)
        generator = torch.Generator().manual_seed(3)
        save_file({k: v + 0.05 * torch.randn(v.shape, generator=generator) if v.is_floating_point() else v
                   for k, v in tensors.items()}, tuned / file, {"format": "pt"})  # fmt: skip
    lora = tmp_path / "lora.safetensors"
    extract_lora(tuned, plain, lora, rank=1024, dtype=torch.float32)
    layers = {name.split(".")[0] for name in load_file(lora)}
    assert any(re.match(r"lora_unet_input_blocks_\d+_1_transformer_blocks_0_attn1_to_q", one) for one in layers)
    assert any(one.startswith("lora_te1_text_model_encoder_layers_0_") for one in layers)
    assert any(one.startswith("lora_te2_text_model_encoder_layers_0_") for one in layers)
    merge([plain], tmp_path / "back", MergePlan(loras=(LoraToMerge(lora),)))
    for file in files:
        before, wanted, found = (raw(path / file) for path in (plain, tuned, tmp_path / "back"))
        changed = [key for key in found if not torch.equal(found[key], before[key])]
        assert len(changed) > 10
        assert all(torch.allclose(found[key], wanted[key], atol=1e-5) for key in changed)


def test_lora_files_become_one(bench: Bench, tmp_path: Path) -> None:
    loras = tuple(
        LoraToMerge(kohya_lora(tmp_path, k, rank)[0], weight) for k, rank, weight in ((1, 4, 0.8), (2, 2, -0.5))
    )
    merge([bench.a], tmp_path / "each", MergePlan(loras=loras))
    for rank, name in ((None, "sum"), (6, "closest")):
        joined = tmp_path / f"{name}.safetensors"
        merge_loras(loras, bench.a, joined, rank=rank, dtype=torch.float32)
        down = load_file(joined)["lora_unet_down_blocks_0_resnets_0_conv1.lora_down.weight"]
        assert down.shape == (6, 32, 3, 3)
        merge([bench.a], tmp_path / name, MergePlan(loras=(LoraToMerge(joined),)))
        for file in (UNET, TEXT):
            close(raw(tmp_path / name / file), raw(tmp_path / "each" / file), tolerance=2e-5)
    with pytest.raises(InvalidInput, match="new path"):
        merge_loras(loras, bench.a, tmp_path / "sum.safetensors")


def test_the_command(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    a, b, c = (str(one) for one in (bench.a, bench.b, bench.c))

    def run(*words: str) -> Any:
        return RUNNER.invoke(app, ["merge", *words])

    assert run(a, b, "-w", "0.3", "-o", "ab.safetensors").stdout.strip() == "ab.safetensors"
    told = json.loads(run(a, b, c, "--add-difference", "-o", "abc", "--json").stdout)
    assert told["path"] == "abc"
    assert (tmp_path / "abc" / "model_index.json").is_file()
    extracted = run(b, a, "--to", "lora", "--rank", "4", "-o", "l.safetensors")
    assert "layers differ" in extracted.stderr
    assert run(a, "--lora", "l.safetensors:0.5:0.2", "--dtype", "fp16", "-o", "al.safetensors").exit_code == 0
    with safe_open("al.safetensors", "pt") as file:
        (lora,) = json.loads(file.metadata()["sd_merge_recipe"])["loras"]
    assert (lora["weight"], lora["text_weight"]) == (0.5, 0.2)
    assert (
        run(
            a, "--lora", "l.safetensors:1", "--lora", "l.safetensors:1", "--to", "lora", "-o", "ll.safetensors"
        ).exit_code
        == 0
    )
    for words, sentence in (
        ((a, "-o", "no"), "two or more"),
        ((a, b, "-o", "ab.safetensors"), "new path"),
        ((a, b, "--rank", "3", "-o", "no"), "--to lora"),
        ((a, b, c, "--to", "lora", "-o", "no"), "two models"),
        ((a, b, "-w", "0.5", "--to", "lora", "-o", "no"), "weights of models"),
        ((a, "--lora", "lost.safetensors", "-o", "no"), "lost"),
    ):
        refused = run(*words)
        assert refused.exit_code != 0
        assert sentence in str(refused.exception) + refused.stderr


PEAK = """
import resource, sys
from pathlib import Path
from gouache.checkpoints.merging.models import MergePlan, merge
import gouache.checkpoints.load
small, large, out = map(Path, sys.argv[1:])
merge([small / "a", small / "b"], out / "warm.safetensors", MergePlan(weights=(0.3,)))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
merge([large / "a.safetensors", large / "b.safetensors"], out / "large.safetensors", MergePlan(weights=(0.3,)))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.slow
def test_memory_stays_far_below_one_model(bench: Bench, tmp_path: Path) -> None:
    """Two files of 200 MB; what the process takes beyond its modules, measured from outside by the system."""
    from dataclasses import replace

    from gouache.checkpoints.save import bundle_to_write, write_model
    from gouache.models.unet import UNet

    small = load_bundle(bench.a, device="cpu")
    assert isinstance(small.unet, UNet)
    config = small.unet.config.model_copy(update={"channels": (96, 192, 384)})
    (tmp_path / "out").mkdir()
    for seed, name in enumerate("ab"):
        unet = UNet(config)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in unet.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        write_model(bundle_to_write(replace(small, unet=unet)), tmp_path / f"{name}.safetensors", "single-file")
    size = (tmp_path / "a.safetensors").stat().st_size
    assert size > 100e6
    (tmp_path / "small").mkdir()
    for name, path in (("a", bench.a), ("b", bench.b)):
        (tmp_path / "small" / name).symlink_to(path)
    ran = subprocess.run(
        [sys.executable, "-c", PEAK, str(tmp_path / "small"), str(tmp_path), str(tmp_path / "out")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert int(ran.stdout) < 0.5 * size
    assert (tmp_path / "out" / "large.safetensors").stat().st_size == pytest.approx(size, rel=0.01)
