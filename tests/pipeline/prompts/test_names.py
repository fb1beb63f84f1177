"""One name, however it is written.

The kind of fault: two places that compare names fold them differently (`casefold`, `lower`, a regular expression's own
rule), so that one finds what the next one misses: a KeyError, or a file that is never found. Members: Turkish's two
letters i, German's sharp s, final sigma, letters and accents apart (macOS) or composed, Korean syllables apart, full
width, ligatures, other scripts' capitals, characters that are not seen; in file names, tags and prompts alike.
"""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from gouache.checkpoints.adapters.controlnet_library import find_control
from gouache.checkpoints.adapters.library import AdapterFolder
from gouache.checkpoints.adapters.naming import WordFinder, folded
from gouache.errors import GouacheError, ModelNotFound
from gouache.models.bundle import ModelBundle
from gouache.pipeline.pipeline import Pipeline
from gouache.pipeline.prompts.encode import PromptReader
from gouache.pipeline.request import Request


def apart(text: str) -> str:
    return unicodedata.normalize("NFD", text)


PAIRS = [
    ("kızıl", "KIZIL"),
    ("kızıl", "kızıl"),
    ("KIZIL", "kızıl"),
    ("İstanbul", "istanbul"),
    ("istanbul", "İSTANBUL"),
    ("straße", "STRASSE"),
    ("STRASSE", "straße"),
    ("GROẞ", "groß"),
    ("ΣΊΣΥΦΟΣ", "σίσυφος"),
    ("café", apart("café")),
    (apart("Café"), "CAFÉ"),
    (apart("кий-ёж"), "КИЙ-ЁЖ"),
    (apart("한국어"), "한국어"),
    ("한국어", apart("한국어")),
    (apart("パステル"), "パステル"),
    ("ﾊﾟｽﾃﾙ", "パステル"),
    ("ｓｔｙｌｅ", "style"),
    ("style", "ＳＴＹＬＥ"),
    ("ﬁne", "FINE"),
    ("ǆungla", "Ǆungla"),
    ("so\u00adft", "soft"),
    ("heart❤\ufe0f", "heart❤"),
    ("ắn", unicodedata.normalize("NFD", "Ắn")),
    ("赤い猫", "赤い猫"),
]
DIFFERENT = [
    ("cafe", "café"),
    ("cafe", apart("café")),
    ("style", "stylé"),
    ("style", apart("éstyle")),
    ("style", "stylex"),
    ("ss", "ßy"),
    ("猫", "赤い猫耳"),
]


def embedding(folder: Path, name: str) -> torch.Tensor:
    vectors = torch.randn(2, 32, generator=torch.Generator().manual_seed(1))
    (folder / "embeddings").mkdir(parents=True, exist_ok=True)
    save_file({"emb_params": vectors}, folder / "embeddings" / f"{name}.safetensors")
    return vectors


@pytest.mark.parametrize(("file", "written"), PAIRS)
def test_an_embedding_is_found_however_it_is_written(
    tiny: ModelBundle, tmp_path: Path, file: str, written: str
) -> None:
    embedding(tmp_path, file)
    pipeline = Pipeline(tiny)
    pipeline.adapters.folder = AdapterFolder(tmp_path)
    request = Request(prompt=f"a ({written}:1.2), cat", seed=1, num_inference_steps=1)
    (painted,) = pipeline.paint(request)
    assert [ref.name for ref in painted.recipe.adapters] == [file]
    contexts = [
        PromptReader(pipeline.adapters.apply(Request(prompt=text)).bundle.text, "a1111", None).encode(text).context
        for text in (f"a {written}, cat", f"a {file}, cat")
    ]
    assert torch.equal(contexts[0], contexts[1])
    pipeline.adapters.expect(painted.recipe.adapters)
    (again,) = pipeline.paint(painted.recipe.request)
    assert again.recipe.pixels == painted.recipe.pixels


@pytest.mark.parametrize("names", [("kizil", "kızıl"), ("strasse", "straße"), ("ab", "ａｂ")])
def test_of_two_files_the_one_that_is_written_so_is_taken(
    tiny: ModelBundle, tmp_path: Path, names: tuple[str, str]
) -> None:
    for name in names:
        embedding(tmp_path, name)
    pipeline = Pipeline(tiny)
    pipeline.adapters.folder = AdapterFolder(tmp_path)
    for name in names:
        (painted,) = pipeline.paint(Request(prompt=f"a {name} cat", seed=1, num_inference_steps=1))
        assert [ref.name for ref in painted.recipe.adapters] == [name]
        pipeline.adapters.expect(painted.recipe.adapters)
        assert pipeline.paint(painted.recipe.request)[0].recipe.adapters == painted.recipe.adapters
        pipeline.adapters._only = None


@pytest.mark.parametrize(("word", "text"), DIFFERENT)
def test_another_word_is_no_embedding(word: str, text: str) -> None:
    assert WordFinder([word]).find(f"a {text} b") == []


@pytest.mark.parametrize("text", ["", "a cat", "Style style-x, STYLE. stylex; <style>", "é" * 40, "한\u11ab"])
def test_places_are_those_of_the_text(text: str) -> None:
    for found in WordFinder(["style", "style-x", "<style>", "é"]).find(text):
        assert folded(text[found.start : found.end]) == folded(found.word)


@pytest.mark.parametrize(("file", "written"), PAIRS)
def test_tags_and_control_names_are_folded_alike(tmp_path: Path, file: str, written: str) -> None:
    for kind in ("adapters", "controlnet"):
        (tmp_path / kind).mkdir()
    tensors = {"lora_unet_x.lora_down.weight": torch.ones(1, 4), "lora_unet_x.lora_up.weight": torch.ones(4, 1)}
    save_file(tensors, tmp_path / "adapters" / f"{file}.safetensors")
    save_file(tensors, tmp_path / "controlnet" / f"{file}.safetensors")
    assert AdapterFolder(tmp_path).lora(written).path.stem == file
    assert find_control(written, tmp_path).path.stem == file
    with pytest.raises(ModelNotFound):
        AdapterFolder(tmp_path).lora(f"{written}x")


def test_one_odd_file_leaves_other_prompts_alone(tiny: ModelBundle, tmp_path: Path) -> None:
    for name in ("kızıl", "ß", "İ", apart("é"), "\u200d", "…", "a" * 100):
        embedding(tmp_path, name)
    pipeline = Pipeline(tiny)
    pipeline.adapters.folder = AdapterFolder(tmp_path)
    for prompt in ("a cat", "I KIZIL İ i ß SS é É e\u0301", "", "\u200d", "\u0301", "\ufe0f\ufe0f", "ﷺ", "Ⅷ ﬃ"):
        try:
            pipeline.paint(Request(prompt=prompt, seed=1, num_inference_steps=1))
        except GouacheError as error:
            pytest.fail(f"{prompt!r}: {error}")
