"""What a form asks the server for: a model's abilities, tokens and completions of a prompt, presets."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file
from tests.pipeline.conftest import make_bundle

from gouache.checkpoints.load import load_bundle
from gouache.checkpoints.save import bundle_to_write, write_model
from gouache.errors import GouacheError, InvalidInput
from gouache.models.bundle import ModelBundle
from gouache.pipeline.prompts.chunks import fill_chunks
from gouache.pipeline.prompts.syntax import sections
from gouache.pipeline.request import Request
from gouache.pipeline.resolve import resolve_request
from gouache.pipeline.unused import unused_notes
from gouache.serve.models.abilities import Abilities, abilities_of
from gouache.serve.models.catalog import ModelEntry
from gouache.serve.models.prompt_tokens import count_tokens

if TYPE_CHECKING:
    from starlette.testclient import TestClient
    from tests.serve.conftest import MakeClient

KINDS: dict[str, dict[str, Any]] = {
    "base": {},
    "inpaint": {"draft_channels": 5},
    "instruct": {"draft_channels": 4},
    "depth": {"draft_channels": 1},
    "sdxl": {"family": "sdxl", "sdxl": True},
    "alpha": {"image_channels": 4},
}
VALUES: dict[str, Any] = {
    "prior": {"temperature": 0.5},
    "best_of": 2,
    "prompt_2": "a",
    "negative_prompt_2": "a",
    "prompt_3": "a",
    "negative_prompt_3": "a",
    "max_sequence_length": 100,
    "size_condition": {"crop_left": 8},
    "image_guidance_scale": 2.0,
    "depth_image": "p",
    "noise_level": 10,
    "image_prompts": [{"images": ["p"], "adapter": "x"}],
    "pag": {"layers": ["mid"]},
    "sag": {},
    "slg": {"layers": ["mid"]},
    "perp_neg": {},
    "mimic": {},
    "apg": {},
    "inversion": {},
    "regions": [{"prompt": "a", "box": [0, 0, 0.5, 1]}],
    "negative_prompt": "b",
    "guidance_rescale": 0.5,
    "guidance_interval": [0.1, 10],
    "style": "ink",
    "freeu": {},
    "cfg_cache": {},
    "deep_cache": {},
    "token_merging": 0.5,
    "fast": True,
    "seamless": "x",
}
"""A value of each field that some model has no use for."""


def saved(folder: Path, **kind: Any) -> tuple[ModelEntry, ModelBundle]:
    """A tiny model on the disk, and the same loaded."""
    path = write_model(bundle_to_write(make_bundle(**kind)), folder / "tiny", "gouache")
    return ModelEntry("tiny", path, 1, 1.0), load_bundle(path)


def is_used(field: str, bundle: ModelBundle) -> bool:
    """Whether a loaded model takes a value of a field and does something with it."""
    values: dict[str, Any] = {"prompt": "a cat", field: VALUES[field], "guidance_scale": 3.0, "seed": 1}
    if field != "negative_prompt":
        values["negative_prompt"] = "c"
    if field in ("inversion", "image_guidance_scale", "noise_level"):
        values["init_image"] = "p"
    request = Request.from_dict(values)
    try:
        resolved = resolve_request(request, bundle, (32, 32))
    except InvalidInput as error:
        # A model that needs a picture besides is no refusal of this field.
        return not error.where.startswith(field)
    return not any(note.startswith(f"{field} was not used") for note in unused_notes(resolved, bundle))


@pytest.mark.parametrize("kind", list(KINDS))
def test_what_is_said_from_headers_is_what_the_loaded_model_does(kind: str, tmp_path: Path) -> None:
    entry, bundle = saved(tmp_path, **KINDS[kind])
    said = abilities_of(entry)
    assert said.error == ""
    for field in VALUES:
        used = is_used(field, bundle)
        if field == "clip_skip":
            continue
        assert (field not in said.unusable) == used, f"{field}: {'' if used else 'not '}used by a model of kind {kind}"
    defaults = bundle.defaults
    assert (said.width, said.height) == (defaults.width, defaults.height)
    assert (said.num_inference_steps, said.guidance_scale) == (defaults.num_inference_steps, defaults.guidance_scale)
    assert (said.sampler, said.schedule) == (defaults.sampler, defaults.schedule)
    assert said.alpha == (bundle.vae.config.image_channels == 4)
    assert said.input == {"base": "", "sdxl": "", "alpha": ""}.get(kind, kind)


def test_the_shipped_model_drafts_enlarges_and_has_styles() -> None:
    said = abilities_of(ModelEntry("pocket", None, 0, 0.0))
    if said.error:
        pytest.skip("this build has no shipped model")
    assert (said.input, said.prior, said.upscaler, said.alpha, said.clip_skip) == ("draft", True, True, True, 0)
    assert "flat" in said.styles
    assert not {"prior", "best_of", "regions", "negative_prompt"} & set(said.unusable)
    assert {"prompt_2", "size_condition", "depth_image", "clip_skip"} <= set(said.unusable)


def test_a_file_that_is_no_model_is_told_without_its_place(tmp_path: Path) -> None:
    file = tmp_path / "broken.safetensors"
    file.write_bytes(b"nothing")
    said = abilities_of(ModelEntry("broken.safetensors", file, 7, 1.0))
    assert said.error
    assert str(tmp_path) not in said.error


def test_no_torch_is_needed_for_any_of_it() -> None:
    """The web process answers everybody; torch would cost it seconds and hundreds of MB."""
    code = """
