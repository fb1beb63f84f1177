"""Layouts of textual inversions, as the programs that train them write them.

The kind: a textual inversion of a layout that no reader knew was refused, or taken for something else: tensors of
token numbers beside the vectors, torch's ParameterDict, other names of SDXL's two encoders, several words in one file,
vectors in a PNG's text or pixels, in a LoRA's file. The vectors that a word stands for have to be those of the file.
"""

from __future__ import annotations

import base64
import json
import re
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import save_file
from torch import Tensor, nn
from typer.testing import CliRunner

from gouache.checkpoints.adapters.embedding import read_embedding
from gouache.checkpoints.adapters.library import AdapterFolder, list_adapters
from gouache.cli.main import app
from gouache.errors import CorruptCheckpoint, GouacheError, IncompatibleCheckpoint
from gouache.models.bundle import ModelBundle
from gouache.models.configs import TextEncoderConfig
from gouache.models.text.clip import TextEncoder
from gouache.models.text.stack import TextStack
from gouache.pipeline.pipeline import Pipeline
from gouache.pipeline.prompts.adapters import Adapted, TokensWithWords
from gouache.pipeline.request import Request

WIDTH = 32
FIRST, SECOND = 20, 12
"""Widths of two text encoders, side by side as wide as the one."""


def numbers(count: int, width: int = WIDTH, seed: int = 0) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed + count))


@pytest.fixture
def two(tiny: ModelBundle) -> ModelBundle:
    """A model with two text encoders of different widths; only its texts are used."""
    shape: dict[str, Any] = {"inner_width": 64, "layers": 1, "heads": 2, "skip_layers": 0}
    encoders = [TextEncoder(TextEncoderConfig(width=width, **shape)) for width in (FIRST, SECOND)]
    return replace(tiny, text=TextStack.of_clip(encoders))


def adapted(bundle: ModelBundle, folder: Path, prompt: str) -> Adapted:
    pipeline = Pipeline(bundle)
    pipeline.adapters.folder = AdapterFolder(folder)
    return pipeline.adapters.apply(Request(prompt=prompt))


def rows(found: Adapted, index: int = 0) -> Tensor:
    """The vectors of all new tokens of one text encoder."""
    table = found.bundle.text.encoders[index].get_submodule("embeddings.token_embedding")
    assert isinstance(table, TokensWithWords), f"no new words: {found.notes}"
    return table.rows.detach()


def first_trainers(path: Path, vectors: Tensor) -> None:
    """The first trainer's checkpoint: token numbers as tensors, vectors in a ParameterDict."""
    parameters = nn.ParameterDict({"*": nn.Parameter(vectors)})
    torch.save({"string_to_token": {"*": torch.tensor(265)}, "string_to_param": parameters}, path)


def dictionary(names: dict[str, object]) -> Callable[[Path, Tensor], None]:
    def write(path: Path, vectors: Tensor) -> None:
        torch.save({name: vectors if value is Ellipsis else value for name, value in names.items()}, path)

    return write


def tensors(*names: str, **others: Tensor) -> Callable[[Path, Tensor], None]:
    return lambda path, vectors: save_file({**dict.fromkeys(names, vectors), **others}, path)


