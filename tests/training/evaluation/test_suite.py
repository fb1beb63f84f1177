"""The evaluation: a painter that returns the real pictures must reach the ceiling; from files the command must run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from gouache.checkpoints.hub import file_sha256
from gouache.checkpoints.load import load_bundle
from gouache.checkpoints.save import bundle_to_write, write_model
from gouache.cli.evaluate import read_steps
from gouache.cli.main import app
from gouache.data.captions import canonical_caption
from gouache.data.scenes import Scenes
from gouache.data.stickers import Sticker, StickerManifest, Stickers
from gouache.errors import DataError, GouacheError, InvalidInput, ModelNotFound
from gouache.models.bundle import ModelBundle
from gouache.models.configs import GenerationDefaults, SentenceEncoderConfig, UNetConfig, VAEConfig
from gouache.models.prior import Prior, PriorConfig
from gouache.models.quantizer import Quantizer, QuantizerConfig
from gouache.models.text.sentence import SentenceEncoder
from gouache.models.text.stack import TextStack
from gouache.models.unet import UNet
from gouache.models.vae import AutoencoderKL
from gouache.pipeline.pipeline import Pipeline
from gouache.pipeline.request import Prior as PriorOptions
from gouache.pipeline.request import Request
from gouache.training.evaluation.figures import Evaluation, first
from gouache.training.evaluation.judge import Judge
from gouache.training.evaluation.painting import Paint, Setting, painter
from gouache.training.evaluation.prompts import choose_prompts
from gouache.training.evaluation.suite import EvaluationSettings, Painting, evaluate, scene_figures
from gouache.training.stages.clip import character_vocabulary
from gouache.training.towers import Towers, TowersConfig

SIZE = 32
WORDS = ("fox", "cat", "cow", "pig", "hen", "owl", "bee", "ant", "cup", "fan", "jar", "pan", "bus", "car", "van", "hat")
STYLES = ("noto", "flat", "3d")
SETTINGS = EvaluationSettings(
    limit=4, steps=(1, 2), captions=8, reference=20, levels=2, best_of=2, sheet_rows=4, scenes=4
)


def records() -> list[Sticker]:
    made: list[Sticker] = []
    for style in STYLES:
        for number, word in enumerate(WORDS):
            index, code = len(made), f"{0x1F400 + number:x}"
            made.append(
                Sticker(
                    index,
                    code,
                    style,
                    word,
                    (),
                    f"字{number}",
                    (),
                    "animals-nature",
                    "animal-mammal",
                    f"{style}/{code}.svg",
                    "test@1",
                    "MIT",
                )
            )
    return made


def shape_of(record: Sticker) -> np.ndarray:
    """A disc, square or diamond, in a colour of the concept's own."""
    rows, columns = np.indices((SIZE, SIZE)) - SIZE / 2 + 0.5
    across = {
        "noto": np.hypot(rows, columns),
        "flat": np.maximum(abs(rows), abs(columns)),
        "3d": abs(rows) + abs(columns),
    }
    picture = np.zeros((SIZE, SIZE, 4), np.uint8)
    shade = np.random.default_rng(int(record.code, 16)).integers(0, 256, 3)
    picture[across[record.style] < 12] = (*shade, 255)
    return picture


