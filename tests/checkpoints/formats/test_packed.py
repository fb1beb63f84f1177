"""fp8 with scales is read; every other way to pack weights is refused by its name.

The kind: what a quantizing program lays beside, or in place of, a matrix. The judge of fp8 is the closed form
W = F * scale, written as plain float32 into a second file.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from gouache.checkpoints import detect
from gouache.checkpoints.convert import convert
from gouache.checkpoints.formats.header import Header, TensorInfo, open_header
from gouache.checkpoints.load import identify, load_bundle
from gouache.errors import CorruptCheckpoint, GouacheError, IncompatibleCheckpoint, UnknownFamily

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
Published = Callable[[str], Path]
Tensors = dict[str, Tensor]
UNET = "model.diffusion_model."
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2


@pytest.fixture(scope="module")
def whole(published: Published, tmp_path_factory: pytest.TempPathFactory) -> Tensors:
    path = tmp_path_factory.mktemp("whole") / "model.safetensors"
    convert(published("sdxl"), path, "single-file")
    return load_file(path)


def scaled(
    tensors: Tensors, dtype: torch.dtype, suffix: str, shape: tuple[int, ...], *, rows: bool = False
) -> tuple[Tensors, Tensors]:
    """The U-Net's linear layers in fp8, and what their numbers are."""
    stored, exact = dict(tensors), dict(tensors)
    for name, tensor in tensors.items():
        if name.startswith(UNET) and name.endswith(".weight") and tensor.ndim == 2:
            peak = tensor.abs().amax(1, keepdim=True) if rows else tensor.abs().amax()
            scale = (peak / torch.finfo(dtype).max).float().clamp(min=1e-12)
            stored[name] = (tensor / scale).to(dtype)
            exact[name] = stored[name].float() * scale
            kept = (len(tensor), *shape[1:]) if rows else shape
            stored[name.removesuffix("weight") + suffix] = scale.reshape(kept).clone()
    return stored, exact


