"""Textual inversions as words: diffusers is the judge, on the same random weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from gouache.checkpoints.adapters.library import AdapterFolder
from gouache.errors import CorruptCheckpoint, IncompatibleCheckpoint, UnsafeCheckpoint
from gouache.models.bundle import ModelBundle
from gouache.pipeline.pipeline import Pipeline
from gouache.pipeline.prompts.chunks import fill_chunks
from gouache.pipeline.prompts.encode import PromptReader
from gouache.pipeline.prompts.syntax import sections
from gouache.pipeline.request import Request

if TYPE_CHECKING:
    from tests.pipeline.twins import Pair, Twins

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
TIGHT = 1e-5


@pytest.fixture
def clean(own_twins: Twins) -> Iterator[Twins]:
    """The twins; what a test gave to ours is taken out again."""
    yield own_twins
    for pair in list(own_twins._built.values()):
        pair.ours.adapters.folder = AdapterFolder(Path("nowhere"))


def use_folder(pipeline: Pipeline, folder: Path) -> None:
    pipeline.adapters.folder = AdapterFolder(folder)


def adapted(pair: Pair, prompt: str) -> ModelBundle:
    return pair.ours.adapters.apply(Request(prompt=prompt)).bundle


def embedding_files(layout: str, folder: Path, vectors: Tensor, second: Tensor) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if layout == "kohya":
        save_file({"emb_params": vectors}, folder / "blob.safetensors")
    elif layout == "diffusers":
        save_file({"<blob>": vectors}, folder / "learned_embeds.safetensors")
    elif layout == "sdxl":
        save_file({"clip_l": vectors, "clip_g": second}, folder / "blob.safetensors")
    else:
        values = {"string_to_token": {"*": 265}, "string_to_param": {"*": vectors}, "name": "blob", "step": 7}
        torch.save(values, folder / "blob.pt")


@pytest.mark.every_time("kohya-sd1-1", "diffusers-sd2-3", "a1111-sd1-3", "sdxl-sdxl-3")
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(
    ("layout", "family"), [("kohya", "sd1"), ("diffusers", "sd2"), ("a1111", "sd1"), ("sdxl", "sdxl")]
)
def test_textual_inversions_are_diffusers(clean: Twins, tmp_path: Path, layout: str, family: str, count: int) -> None:
    pair = clean.of(family)
    generator = torch.Generator().manual_seed(count)
    vectors, second = (torch.randn(count, width, generator=generator) for width in (32, 24))
    embedding_files(layout, tmp_path / "embeddings", vectors, second)
    use_folder(pair.ours, tmp_path)
    word = "<blob>" if layout == "diffusers" else "blob"
    token = f"<inv-{layout}-{count}>"
    theirs = pair.theirs
    theirs.load_textual_inversion({token: vectors}, token=token)
    if family == "sdxl":
        theirs.load_textual_inversion(
            {token: second}, token=token, text_encoder=theirs.text_encoder_2, tokenizer=theirs.tokenizer_2
        )
    bundle = adapted(pair, f"a {word} on a hill")
    ours = PromptReader(bundle.text, "a1111", None).encode(f"a {word} on a hill").context.detach()
    judged = theirs.encode_prompt(
        f"a {token} on a hill", device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
    )[0].detach()
    for encoder in bundle.text.encoders:
        assert encoder.get_submodule("embeddings.token_embedding.base") is not None
    assert float((ours - judged).abs().max()) <= TIGHT
    plain = PromptReader(pair.ours.bundle.text, "a1111", None).encode(f"a {word} on a hill").context.detach()
    assert float((plain - ours).abs().max()) > 1e-2


def test_a_word_of_several_vectors_is_not_cut_between_chunks(tiny: ModelBundle, tmp_path: Path) -> None:
    embedding_files("kohya", tmp_path / "embeddings", torch.ones(4, 32), torch.ones(0))
    pipeline = Pipeline(tiny)
    use_folder(pipeline, tmp_path)
    prompt = "cat " * 73 + "(Blob:1.2) dog"
    painted = pipeline.paint(Request(prompt=prompt, seed=1, num_inference_steps=1))[0]
    text = pipeline.adapters.apply(Request(prompt=prompt)).bundle.text
    first, last = fill_chunks(text, sections(prompt))
    assert (len(first.ids), len(last.ids)) == (73, 5)
    assert last.weights == (1.2, 1.2, 1.2, 1.2, 1.0)
    assert text.decode_tokens(last.ids) == "blob dog"
    assert [(ref.name, ref.kind) for ref in painted.recipe.adapters] == [("blob", "textual-inversion")]
    assert 'TI hashes: "blob: ' in painted.texts()["parameters"]


def test_an_inversion_of_another_family_is_read_as_words_and_noted(tiny: ModelBundle, tmp_path: Path) -> None:
    embedding_files("kohya", tmp_path / "embeddings", torch.ones(2, 40), torch.ones(0))
    pipeline = Pipeline(tiny)
    use_folder(pipeline, tmp_path)
    request = Request(prompt="a blob", seed=1, num_inference_steps=1)
    painted, plain = pipeline.paint(request)[0], Pipeline(tiny).paint(request)[0]
    assert painted.recipe.pixels == plain.recipe.pixels
    assert any("'blob' was read as words" in note for note in painted.recipe.notes)
    assert painted.recipe.adapters == ()


def test_bad_inversions_are_refused(tiny: ModelBundle, tmp_path: Path) -> None:
    pipeline = Pipeline(tiny)
    folder = tmp_path / "embeddings"
    for name, tensors in {
        "widths": {"a": torch.ones(2, 32), "b": torch.ones(2, 24)},
        "cube": {"emb_params": torch.ones(2, 2, 32)},
        "lengths": {"clip_l": torch.ones(2, 32), "clip_g": torch.ones(3, 24)},
        "nan": {"emb_params": torch.full((1, 32), float("inf"))},
    }.items():
        folder.mkdir(exist_ok=True)
        save_file(tensors, folder / f"{name}.safetensors")
        use_folder(pipeline, tmp_path)
        with pytest.raises((IncompatibleCheckpoint, CorruptCheckpoint), match=f"{name}.safetensors"):
            pipeline.run(Request(prompt=f"a {name}"))
    (folder / "evil.pt").write_bytes(b"\x80\x04cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(UnsafeCheckpoint):
        pipeline.run(Request(prompt="a evil"))
