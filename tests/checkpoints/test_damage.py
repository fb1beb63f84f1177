"""Damaged, incomplete and mixed-up models: a typed error that names the file and the cause. And fuzzing."""

from __future__ import annotations

import json
import random
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gouache.checkpoints.convert import convert
from gouache.checkpoints.formats.header import open_header, open_source
from gouache.checkpoints.load import identify, load_bundle
from gouache.errors import (
    CorruptCheckpoint,
    GouacheError,
    IncompatibleCheckpoint,
    ModelNotFound,
    UnknownFamily,
    UnknownName,
)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(published: Callable[[str], Path], tmp_path: Path) -> Path:
    """A folder to be damaged."""
    shutil.copytree(published("sd1"), tmp_path / "model")
    return tmp_path / "model"


def edit(file: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    change(tensors)
    save_file(tensors, file)


def edit_json(file: Path, **values: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_missing_unexpected_and_misshaped_tensors_are_listed_together(folder: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["stranger"] = torch.ones(1)
        tensors["conv_out.bias"] = torch.ones(5)
        del tensors["time_embedding.linear_2.weight"]

    edit(folder / UNET, change)
    with pytest.raises(IncompatibleCheckpoint) as caught:
        load_bundle(folder)
    text = str(caught.value)
    assert text.startswith(f"{folder / UNET}: ")
    assert "1 missing: time_embedding.linear_2.weight" in text
    assert "1 unexpected: stranger" in text
    assert "1 of another shape: conv_out.bias [5] for [4]" in text


@pytest.mark.parametrize(
    ("value", "told"), [(float("nan"), "NaN"), (float("inf"), "infinity"), (-float("inf"), "infinity")]
)
def test_one_number_that_is_none_is_found(folder: Path, value: float, told: str) -> None:
    edit(folder / UNET, lambda tensors: tensors["conv_in.weight"].view(-1).__setitem__(77, value))
    with pytest.raises(CorruptCheckpoint, match=rf"{UNET}: given {told} in tensor 'conv_in.weight'"):
        load_bundle(folder)


def test_a_number_too_large_for_fp16_is_told_from_damage(folder: Path) -> None:
    edit(folder / UNET, lambda tensors: tensors["conv_in.weight"].view(-1).__setitem__(77, 1e6))
    assert load_bundle(folder).unet.get_parameter("conv_in.weight").max() == 1e6
    with pytest.raises(CorruptCheckpoint, match=r"infinity in tensor 'conv_in.weight' as torch\.float16.*float32"):
        load_bundle(folder, dtype=torch.float16)


@pytest.mark.parametrize(
    ("file", "values", "told"),
    [
        ("unet/config.json", {"act_fn": "gelu"}, "act_fn = 'gelu'"),
        ("unet/config.json", {"time_cond_proj_dim": 256}, "time_cond_proj_dim = 256"),
        ("unet/config.json", {"block_out_channels": [32, 64, 96]}, r"as the weights beside it show"),
        ("vae/config.json", {"latent_channels": 16}, "latent_channels = 16"),
        ("text_encoder/config.json", {"hidden_size": 64}, "hidden_size = 64"),
        ("scheduler/scheduler_config.json", {"prediction_type": "flow"}, "prediction_type = 'flow'"),
    ],
)
def test_configs_that_speak_of_another_network_are_refused(
    folder: Path, file: str, values: dict[str, object], told: str
) -> None:
    edit_json(folder / file, **values)
    with pytest.raises(IncompatibleCheckpoint, match=rf"{file}.*{told}"):
        load_bundle(folder)


@pytest.mark.parametrize("file", [UNET, "vae/config.json", "text_encoder/model.safetensors"])
def test_a_file_that_is_not_there_is_named(folder: Path, file: str) -> None:
    (folder / file).unlink()
    with pytest.raises(ModelNotFound, match=str(Path(file).parent)):
        identify(folder)


@pytest.mark.parametrize("text", ["", "{", "[1]", "[" * 100_000, '"x"'])
def test_json_that_is_none_is_named(folder: Path, text: str) -> None:
    (folder / "unet/config.json").write_text(text)
    with pytest.raises(CorruptCheckpoint, match=r"unet/config\.json"):
        identify(folder)


def test_heads_and_scale_come_from_the_config(folder: Path) -> None:
    edit_json(folder / "unet/config.json", attention_head_dim=[4, 8, 8])
    edit_json(folder / "vae/config.json", scaling_factor=0.5, shift_factor=0.25)
    bundle = load_bundle(folder)
    assert bundle.unet.config.heads == (4, 8, 8)
    assert (bundle.vae.config.scale, bundle.vae.config.shift) == (0.5, 0.25)


def test_variants_and_shards(folder: Path) -> None:
    wanted = load_bundle(folder).unet.state_dict()
    tensors = load_file(folder / UNET)
    save_file({name: tensor.half() for name, tensor in tensors.items()}, folder / UNET.replace(".safe", ".fp16.safe"))
    assert load_bundle(folder).dtype == torch.float32
    assert load_bundle(folder, variant="fp16").dtype == torch.float16
    (folder / UNET).unlink()
    assert load_bundle(folder).dtype == torch.float16
    (folder / UNET.replace(".safe", ".fp16.safe")).unlink()
    names = list(tensors)
    weight_map: dict[str, str] = {}
    for i, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"diffusion_pytorch_model-0000{i}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / "unet" / file)
        weight_map |= dict.fromkeys(part, file)
    index = folder / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    found = load_bundle(folder).unet.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    index.write_text(json.dumps({"weight_map": {"x": "../../secret.safetensors"}}))
    with pytest.raises(CorruptCheckpoint, match="a file of this folder"):
        identify(folder)


def test_torch_files_in_folders_load_too(folder: Path) -> None:
    tensors = load_file(folder / UNET)
    torch.save(tensors, folder / "unet" / "diffusion_pytorch_model.bin")
    (folder / UNET).unlink()
    found = load_bundle(folder).unet.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_code_in_a_model_folder_is_not_looked_at(folder: Path, tmp_path: Path) -> None:
    (folder / "pipeline.py").write_text(f"open({str(tmp_path / 'it ran')!r}, 'w')")
    (folder / "unet" / "modeling.py").write_text(f"open({str(tmp_path / 'it ran')!r}, 'w')")
    edit_json(folder / "unet/config.json", auto_map={"AutoModel": "modeling.Net"}, _class_name=["modeling", "Net"])
    load_bundle(folder)
    assert not (tmp_path / "it ran").exists()


def test_what_cannot_paint_is_refused_with_its_name(folder: Path) -> None:
    with pytest.raises(IncompatibleCheckpoint, match="given a unet, expected a whole model"):
        load_bundle(folder / "unet")
    with pytest.raises(ModelNotFound, match="no file there"):
        load_bundle(folder / "nothing")
    with pytest.raises(UnknownFamily):
        identify(folder / "tokenizer")
    with pytest.raises(UnknownName, match="Did you mean 'eps'"):
        load_bundle(folder, prediction="epsi")  # type: ignore[arg-type]


def test_own_files_are_checked_against_their_own_sum(folder: Path, tmp_path: Path) -> None:
    convert(folder, tmp_path / "own", "gouache")
    file = tmp_path / "own" / "vae.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-1000] ^= 1
    file.write_bytes(raw)
    with pytest.raises(CorruptCheckpoint, match=r"vae\.safetensors.*sha256"):
        load_bundle(tmp_path / "own")
    convert(folder, tmp_path / "other", "gouache", dtype=torch.bfloat16)
    shutil.copy(tmp_path / "other" / "vae.safetensors", file)
    with pytest.raises(CorruptCheckpoint, match="mixes files of two models"):
        load_bundle(tmp_path / "own")


def fuzz(path: Path, originals: list[bytes], count: int, seed: int) -> int:
    """Mutate files at random, mostly their headers; returns how many were still readable. Anything but a typed error
    would come out of here."""
    chance = random.Random(seed)
    readable, told = 0, []
    for _ in range(count):
        data = bytearray(chance.choice(originals))
        head = min(len(data), 1200) if chance.random() < 0.8 else len(data)
        for _ in range(chance.choice((1, 1, 2, 8))):
            at = (
                chance.randrange(head)
                if chance.random() < 0.7
                else len(data) - 1 - chance.randrange(min(len(data), 600))
            )
            kind = chance.random()
            if kind < 0.5:
                data[at] = chance.randrange(256)
            elif kind < 0.7:
                data[at:at] = chance.randbytes(chance.randrange(1, 9))
            elif kind < 0.9:
                del data[at : at + chance.randrange(1, 9)]
            else:
                del data[at + 1 :]
            head = min(head, len(data))
            if len(data) < 4:
                break
        path.write_bytes(data)
        try:
            source = open_source(path)
            identify(path)
            for name in source.header.tensors:
                source.read(name, mapped=False)
            readable += 1
        except GouacheError as error:
            told.append(str(error))
    assert all(str(path) in text for text in told)
    return readable


def originals(tmp_path: Path) -> list[bytes]:
    tensors = {"emb_params": torch.ones(2, 768), "a.lora_down.weight": torch.ones(2, 3), "a.alpha": torch.ones(())}
    save_file(tensors, tmp_path / "a", {"ss_v2": "True"})
    torch.save({"state_dict": dict(tensors), "global_step": 3, "x": [1, {"y": 2.5}]}, tmp_path / "b")
    torch.save(tensors, tmp_path / "c", pickle_protocol=4)
    return [(tmp_path / name).read_bytes() for name in "abc"]


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_some_mutated_headers_and_zips_end_in_typed_errors(tmp_path: Path) -> None:
    readable = fuzz(tmp_path / "mutant", originals(tmp_path), 600, seed=1)
    assert 0 < readable < 600


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_many_mutated_headers_and_zips_end_in_typed_errors(tmp_path: Path) -> None:
    files = originals(tmp_path)
    fuzz(tmp_path / "mutant", files, 200, seed=2)
    before = peak_bytes()
    assert 0 < fuzz(tmp_path / "mutant", files, 24_000, seed=3) < 24_000
    assert peak_bytes() - before < 300 << 20


def test_a_header_of_a_file_that_was_cut_is_named(folder: Path) -> None:
    raw = (folder / UNET).read_bytes()
    (folder / UNET).write_bytes(raw[: len(raw) // 2])
    with pytest.raises(CorruptCheckpoint, match=rf"{UNET}.*cut off"):
        open_header(folder / UNET)
    with pytest.raises(CorruptCheckpoint, match=rf"{UNET}.*cut off"):
        load_bundle(folder)