def same(stored: Path, exact: Path) -> None:
    found, wanted = load_bundle(stored), load_bundle(exact)
    for part, network in found.networks().items():
        theirs = wanted.networks()[part].state_dict()
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize(
    ("dtype", "suffix", "shape", "rows"),
    [
        (E4M3, "scale_weight", (), False),
        (E5M2, "scale_weight", (1,), False),
        (E4M3, "weight_scale", (1,), False),
        (E4M3, "weight_scale", (0, 1), True),
        (E5M2, "weight_scale", (0,), True),
    ],
)
def test_fp8_with_scales_is_its_numbers_times_them(
    whole: Tensors, tmp_path: Path, dtype: torch.dtype, suffix: str, shape: tuple[int, ...], rows: bool
) -> None:
    stored, exact = scaled(whole, dtype, suffix, shape, rows=rows)
    one = next(name for name in stored if name.endswith(suffix)).removesuffix(suffix)
    marks = {
        "scaled_fp8": torch.zeros(2, dtype=dtype),
        f"{UNET}scaled_fp8": torch.zeros(0, dtype=dtype),
        f"{one}scale_input": torch.ones(()),
        f"{one}input_scale": torch.ones(1),
        f"{one}comfy_quant": torch.tensor(list(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8),
    }
    save_file(stored | marks, tmp_path / "stored.safetensors")
    save_file(exact, tmp_path / "exact.safetensors")
    identity = identify(tmp_path / "stored.safetensors")
    assert (identity.kind, identity.family, identity.unexplained) == ("model", "sdxl", ())
    assert identity.left_out["what only multiplying in fp8 needs"] == len(marks)
    assert {E4M3: "F8_E4M3", E5M2: "F8_E5M2"}[dtype] in identity.parts["unet"].dtypes
    same(tmp_path / "stored.safetensors", tmp_path / "exact.safetensors")


@pytest.mark.parametrize("dtype", [E4M3, E5M2])
def test_plain_fp8_is_taken_as_it_is(whole: Tensors, tmp_path: Path, dtype: torch.dtype) -> None:
    plain = {name: one.to(dtype) if one.is_floating_point() else one for name, one in whole.items()}
    save_file(plain, tmp_path / "model.safetensors")
    found = load_bundle(tmp_path / "model.safetensors", dtype=torch.float32).unet.state_dict()["conv_in.weight"]
    assert torch.equal(found, plain[f"{UNET}input_blocks.0.0.weight"].float())


def test_scales_in_a_folder_and_in_a_torch_file_count_too(published: Published, tmp_path: Path) -> None:
    shutil.copytree(published("sd1"), tmp_path / "model")
    file = tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    name = "time_embedding.linear_1.weight"
    exact = tensors | {name: tensors[name].to(E4M3).float() * 0.5}
    stored = tensors | {name: tensors[name].to(E4M3), name.replace("weight", "scale_weight"): torch.tensor(0.5)}
    save_file(stored, file)
    assert torch.equal(load_bundle(tmp_path / "model").unet.state_dict()[name], exact[name])
    file.unlink()
    torch.save(stored, file.with_suffix(".bin"))
    assert torch.equal(load_bundle(tmp_path / "model").unet.state_dict()[name], exact[name])


@pytest.mark.parametrize("scale", [float("nan"), float("inf")])
def test_a_scale_that_is_no_number_is_damage(whole: Tensors, tmp_path: Path, scale: float) -> None:
    stored, _ = scaled(whole, E4M3, "scale_weight", ())
    name = next(name for name in stored if name.endswith("scale_weight"))
    save_file(stored | {name: torch.tensor(scale)}, tmp_path / "model.safetensors")
    with pytest.raises(CorruptCheckpoint, match="a scale of"):
        load_bundle(tmp_path / "model.safetensors")


@pytest.mark.parametrize("shape", [(2,), (2, 2), (0,)])
def test_scales_of_blocks_are_refused_in_words(tmp_path: Path, shape: tuple[int, ...]) -> None:
    tensors = {"a.weight": torch.zeros(256, 256).to(E4M3), "a.weight_scale": torch.ones(shape)}
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(IncompatibleCheckpoint, match=r"scales F32.*of the F8_E4M3 tensor 'a\.weight'.*one a row"):
        open_header(tmp_path / "model.safetensors")


QUERY = "input_blocks.4.1.transformer_blocks.0.attn1.to_q"
BESIDE = {
    "nf4": (".weight.quant_state.bitsandbytes__nf4", ".weight.absmax", ".weight.quant_map"),
    "fp4": (".weight.quant_state.bitsandbytes__fp4", ".weight.absmax"),
    "bitsandbytes": (".weight.absmax", ".weight.nested_absmax"),
    "LLM.int8": (".SCB", ".weight_format"),
    "nunchaku": (".qweight", ".wscales", ".smooth_factor", ".proj_down", ".proj_up"),
    "GPTQ": (".qweight", ".qzeros", ".scales", ".g_idx"),
    "AWQ": (".qweight", ".qzeros", ".scales"),
    "quanto": (".weight._data", ".weight._scale", ".input_scale"),
    "torchao": ("._weight_qdata", "._weight_scale"),
    "NVFP4": (".weight_scale", ".weight_scale_2", ".comfy_quant"),
    "HQQ": (".W_q", ".meta"),
    "ComfyUI": (".weight_scale", ".comfy_quant"),
}
"""What lies beside, or in place of, a matrix, by a word of its refusal."""


def packed(kind: str, unet: dict[str, TensorInfo]) -> dict[str, TensorInfo]:
    made = {f"{QUERY}{end}": TensorInfo("U8", (640, 1)) for end in BESIDE[kind]}
    keeps = not any(end.startswith((".qweight", ".W_q", ".weight._data", "._weight")) for end in BESIDE[kind])
    kept = {f"{QUERY}.weight": TensorInfo("I8", (204800, 1))} if keeps else {}
    return {name: info for name, info in unet.items() if not name.startswith(QUERY)} | made | kept


@pytest.mark.parametrize("kind", BESIDE)
def test_every_packing_is_refused_by_its_name(whole: Tensors, kind: str) -> None:
    unet = {name.removeprefix(UNET): TensorInfo("F16", tuple(one.shape)) for name, one in whole.items()}
    with pytest.raises(IncompatibleCheckpoint, match=rf"model: given .*{kind}.*expected float32.*Get the model in"):
        detect.identify(Header(Path("model"), packed(kind, unet)))


@pytest.mark.parametrize("kind", ["nf4", "nunchaku", "GPTQ"])
def test_a_packed_model_of_another_family_is_named_for_both(kind: str) -> None:
    names = {"double_blocks.0.img_attn.qkv.bias": TensorInfo("F16", (9216,))}
    with pytest.raises(UnknownFamily, match=rf"FLUX.*, in .*{kind}"):
        detect.identify(Header(Path("model"), packed(kind, names)))


@pytest.mark.parametrize("method", ["bitsandbytes", "gptq", "awq", "quanto", "torchao", "svdquant", "modelopt"])
@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_a_folder_that_says_how_it_is_packed_is_refused_by_that_name(
    published: Published, tmp_path: Path, method: str, part: str
) -> None:
    shutil.copytree(published("sd1"), tmp_path / "model", copy_function=lambda a, b: Path(b).symlink_to(a))
    file = tmp_path / "model" / part / "config.json"
    values = json.loads(file.read_text())
    file.unlink()
    file.write_text(json.dumps(values | {"quantization_config": {"quant_method": method}}))
    with pytest.raises(GouacheError, match=rf"{part}/config\.json: given .*(?i:{method}).*quantization_config"):
        identify(tmp_path / "model")


@pytest.mark.parametrize("dtype", ["F8_E8M0", "F4", "F6_E2M3"])
def test_types_of_scales_a_block_are_refused_in_words(tmp_path: Path, dtype: str) -> None:
    header = json.dumps({"a.weight": {"dtype": dtype, "shape": [4], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "model").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(IncompatibleCheckpoint, match=rf"of type {dtype}.*Get the model in"):
        open_header(tmp_path / "model")