LAYOUTS: dict[str, tuple[str, Callable[[Path, Tensor], None]]] = {
    "A1111's torch file": (
        "blob.pt",
        lambda path, vectors: torch.save(
            {
                "string_to_token": {"*": 265},
                "string_to_param": {"*": vectors},
                "name": "x",
                "step": 5,
                "sd_checkpoint": None,
            },
            path,
        ),
    ),
    "the first trainer's": ("blob.pt", first_trainers),
    "token numbers as tensors": (
        "blob.pt",
        lambda path, vectors: torch.save(
            {"string_to_token": {"*": torch.tensor([265])}, "string_to_param": {"*": nn.Parameter(vectors)}}, path
        ),
    ),
    "a token of its own": (
        "blob.pt",
        lambda path, vectors: torch.save(
            {"string_to_token": {"<thing>": torch.tensor(9)}, "string_to_param": {"<thing>": vectors}}, path
        ),
    ),
    "A1111's in safetensors": ("blob.safetensors", tensors("string_to_param.*")),
    "kohya's": ("blob.safetensors", tensors("emb_params")),
    "kohya's torch file": ("blob.pt", dictionary({"emb_params": ...})),
    "OneTrainer's": ("blob.safetensors", tensors("emp_params")),
    "OneTrainer's with output vectors": (
        "blob.safetensors",
        lambda path, vectors: save_file({"emp_params": vectors, "emp_params_out": vectors + 1}, path),
    ),
    "ComfyUI's": ("blob.safetensors", tensors("clip_l")),
    "SD 2's": ("blob.safetensors", tensors("clip_h")),
    "SD3's": (
        "blob.safetensors",
        lambda path, vectors: save_file({"clip_l": vectors, "t5xxl": numbers(2, 40)}, path),
    ),
    "diffusers'": ("blob.safetensors", tensors("<thing>")),
    "diffusers' torch file": ("blob.bin", dictionary({"<thing>": ...})),
    "one vector without rows": (
        "blob.bin",
        lambda path, vectors: torch.save({f"<thing{k}>": row.clone() for k, row in enumerate(vectors)}, path),
    ),
    "in half precision": ("blob.safetensors", lambda path, vectors: save_file({"emb_params": vectors.half()}, path)),
    "Replicate's suffix": ("blob.pti", tensors("text_encoders_0")),
}


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_files_vectors_are_the_words(tiny: ModelBundle, tmp_path: Path, layout: str, count: int) -> None:
    name, write = LAYOUTS[layout]
    (tmp_path / "embeddings").mkdir()
    vectors = numbers(count)
    write(tmp_path / "embeddings" / name, vectors)
    (listed,) = list_adapters(tmp_path)
    assert (listed.kind, listed.name) == ("textual-inversion", "blob")
    found = adapted(tiny, tmp_path, "a blob on a hill")
    assert torch.allclose(rows(found), vectors, atol=1e-3 if "half" in layout else 0)
    assert [(ref.kind, ref.name) for ref in found.refs] == [("textual-inversion", "blob")]
    left = {"SD3's": "t5xxl", "OneTrainer's with output vectors": "emp_params_out"}.get(layout)
    assert [left in note for note in found.notes if left] == [True] * (left is not None)


@pytest.mark.parametrize(
    "names",
    [
        ("clip_l", "clip_g"),
        ("text_encoders_0", "text_encoders_1"),
        ("<thing>.clip_l", "<thing>.clip_g"),
        ("clip_l", "clip_g", "t5xxl"),
        ("clip_l", "clip_g", "clip_l_out", "clip_g_out"),
    ],
)
@pytest.mark.parametrize("kind", ["safetensors", "pt"])
def test_two_text_encoders(two: ModelBundle, tmp_path: Path, names: tuple[str, ...], kind: str) -> None:
    (tmp_path / "embeddings").mkdir()
    first, second = numbers(2, FIRST), numbers(2, SECOND, 1)
    state = {name: torch.ones(2, 40) for name in names} | {names[0]: first, names[1]: second}
    path = tmp_path / "embeddings" / f"blob.{kind}"
    if kind == "pt":
        torch.save(state, path)
    else:
        save_file(state, path)
    found = adapted(two, tmp_path, "a blob on a hill")
    assert torch.equal(rows(found), first)
    assert torch.equal(rows(found, 1), second)
    (listed,) = list_adapters(tmp_path)
    assert (listed.family, listed.label) == ("sdxl", "2 vectors for each text encoder")


@pytest.mark.parametrize("kind", ["safetensors", "bin", "a1111"])
def test_several_words_in_one_file(tiny: ModelBundle, tmp_path: Path, kind: str) -> None:
    """Each token is a word; the file's name stands for all of them in turn, as <s0><s1> does."""
    (tmp_path / "embeddings").mkdir()
    state = {"<s0>": numbers(1), "<s1>": numbers(2), "<Style>": numbers(3)}
    path = tmp_path / "embeddings" / f"pack.{'safetensors' if kind == 'safetensors' else 'pt'}"
    if kind == "safetensors":
        save_file(state, path)
    else:
        inside = {"string_to_token": dict.fromkeys(state, 3), "string_to_param": state}
        torch.save(inside if kind == "a1111" else state, path)
    for word, vectors in state.items():
        assert torch.equal(rows(adapted(tiny, tmp_path, f"a cat in {word}")), vectors)
    both = adapted(tiny, tmp_path, "<s1> then <s0>")
    assert torch.equal(rows(both), torch.cat([state["<s1>"], state["<s0>"]]))
    assert [ref.name for ref in both.refs] == ["pack"]
    whole = sorted(numbers(k)[0, 0].item() for k in (1, 2, 3))
    pack = rows(adapted(tiny, tmp_path, "a pack"))
    assert len(pack) == 6
    assert set(whole) <= set(pack[:, 0].tolist())


