"""Stage `inversion`: a new word for a frozen model, in files that diffusers and our own prompts read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file
from tests.training.test_from_packed import equal, small_model
from tests.training.test_tuning_packed import squares, trained

from gouache.checkpoints.adapters.library import AdapterFolder
from gouache.checkpoints.formats.safetensors import load_tensors
from gouache.checkpoints.save import write_model
from gouache.errors import ConfigError, DataError
from gouache.pipeline.pipeline import Pipeline
from gouache.pipeline.prompts.encode import PromptReader
from gouache.pipeline.request import Request
from gouache.training.stages.inversion import NewWord
from gouache.training.state import checkpoints

if TYPE_CHECKING:
    from tests.pipeline.sd3_twins import Sd3Twins
    from tests.pipeline.twins import Twins

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
WORD = "<my-square>"
CONFIG = """
[data]
size = 32
[inversion]
start = "{start}"
word = "{word}"
vectors = 3
init = "a square"
{more}
[inversion.optimizer]
learning_rate = 5e-2
[inversion.loop]
images = {images}
log_images = 8
precision = "fp32"
"""


def learned(start: Path, folder: Path, images: int = 16, more: str = "", word: str = WORD, run: str = "run") -> Path:
    """The folder of a stage that has learnt a word from two squares."""
    data = folder / "mine"
    if not data.exists():
        squares(data, 2)
    config = folder / "config.toml"
    config.write_text(CONFIG.format(start=start, images=images, more=more, word=word))
    trained("inversion", config, data, folder / run)
    return folder / run / "inversion"


def judged(theirs: Any, prompt: str) -> torch.Tensor:
    found = theirs.encode_prompt(prompt, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False)
    states: torch.Tensor = found[0].detach()
    return states


def told(start: Path, folder: Path, prompt: str) -> torch.Tensor:
    """What our own prompts say once the file lies in the models folder."""
    pipeline = Pipeline.load(start)
    pipeline.adapters.folder = AdapterFolder(folder)
    adapted = pipeline.adapters.apply(Request(prompt=prompt))
    assert [ref.kind for ref in adapted.refs] == ["textual-inversion"]
    return PromptReader(adapted.bundle.text, "a1111", None).encode(prompt).context.detach()


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_word_is_learnt_and_read_by_diffusers_and_by_our_prompts(
    own_twins: Twins, tmp_path: Path, suffix: str
) -> None:
    pair = own_twins.of("sd1")
    pair.save(tmp_path / "model")
    before = {name: value.clone() for name, value in pair.ours.bundle.text.state_dict().items()}
    run = learned(tmp_path / "model", tmp_path)
    rows = load_file(run / "last.safetensors")[WORD]
    assert rows.shape == (3, 32)
    ids = pair.ours.bundle.text.tokenize("a square")
    table = before["encoders.0.embeddings.token_embedding.weight"]
    first = table[[ids[0], ids[1], ids[0]]]
    assert 1e-3 < float((rows - first).abs().max()) < 1

    embeddings = tmp_path / "models" / "embeddings"
    embeddings.mkdir(parents=True)
    name = "my-square" if suffix == ".pt" else WORD
    (embeddings / f"my-square{suffix}").write_bytes((run / f"last{suffix}").read_bytes())
    pair.theirs.load_textual_inversion(str(run / f"last{suffix}"), token=f"<judged{suffix}>")
    theirs = judged(pair.theirs, f"a photo of <judged{suffix}> on a hill")
    ours = told(tmp_path / "model", tmp_path / "models", f"a photo of {name} on a hill")
    assert float((ours - theirs).abs().max()) <= 1e-5


def test_nothing_but_the_new_rows_is_trained_and_a_resumed_run_is_the_uninterrupted_one(
    own_twins: Twins, tmp_path: Path
) -> None:
    own_twins.of("sd1").save(tmp_path / "model")
    whole = learned(tmp_path / "model", tmp_path, 16, run="whole")
    for images in (8, 16):
        parts = learned(tmp_path / "model", tmp_path, images, run="parts")
    saved = load_tensors(checkpoints(whole)[-1])
    assert equal(saved, load_tensors(checkpoints(parts)[-1]))
    assert {name for name in saved if name.startswith("network.")} == {"network.trained.vectors.0"}


def test_both_text_encoders_of_sdxl_learn_the_word(own_twins: Twins, tmp_path: Path) -> None:
    pair = own_twins.of("sdxl")
    pair.save(tmp_path / "model")
    run = learned(tmp_path / "model", tmp_path, 8)
    rows = load_file(run / "last.safetensors")
    assert {name: tuple(one.shape) for name, one in rows.items()} == {"clip_l": (3, 32), "clip_g": (3, 24)}
    theirs = pair.theirs
    theirs.load_textual_inversion(rows["clip_l"], token="<pair>")
    theirs.load_textual_inversion(
        rows["clip_g"], token="<pair>", text_encoder=theirs.text_encoder_2, tokenizer=theirs.tokenizer_2
    )
    embeddings = tmp_path / "models" / "embeddings"
    embeddings.mkdir(parents=True)
    (embeddings / "my-square.safetensors").write_bytes((run / "last.safetensors").read_bytes())
    ours = told(tmp_path / "model", tmp_path / "models", "a my-square on a hill")
    assert float((ours - judged(theirs, "a <pair> on a hill")).abs().max()) <= 1e-5


@pytest.mark.slow
def test_stable_diffusion_3_learns_a_word(sd3: Sd3Twins, tmp_path: Path) -> None:
    run = learned(sd3.path("3 medium"), tmp_path, 8)
    rows = load_file(run / "last.safetensors")
    assert {name: tuple(one.shape) for name, one in rows.items()} == {"clip_l": (3, 24), "clip_g": (3, 32)}
    embeddings = tmp_path / "models" / "embeddings"
    embeddings.mkdir(parents=True)
    (embeddings / "my-square.safetensors").write_bytes((run / "last.safetensors").read_bytes())
    assert told(sd3.path("3 medium"), tmp_path / "models", "a my-square").isfinite().all()


def test_lengths_are_held_between_those_of_known_words() -> None:
    rows = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.6, 0.8]])
    word = NewWord([rows], [(0.9, 2.0)])
    held = word.rows(0)
    assert torch.allclose(held.norm(dim=1), torch.tensor([2.0, 0.9, 1.0]))
    assert torch.allclose(torch.nn.functional.normalize(held), torch.nn.functional.normalize(rows))
    torch.autograd.backward(held.sum())
    gradient = word.vectors[0].grad
    assert gradient is not None
    # Where the length is held, nothing pulls along the vector.
    assert torch.allclose((gradient[:2] * rows[:2]).sum(1), torch.zeros(2), atol=1e-6)


def test_what_can_t_learn_a_word_is_refused_by_name(own_twins: Twins, tmp_path: Path) -> None:
    write_model(small_model(), tmp_path / "pocket", "gouache")
    with pytest.raises(ConfigError, match="sentence encoder"):
        learned(tmp_path / "pocket", tmp_path)
    own_twins.of("sd1").save(tmp_path / "model")
    with pytest.raises(ConfigError, match="no vector for"):
        learned(tmp_path / "model", tmp_path, word="cat")
    with pytest.raises(ConfigError, match="one word without spaces"):
        learned(tmp_path / "model", tmp_path, word="my cat")
    with pytest.raises(ConfigError, match="where the word goes"):
        learned(tmp_path / "model", tmp_path, more='templates = ["a photo"]')
    with pytest.raises(DataError, match=f"the word {WORD} in every caption"):
        learned(tmp_path / "model", tmp_path, more='texts = "captions"')