import sys
from gouache.serve.models.abilities import abilities_of
from gouache.serve.models.prompt_tokens import count_tokens
from gouache.serve.models.catalog import ModelEntry
from gouache.serve.api.request_fields import describe
entry = ModelEntry("pocket", None, 0, 0.0)
abilities_of(entry), count_tokens("a (red:1.2) cat", entry, "a1111"), describe()
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


PROMPTS = [
    "",
    "a cat",
    "a (red:1.4) cat [in] ((snow))",
    "a fox, " * 60,
    "one BREAK two",
    "BREAK",
    "a " * 2000,
    "熊猫在竹林里，" * 20,
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with a LoRA and an embedding for SD 1.x, and a tiny model."""
    folder = tmp_path_factory.mktemp("models")
    for kind in ("loras", "embeddings"):
        (folder / kind).mkdir(parents=True)
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    tensors = {f"{name}.lora_down.weight": torch.zeros(2, 320), f"{name}.lora_up.weight": torch.zeros(320, 2)}
    save_file(tensors, folder / "loras" / "ink.safetensors")
    save_file({"emb_params": torch.zeros(3, 768)}, folder / "embeddings" / "zog.safetensors")
    write_model(bundle_to_write(make_bundle()), folder / "tiny", "gouache")
    return folder


@pytest.mark.parametrize("prompt", PROMPTS)
def test_tokens_are_counted_as_the_loaded_model_counts_them(prompt: str, models: Path) -> None:
    entry, bundle = ModelEntry("tiny", models / "tiny", 1, 1.0), make_bundle()
    found = count_tokens(prompt, entry, "a1111")
    assert found is not None
    real = [len(chunk.ids) for chunk in fill_chunks(bundle.text, sections(prompt, "a1111"))]
    assert list(found.chunks) == real[:32]
    assert found.cut == sum(real[32:])
    assert found.chunk_length == bundle.text.chunk_length == 75


def test_the_longest_part_counts_and_tags_are_no_words(models: Path) -> None:
    entry = ModelEntry("tiny", models / "tiny", 1, 1.0)
    found = count_tokens("cat AND a red dog <lora:film:0.5>", entry, "a1111")
    assert found is not None
    assert (found.chunks, found.unknown) == ((3,), ("film",))


@pytest.fixture
def desk(make_client: MakeClient, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TestClient:
    """A client of a studio with those models, and wildcards."""
    monkeypatch.setenv("GOUACHE_MODELS", str(models))
    monkeypatch.setenv("GOUACHE_OFFLINE", "1")
    wildcards = tmp_path / "data0" / "wildcards"
    (wildcards / "animals").mkdir(parents=True)
    (wildcards / "colour.txt").write_text("red\nblue\n", encoding="utf-8")
    (wildcards / "animals" / "wild.txt").write_text("fox\n", encoding="utf-8")
    return make_client(data=tmp_path / "data0", models=(models,))


def completed(client: TestClient, prefix: str, model: str = "tiny") -> list[tuple[str, str]]:
    reply = client.get("/v1/prompts/completions", params={"prefix": prefix, "model": model})
    assert reply.status_code == 200, reply.text
    return [(one["kind"], one["text"]) for one in reply.json()]


def test_completions_are_what_fits_the_model(desk: TestClient) -> None:
    assert ("lora", "<lora:ink:1>") in completed(desk, "<lora:")
    assert completed(desk, "<lora:in") == [("lora", "<lora:ink:1>")]
    assert completed(desk, "<lo") == completed(desk, "<") == [("lora", "<lora:ink:1>")]
    assert completed(desk, "zo") == [("embedding", "zog")]
    assert completed(desk, "__") == [("wildcard", "__animals/wild__"), ("wildcard", "__colour__")]
    assert completed(desk, "__wil") == [("wildcard", "__animals/wild__")]
    assert completed(desk, "zo", "pocket") == []
    desk.put("/v1/presets/oil paint", json={"prompt": "{prompt}, in oil"})
    assert ("preset", "oil paint") in completed(desk, "oil")


def test_an_embedding_counts_as_many_tokens_as_it_has_vectors(desk: TestClient) -> None:
    def count(prompt: str) -> int:
        return int(desk.post("/v1/prompts/tokens", json={"prompt": prompt, "model": "tiny"}).json()["tokens"])

    assert count("a cat, zog") == count("a cat,") + 3
    assert count("zogs") != 3


def test_a_prompt_over_the_limit_and_one_that_cant_be_read_are_refused(desk: TestClient) -> None:
    long = desk.post("/v1/prompts/tokens", json={"prompt": "a" * 20_001})
    assert (long.status_code, long.json()["error"]["param"]) == (422, "prompt")
    tag = desk.post("/v1/prompts/tokens", json={"prompt": "<lora:>"})
    assert tag.status_code == 422
    assert desk.get("/v1/models/facts", params={"model": "nowhere"}).status_code == 422


def test_facts_name_what_fits(desk: TestClient) -> None:
    said = Abilities.from_dict(desk.get("/v1/models/facts", params={"model": "tiny"}).json())
    assert (said.adapters, said.embeddings, said.width) == (("ink",), ("zog",), 32)
    assert desk.get("/v1/models/facts", params={"model": "pocket"}).json()["adapters"] == []


def test_a_preset_keeps_a_part_of_a_request(desk: TestClient) -> None:
    part = {"num_inference_steps": 30, "hires": {"scale": 1.5}, "mask": {"blur": 8}, "seed": 2**60 + 1}
    stored = desk.put("/v1/presets/portrait%2Fsoft", json={"prompt": "soft light", "request": part})
    assert stored.status_code == 200, stored.text
    assert stored.json()["request"] == part
    found = {one["name"]: one for one in desk.get("/v1/presets").json()}
    assert found["portrait/soft"]["request"] == part
    desk.put("/v1/presets/portrait%2Fsoft", json={"request": {"count": 2}})
    assert desk.get("/v1/presets").json()[0]["request"] == {"count": 2}
    assert desk.delete("/v1/presets/portrait%2Fsoft").status_code == 204
    assert desk.delete("/v1/presets/portrait%2Fsoft").status_code == 404
    assert desk.get("/v1/presets").json() == []


@pytest.mark.parametrize(
    ("part", "where"),
    [({"stpes": 3}, "stpes"), ({"count": 0}, "count"), ({"hires": {"scale": 99}}, "hires.scale")],
)
def test_a_preset_that_no_request_could_have_is_refused(desk: TestClient, part: dict[str, Any], where: str) -> None:
    refused = desk.put("/v1/presets/bad", json={"request": part})
    assert refused.status_code == 422
    assert where in refused.json()["error"]["param"]
    assert desk.get("/v1/presets").json() == []


def test_too_long_a_preset_and_too_many_are_refused(desk: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    assert desk.put("/v1/presets/long", json={"request": {"prompt": "a" * 100_001}}).status_code == 422
    monkeypatch.setattr("gouache.serve.store.presets.MOST", 1)
    assert desk.put("/v1/presets/one", json={"prompt": "a"}).status_code == 200
    assert desk.put("/v1/presets/one", json={"prompt": "b"}).status_code == 200
    refused = desk.put("/v1/presets/two", json={"prompt": "a"})
    assert (refused.status_code, refused.json()["error"]["kind"]) == (422, "InvalidInput")


def test_several_styles_are_laid_around_a_jobs_prompt(desk: TestClient) -> None:
    desk.put("/v1/presets/oil", json={"prompt": "{prompt}, in oil", "negative_prompt": "blurry"})
    desk.put("/v1/presets/night", json={"prompt": "at night"})
    body = {"request": {"prompt": "a fox", "negative_prompt": "text"}, "styles": ["night", "oil"]}
    job = desk.post("/v1/jobs", json=body)
    assert job.status_code == 202, job.text
    assert job.json()["request"]["prompt"] == "a fox, at night, in oil"
    assert job.json()["request"]["negative_prompt"] == "text, blurry"
    unknown = desk.post("/v1/jobs", json={"request": {"prompt": "a"}, "styles": ["oill"]})
    assert (unknown.status_code, "oil" in unknown.json()["error"]["cure"]) == (422, True)


def test_presets_are_their_owners(make_client: MakeClient) -> None:
    def prepare(studio: Any) -> None:
        for name in ("ada", "bob"):
            tokens[name] = studio.accounts.new_token(name)

    tokens: dict[str, str] = {}
    client = make_client(prepare)
    ada, bob = ({"Authorization": f"Bearer {tokens[name]}"} for name in ("ada", "bob"))
    assert client.put("/v1/presets/mine", json={"prompt": "a"}, headers=ada).status_code == 200
    assert client.get("/v1/presets", headers=bob).json() == []
    assert client.delete("/v1/presets/mine", headers=bob).status_code == 404
    assert len(client.get("/v1/presets", headers=ada).json()) == 1
    styled = client.post("/v1/jobs", json={"request": {"prompt": "x"}, "styles": ["mine"]}, headers=bob)
    assert styled.status_code == 422


def test_errors_of_the_native_interface_tell_their_kind(desk: TestClient) -> None:
    assert desk.post("/v1/jobs", json={"request": {"model": "nowhere"}}).json()["error"]["kind"] == "ModelNotFound"
    wrong = desk.post("/v1/jobs", json={"request": {"num_inference_steps": 0}}).json()["error"]
    assert (wrong["kind"], wrong["param"]) == ("ConfigError", "request.num_inference_steps")
    assert issubclass(GouacheError, Exception)


def test_choices_in_a_prompt_are_made_by_each_pictures_seed(desk: TestClient) -> None:
    def prompts(body: dict[str, Any]) -> list[str]:
        before = len(desk.get("/v1/jobs").json()["jobs"])
        reply = desk.post("/v1/jobs", json=body)
        assert reply.status_code == 202, reply.text
        jobs = desk.get("/v1/jobs").json()["jobs"]
        return [job["request"]["prompt"] for job in reversed(jobs[: len(jobs) - before])]

    request = {"prompt": "a __colour__ {fox|hare} and __animals/wild__", "seed": 5, "count": 4}
    first = prompts({"request": request, "choices": True})
    assert len(first) == 4
    assert len(set(first)) > 1
    assert all(re.fullmatch(r"a (red|blue) (fox|hare) and fox", prompt) for prompt in first)
    assert prompts({"request": request, "choices": True}) == first
    assert prompts({"request": {**request, "seed": 7, "count": 1}, "choices": True}) == first[2:3]
    # Without the wish, brackets are text, as they always were.
    assert prompts({"request": request}) == [request["prompt"]]
    seeds = [job["request"]["seed"] for job in desk.get("/v1/jobs").json()["jobs"]]
    assert seeds[-4:] == [8, 7, 6, 5]


def test_a_wildcard_without_a_file_and_too_many_pictures_are_refused(desk: TestClient) -> None:
    unknown = desk.post("/v1/jobs", json={"request": {"prompt": "__colours__"}, "choices": True})
    assert (unknown.status_code, unknown.json()["error"]["param"]) == (422, "prompt")
    outside = desk.post("/v1/jobs", json={"request": {"prompt": "__../secret__"}, "choices": True})
    assert outside.json().get("error") is None
    many = desk.post("/v1/jobs", json={"request": {"prompt": "{a|b}", "count": 33}, "choices": True})
    assert (many.status_code, many.json()["error"]["param"]) == (422, "count")