def test_output_vectors_alone_are_refused_by_name(tmp_path: Path) -> None:
    save_file({"emp_params_out": numbers(2)}, tmp_path / "blob.safetensors")
    with pytest.raises(IncompatibleCheckpoint, match="emp_params_out"):
        read_embedding(tmp_path / "blob.safetensors")


# PNG: written here from the description of the format, with Pillow and plain loops.


def a1111_json(vectors: Tensor, name: str = "blob") -> str:
    parameters = {"*": {"TORCHTENSOR": vectors.tolist()}}
    return json.dumps({"string_to_token": {"*": 265}, "string_to_param": parameters, "name": name, "step": 7})


def png_text(path: Path, vectors: Tensor, *, kind: str = "tEXt", name: str = "blob") -> None:
    info = PngInfo()
    text = base64.b64encode(a1111_json(vectors, name).encode()).decode()
    if kind == "iTXt":
        info.add_itxt("sd-ti-embedding", text, zip=False)
    elif kind == "iTXt, deflated":
        info.add_itxt("sd-ti-embedding", text, zip=True)
    else:
        info.add_text("sd-ti-embedding", text, zip=kind == "zTXt")
    Image.new("RGB", (16, 16), (200, 100, 50)).save(path, pnginfo=info)


def masks(count: int) -> list[int]:
    state, found = 0, []
    for _ in range(count):
        state = (1664525 * state + 1013904223) % 2**32
        found.append(state % 255 % 16)
    return found


def png_pixels(path: Path, vectors: Tensor, *, height: int = 24) -> None:
    data = zlib.compress(a1111_json(vectors).encode(), 9)
    columns = -(-len(data) // (3 * height)) + 1
    padded = (list(data) * 2)[: 3 * height * columns]
    padded += [7] * (3 * height * columns - len(padded))
    blocks = []
    for shift in (0, 4):
        halves = [(byte >> shift & 15) ^ mask for byte, mask in zip(padded, masks(len(padded)), strict=True)]
        # What shows: any high half; 0x50 keeps every pixel of the edge from being black.
        blocks.append(np.array([0x50 | half for half in halves], np.uint8).reshape(height, columns, 3))
    picture = np.full((height, 20, 3), 99, np.uint8)
    black = np.zeros((height, 1, 3), np.uint8)
    Image.fromarray(np.concatenate([blocks[0], black, picture, black, blocks[1]], axis=1)).save(path)


@pytest.mark.parametrize("kind", ["tEXt", "zTXt", "iTXt", "iTXt, deflated", "pixels", "pixels, low"])
@pytest.mark.parametrize("count", [1, 4])
def test_pictures_hold_vectors(tiny: ModelBundle, tmp_path: Path, kind: str, count: int) -> None:
    (tmp_path / "embeddings").mkdir()
    path, vectors = tmp_path / "embeddings" / "blob.png", numbers(count)
    if kind.startswith("pixels"):
        png_pixels(path, vectors, height=9 if "low" in kind else 24)
    else:
        png_text(path, vectors, kind=kind)
    found = adapted(tiny, tmp_path, "a blob on a hill")
    assert torch.equal(rows(found), vectors)
    assert [(ref.kind, ref.name) for ref in found.refs] == [("textual-inversion", "blob")]
    told = CliRunner().invoke(app, ["inspect", str(path)])
    assert "textual-inversion" in told.stdout


def test_the_fixed_stream_of_numbers() -> None:
    """The first numbers that A1111's own test of its format gives (image_embedding.py)."""
    from gouache.checkpoints.formats.png_embedding import _unmasked

    reference = [253, 242, 127, 44, 157, 27, 239, 133, 38, 79, 167, 4, 177, 95, 130, 79, 78, 14, 52, 215, 220, 194]
    found = _unmasked(np.zeros((len(reference),), np.uint8))
    assert found.tolist() == [number & 15 for number in reference]


def test_pictures_beside_adapters_are_only_pictures(tmp_path: Path) -> None:
    """Previews are listed nowhere; a text with vectors counts in every folder, pixels in that of embeddings."""
    for folder in ("embeddings", "loras"):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (64, 64), (90, 80, 70)).save(tmp_path / folder / "cat.png")
        Image.new("RGB", (64, 64)).save(tmp_path / folder / "black.png")
        (tmp_path / folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(50))
        png_pixels(tmp_path / folder / "shown.preview.png", numbers(1))
        png_text(tmp_path / folder / f"text-{folder}.png", numbers(1))
        png_pixels(tmp_path / folder / f"pixels-{folder}.png", numbers(1))
    assert [file.name for file in list_adapters(tmp_path)] == ["pixels-embeddings", "text-embeddings", "text-loras"]