@pytest.fixture(scope="module")
def sticker_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A built set of 48 pictures."""
    folder, made = tmp_path_factory.mktemp("stickers"), records()
    (folder / "CREDITS.md").write_text("# Credits\n", encoding="utf-8")
    np.save(folder / "pictures.npy", np.stack([shape_of(record) for record in made]))
    lines = [json.dumps({name: getattr(record, name) for name in Sticker.__slots__}) for record in made]
    (folder / "records.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    manifest = StickerManifest(
        recipe="stickers",
        recipe_version=1,
        size=SIZE,
        count=len(made),
        counts=dict.fromkeys(STYLES, len(WORDS)),
        packages=(),
        sha256={"pictures.npy": file_sha256(folder / "pictures.npy")},
    )
    (folder / "manifest.json").write_text(manifest.to_json(), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def stickers(sticker_folder: Path) -> Stickers:
    return Stickers.open(sticker_folder)


@pytest.fixture(scope="module")
def towers() -> Towers:
    """Untrained: what it says is wrong, but the same for equal pictures."""
    vocabulary = character_vocabulary()
    text = SentenceEncoderConfig(
        vocabulary_size=len(vocabulary), width=16, inner_width=32, layers=1, heads=2, positions=40, max_tokens=40
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(1)
        return Towers(TowersConfig(text=text, embedding_dim=16, channels=(8, 16)), vocabulary)


@pytest.fixture(scope="module")
def pocket() -> ModelBundle:
    """A tiny untrained model with a prior."""
    vocabulary = character_vocabulary()
    text = SentenceEncoderConfig(
        vocabulary_size=len(vocabulary), width=16, inner_width=32, layers=1, heads=2, positions=40, max_tokens=40
    )
    quantizer = QuantizerConfig(
        latent_channels=4, latent_size=8, features=8, width=16, blocks=1, levels=(3, 3), scales=(1, 2, 4)
    )
    prior = PriorConfig(
        vocabulary=9, groups=(1, 4, 16), features=8, context_dim=16, pooled_dim=16, width=16, depth=1, heads=2
    )
    unet = UNetConfig(
        channels=(16, 32),
        layers_per_level=1,
        transformer_layers=(0, 1),
        heads=(2, 2),
        context_width=16,
        draft_channels=4,
        norm_groups=8,
    )
    vae = VAEConfig(image_channels=4, channels=(16, 16), layers_per_level=1, norm_groups=8, patch_size=2)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return ModelBundle(
            family="pocket",
            unet=UNet(unet),
            vae=AutoencoderKL(vae),
            text=TextStack.of_sentences(SentenceEncoder(text), vocabulary),
            defaults=GenerationDefaults(
                width=SIZE, height=SIZE, num_inference_steps=2, sampler="dpmpp_2m", schedule="karras"
            ),
            prior=Prior(prior),
            quantizer=Quantizer(quantizer),
            name="tiny",
        ).eval()


def run(
    bundle: ModelBundle, stickers: Stickers, judge: Judge, paint: Paint, settings: EvaluationSettings
) -> Evaluation:
    events = list(evaluate(bundle, paint, stickers, judge, settings))
    painted = [event for event in events if isinstance(event, Painting)]
    done = [event.done for event in painted]
    assert done == sorted(set(done))
    assert done[-1] == painted[-1].total
    found = events[-1]
    assert isinstance(found, Evaluation), "the last event is the result"
    return found


def test_a_painter_of_the_real_pictures_reaches_the_ceiling(
    pocket: ModelBundle, stickers: Stickers, towers: Towers
) -> None:
    real: dict[str, np.ndarray] = {}
    for prompt in choose_prompts(stickers, "train", 4, 0) + choose_prompts(stickers, "held_out", 4, 0):
        real[prompt.text] = stickers.pictures[prompt.row]
    for prompt in choose_prompts(stickers, "train", 4, 0, chinese=True):
        real[prompt.text] = stickers.pictures[prompt.row]
    scenes = Scenes(stickers)
    for number in range(4):
        scene = scenes.evaluation(0, number)
        real[scene.caption] = scene.picture
    wanted: list[Setting] = []

    def paint(prompts: Sequence[str], seeds: Sequence[int], setting: Setting) -> np.ndarray:
        assert len(seeds) == len(prompts)
        assert min(seeds) >= 0, "seeds count upwards"
        wanted.append(setting)
        return np.stack([real[prompt] for prompt in prompts])

    found = run(pocket, stickers, Judge(towers), paint, SETTINGS)
    for name in ("retrieval_at_1", "retrieval_at_5", "style", "kid"):
        for group in ("seen", "held_out") if name != "kid" else ("all",):
            ceiling = found.find(name, f"real {group}")
            assert ceiling is not None
            for steps in (1, 2):
                for draft in (True, False):
                    painted = found.find(name, group, steps=steps, draft=draft)
                    assert painted is not None
                    assert painted.interval == ceiling.interval
    passed = found.find("scene_passed", "scenes")
    assert passed is not None
    assert passed.interval.value == 1.0
    for name in ("prior_gain_in_retrieval_at_1", "prior_change_of_kid", "best_of_gain_in_retrieval_at_1"):
        difference = found.find(name, "all")
        assert difference is not None
        assert difference.interval.value == pytest.approx(0, abs=1e-12)
        assert not difference.interval.significant
    assert {(s.steps, s.draft, s.best_of) for s in wanted} == {
        (1, True, 1),
        (1, False, 1),
        (2, True, 1),
        (2, False, 1),
        (2, True, 2),
    }


def test_figures_that_need_no_painting_are_all_there(pocket: ModelBundle, stickers: Stickers, towers: Towers) -> None:
    settings = SETTINGS.model_copy(update={"steps": (), "best_of": 1, "scenes": 0, "chinese": False})
    events = list(evaluate(pocket, lambda *_: np.zeros((SIZE, SIZE, 4), np.uint8), stickers, Judge(towers), settings))
    found = events[-1]
    assert len(events) == 1
    assert isinstance(found, Evaluation)
    names = {figure.name for figure in found.figures}
    assert names == {
        "vae_psnr_db",
        "vae_ssim",
        "prior_bits_per_token",
        "prior_bits_per_token_saved_by_caption",
        "diffusion_bits_per_dim",
        "diffusion_bits_per_dim_saved_by_caption",
        "retrieval_at_1",
        "retrieval_at_5",
        "style",
        "kid",
    }
    bits = found.find("prior_bits_per_token", "held_out")
    assert bits is not None
    assert 1.0 < bits.interval.value < 2 * np.log2(9)  # untrained: about log2 of the 9 codes


def test_painting_nothing_scores_like_nothing_on_scenes(stickers: Stickers) -> None:
    scenes = [Scenes(stickers).evaluation(0, number) for number in range(10)]
    empty = [np.zeros((SIZE, SIZE, 4), np.uint8)] * 10
    figures = scene_figures(scenes, empty, "scenes", 0)
    for name in ("scene_colour", "scene_count", "scene_position", "scene_relation", "scene_passed"):
        figure = first(figures, name, "scenes")
        if figure is not None:
            assert figure.interval.value < 1.0
    assert len({figure.name for figure in figures}) >= 5


def test_prompts_keep_to_their_split_and_are_never_repeated(stickers: Stickers) -> None:
    seen, held = choose_prompts(stickers, "train", 30, 0), choose_prompts(stickers, "held_out", 30, 0)
    assert all(not stickers.records[prompt.row].held_out for prompt in seen)
    assert held
    assert all(stickers.records[prompt.row].held_out for prompt in held)
    assert len({prompt.row for prompt in seen}) == len(seen)
    assert all(prompt.text == canonical_caption(stickers.records[prompt.row]) for prompt in seen + held)
    chinese = choose_prompts(stickers, "train", 30, 0, chinese=True)
    assert [prompt.row for prompt in chinese] == [prompt.row for prompt in seen]
    assert all(stickers.records[prompt.row].zh_label in prompt.text for prompt in chinese)


def test_the_command_writes_figures_and_a_sheet(
    pocket: ModelBundle, sticker_folder: Path, towers: Towers, tmp_path: Path
) -> None:
    write_model(bundle_to_write(pocket), tmp_path / "model", "gouache")
    towers.save(tmp_path / "judge.safetensors")
    result = CliRunner().invoke(
        app,
        [
            "eval",
            str(tmp_path / "model"),
            "--data",
            str(sticker_folder),
            "--judge",
            str(tmp_path / "judge.safetensors"),
            "--json",
            str(tmp_path / "eval.json"),
            "--sheet",
            str(tmp_path / "eval.png"),
            "--limit",
            "2",
            "--steps",
            "1",
            "--scenes",
            "5",
            "--runs",
            "1",
        ],
    )
    assert result.exit_code == 0, result.output
    values = json.loads((tmp_path / "eval.json").read_text(encoding="utf-8"))
    found = {(f["name"], f["group"], f["steps"], f["draft"]) for f in values["figures"]}
    assert ("retrieval_at_1", "held_out", 1, True) in found
    assert ("retrieval_at_1", "held_out", 1, False) in found
    assert ("style", "chinese", 2, True) in found
    costs = {f["name"]: f["value"] for f in values["figures"] if f["group"] == "one picture"}
    assert set(costs) == {"command_seconds", "command_cpu_seconds", "command_peak_mb", "warm_seconds"}
    assert costs["command_seconds"] > costs["warm_seconds"] > 0
    assert costs["command_peak_mb"] > 100  # torch alone takes more
    assert all(f["low"] <= f["value"] + 1e-9 for f in values["figures"] if f["name"] != "kid")
    with Image.open(tmp_path / "eval.png") as sheet:
        assert sheet.width > 3 * SIZE
    assert "retrieval_at_1" in result.output
    the_card_of_a_model_shows_its_own_figures(tmp_path, sticker_folder)


def the_card_of_a_model_shows_its_own_figures(place: Path, data: Path) -> None:
    """With the goals that were set, the logs, the author's words; and never another model's figures."""
    values = json.loads((place / "eval.json").read_text(encoding="utf-8"))
    stage = place / "run" / "vae"
    stage.mkdir(parents=True)
    log = [
        {"images_seen": 3600, "images_per_second": 1.0},
        {"images_seen": 3600, "validation/score": -20.0, "validation/psnr": 20.0},
        {"images_seen": 7200, "images_per_second": 1.0},
        {"images_seen": 7200, "validation/score": -19.0, "validation/psnr": 19.0},
    ]
    (stage / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log), encoding="utf-8")
    (place / "words.md").write_text("# Little painter\n\nIt can't spell.\n", encoding="utf-8")
    (place / "recipe.toml").write_text("[data]\nsize = 32\n", encoding="utf-8")
    command = [
        "card",
        str(place / "model"),
        "--data",
        str(data),
        "--run",
        str(place / "run"),
        "--eval",
        str(place / "eval.json"),
        "--words",
        str(place / "words.md"),
        "--config",
        str(place / "recipe.toml"),
    ]
    assert CliRunner().invoke(app, command).exit_code == 0
    card = (place / "model" / "README.md").read_text(encoding="utf-8")
    assert card.startswith("# Little painter\n\nIt can't spell.\n")
    psnr = next(f for f in values["figures"] if f["name"] == "vae_psnr_db")
    assert f"| autoencoder, held-out pictures | {psnr['value']:.3g} dB |" in card
    assert "| ≥ 31 dB | no |" in card
    assert "| vae | 7,200 | 2.0 | psnr 20 | 3,600 |" in card
    assert "size = 32" in card
    assert (place / "model" / "CREDITS.md").read_text(encoding="utf-8") == "# Credits\n"
    load_bundle(place / "model")  # the card is in no part's way
    (place / "eval.json").write_text(json.dumps({**values, "model_sha256": "0" * 64}), encoding="utf-8")
    error = CliRunner().invoke(app, command).exception
    assert isinstance(error, DataError)
    assert "gouache eval" in str(error)
    (place / "eval.json").write_text("[]", encoding="utf-8")
    assert isinstance(CliRunner().invoke(app, command).exception, DataError)


@pytest.mark.parametrize("level", [0.0, 1.0])
def test_pictures_painted_together_are_those_painted_alone(level: float, pocket: ModelBundle) -> None:
    """Prompts of different lengths, with a draft, begun on it or on noise, the best of three drafts, and without: one
    grey level at most."""
    defaults = pocket.defaults.model_copy(update={"prior_start_sigma": level})
    pipeline = Pipeline(replace(pocket, defaults=defaults))
    prompts, seeds = ["a fox, flat style", "a cup", "", "字3"], [5, 6, 7, 8]
    for setting in (Setting(2, True), Setting(2, True, 3), Setting(1, False)):
        together = painter(pipeline)(prompts, seeds, setting).astype(int)
        for prompt, seed, picture in zip(prompts, seeds, together, strict=True):
            request = Request(
                prompt=prompt,
                seed=seed,
                num_inference_steps=setting.steps,
                best_of=setting.best_of,
                prior=PriorOptions(enabled=setting.draft),
            )
            (alone,) = pipeline.paint(request)
            assert np.abs(np.array(alone.image) - picture).max() <= 1


def test_bfloat16_paints_nearly_the_same(pocket: ModelBundle) -> None:
    pipeline, wanted = Pipeline(pocket), (["a fox", "a cup"], [1, 2], Setting(2, False))
    exact, quick = painter(pipeline)(*wanted).astype(int), painter(pipeline, bf16=True)(*wanted).astype(int)
    assert 0 < np.abs(exact - quick).mean() < 4


def test_likelihood_prints_bits_with_and_without_the_caption(pocket: ModelBundle, tmp_path: Path) -> None:
    write_model(bundle_to_write(pocket), tmp_path / "model", "gouache")
    Image.new("RGB", (40, 40), "red").save(tmp_path / "red.png")
    command = [
        "likelihood",
        str(tmp_path / "red.png"),
        "a red fox",
        "--model",
        str(tmp_path / "model"),
        "--levels",
        "2",
    ]
    result = CliRunner().invoke(app, [*command, "--json"])
    assert result.exit_code == 0, result.output
    values = json.loads(result.output)
    assert values["tokens"] == 21
    gain = values["prior_bits_without_caption"] - values["prior_bits"]
    assert values["prior_alignment_bits"] == pytest.approx(gain)
    plain = CliRunner().invoke(app, command)
    assert plain.exit_code == 0
    assert "prior alignment" in plain.output


def test_missing_files_are_named(sticker_folder: Path, towers: Towers, tmp_path: Path) -> None:
    towers.save(tmp_path / "judge.safetensors")

    def error(model: str, data: Path, judge: str) -> BaseException | None:
        command = ["eval", model, "--data", str(data), "--judge", str(tmp_path / judge)]
        return CliRunner().invoke(app, [*command, "--sheet", str(tmp_path / "eval.png")]).exception

    absent = error("untrained", tmp_path / "nowhere", "judge.safetensors")
    assert isinstance(absent, DataError)
    assert "nowhere" in str(absent)
    absent = error("untrained", sticker_folder, "none.safetensors")
    assert isinstance(absent, GouacheError)
    assert "none.safetensors" in str(absent)
    absent = error(str(tmp_path / "model"), sticker_folder, "judge.safetensors")
    assert isinstance(absent, ModelNotFound)


@pytest.mark.parametrize("text", ["", "4,", "0", "4,x", "-1"])
def test_steps_that_are_no_numbers_are_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="--steps"):
        read_steps(text)


def test_steps_are_read_once_each_in_order() -> None:
    assert read_steps("8, 4,8") == (8, 4)


def test_a_set_that_is_all_asked_for_leaves_nothing_to_compare_with(
    pocket: ModelBundle, stickers: Stickers, towers: Towers
) -> None:
    settings = SETTINGS.model_copy(update={"limit": 48, "scenes": 0})
    with pytest.raises(DataError, match="compare"):
        list(evaluate(pocket, lambda *_: np.zeros((SIZE, SIZE, 4), np.uint8), stickers, Judge(towers), settings))


def test_a_set_without_held_out_pictures_is_refused(pocket: ModelBundle, stickers: Stickers, towers: Towers) -> None:
    kept = [record for record in stickers.records if not record.held_out]
    fewer = tuple(replace(record, index=i) for i, record in enumerate(kept))
    pictures = stickers.pictures[[record.index for record in kept]]
    small = Stickers(stickers.folder, stickers.manifest, fewer, pictures)
    with pytest.raises(DataError, match="held_out"):
        list(evaluate(pocket, lambda *_: pictures[0], small, Judge(towers), SETTINGS))