@pytest.mark.parametrize(
    "text",
    [
        "no base64!!",
        base64.b64encode(b"no json").decode(),
        base64.b64encode(b"[" * 100_000).decode(),
        base64.b64encode(b"{}").decode(),
        base64.b64encode(json.dumps({"string_to_param": {"*": {"TORCHTENSOR": []}}}).encode()).decode(),
        base64.b64encode(json.dumps({"string_to_param": {"*": {"TORCHTENSOR": [[1, 2], [3]]}}}).encode()).decode(),
        base64.b64encode(json.dumps({"string_to_param": {"*": {"TORCHTENSOR": [["a"]]}}}).encode()).decode(),
        base64.b64encode(json.dumps({"string_to_param": {"*": {"TORCHTENSOR": [[1e999]]}}}).encode()).decode(),
        base64.b64encode(json.dumps({"string_to_param": {"*": [[[1.0]]]}}).encode()).decode(),
    ],
)
def test_damaged_pictures_are_errors(tmp_path: Path, text: str) -> None:
    info = PngInfo()
    info.add_text("sd-ti-embedding", text)
    path = tmp_path / "blob.png"
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)
    with pytest.raises(GouacheError, match=re.escape("blob.png")) as caught:
        read_embedding(path)
    assert isinstance(caught.value, CorruptCheckpoint | IncompatibleCheckpoint)


# Textual inversions inside of LoRA files.

PLACE = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"


def lora(**more: Tensor) -> dict[str, Tensor]:
    return {
        f"{PLACE}.lora_down.weight": numbers(2, 16),
        f"{PLACE}.lora_up.weight": numbers(16, 2),
        **more,
    }


@pytest.mark.parametrize(
    "name",
    [
        "bundle_emb.blob.emb_params",
        "bundle_emb.blob.string_to_param.*",
        "bundle_emb.blob.string_to_param.<thing>",
        "bundle_emb.blob.emp_params",
        "bundle_emb.blob.clip_l",
        "bundle_emb.Blob.clip_l",
        "bundle_emb.blob",
    ],
)
def test_a_loras_own_words(tiny: ModelBundle, tmp_path: Path, name: str) -> None:
    """They hold while the prompt names the LoRA, and need no note and no file of their own."""
    (tmp_path / "adapters").mkdir()
    save_file({**lora(), name: numbers(3)}, tmp_path / "adapters" / "film.safetensors")
    found = adapted(tiny, tmp_path, "a blob <lora:film>")
    assert torch.equal(rows(found), numbers(3))
    assert found.notes == ()
    assert [(ref.kind, ref.name) for ref in found.refs] == [("lora", "film")]
    without = adapted(tiny, tmp_path, "a blob")
    assert without.bundle is tiny
    (listed,) = list_adapters(tmp_path)
    assert listed.kind == "lora"


def test_a_loras_own_word_for_two_encoders_and_one_for_nobody(two: ModelBundle, tmp_path: Path) -> None:
    (tmp_path / "adapters").mkdir()
    state = {
        "bundle_emb.blob.clip_l": numbers(2, FIRST),
        "bundle_emb.blob.clip_g": numbers(2, SECOND),
        "bundle_emb.blob.clip_g_out": numbers(2, SECOND),
        "bundle_emb.thing.clip_l": numbers(1, FIRST),
    }
    save_file({**lora(), **state}, tmp_path / "adapters" / "film.safetensors")
    found = adapted(two, tmp_path, "a blob and a thing <lora:film>")
    assert torch.equal(rows(found), numbers(2, FIRST))
    assert torch.equal(rows(found, 1), numbers(2, SECOND))
    assert any("'thing' was read as words" in note for note in found.notes)


def test_pictures_replay_with_a_loras_own_words(tiny: ModelBundle, tmp_path: Path) -> None:
    (tmp_path / "adapters").mkdir()
    save_file({**lora(), "bundle_emb.blob.emb_params": numbers(3)}, tmp_path / "adapters" / "film.safetensors")
    pipeline = Pipeline(tiny)
    pipeline.adapters.folder = AdapterFolder(tmp_path)
    request = Request(prompt="a blob <lora:film>", seed=1, num_inference_steps=1)
    painted = pipeline.paint(request)[0]
    again = Pipeline(tiny)
    again.adapters.folder = AdapterFolder(tmp_path)
    again.adapters.expect(painted.recipe.adapters)
    assert again.paint(painted.recipe.request)[0].recipe.pixels == painted.recipe.pixels
    plain = pipeline.paint(request.replace({"prompt": "a thing <lora:film>"}))[0]
    assert plain.recipe.pixels != painted.recipe.pixels
