"""`start` on a packed model, and the sets and configs of beginners: few pictures, plain folders, other tools' names."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.training.test_from_packed import equal, small_model, weights_of

from gouache.checkpoints.formats.safetensors import load_tensors
from gouache.checkpoints.load import load_bundle
from gouache.checkpoints.save import write_model
from gouache.data.buckets import Bucket, make_buckets
from gouache.data.packed import PackedPictures, PackedStream, pack_pictures
from gouache.data.readers import ReadReport, read_pictures, repeats_of
from gouache.errors import ConfigError, DataError
from gouache.pipeline.pipeline import Pipeline
from gouache.pipeline.request import Request
from gouache.training.batches.sources import NOTHING_HELD_OUT, open_sources
from gouache.training.config import DataConfig, TrainConfig, read_config
from gouache.training.loop import TrainingProgress, computes_bf16, precision_of
from gouache.training.loop_config import EmaConfig, LoopConfig
from gouache.training.pack import pack
from gouache.training.run import train_stage
from gouache.training.stage import Preparing
from gouache.training.stage_tables import DenoiserStage, PriorStage
from gouache.training.state import checkpoints

CONFIG = """
[data]
size = 32
[prior]
start = "{start}"
[prior.loop]
batch_size = 4
images = {images}
log_images = 8
[prior.optimizer]
learning_rate = 1e-2
warmup_images = 8
[denoiser]
start = "{start}"
[denoiser.loop]
batch_size = 4
images = {images}
log_images = 8
[denoiser.optimizer]
learning_rate = 3e-3
warmup_images = 8
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed model whose pictures begin on a draft, as the shipped one's do."""
    return write_model(small_model(), tmp_path_factory.mktemp("model") / "small", "gouache")


def squares(folder: Path, count: int, *, side: int = 32, names: str = "{}") -> Path:
    for i in range(count):
        pixels = np.zeros((side, side, 4), np.uint8)
        pixels[8:24, 4:20] = (255, 255 * i // count, 0, 255)
        path = folder / f"{names.format(i)}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        path.with_suffix(".txt").write_text(f"a square number {i % 10}")
    return folder


def trained(stage: str, config: Path, data: Path, run: Path) -> tuple[list[str], list[TrainingProgress]]:
    """Notes and progress of a stage."""
    notes, steps = [], []
    for event in train_stage(stage, config, data, run):
        if isinstance(event, TrainingProgress):
            steps.append(event)
        elif isinstance(event, Preparing) and event.note:
            notes.append(event.note)
    return notes, steps


def test_a_model_with_drafts_is_tuned_on_five_pictures_of_a_plain_folder_and_paints(
    model: Path, tmp_path: Path
) -> None:
    """Prior and denoiser learn; all else is the start's, and the prior remembers the new pictures beside the old."""
    data, config = squares(tmp_path / "mine", 5), tmp_path / "config.toml"
    config.write_text(CONFIG.format(start=model, images=64))
    before = weights_of(model)
    for stage in ("prior", "denoiser"):
        notes, steps = trained(stage, config, data, tmp_path / "run")
        assert NOTHING_HELD_OUT in notes
        losses = [step.losses["loss"] for step in steps if step.losses]
        assert min(losses[-3:]) < losses[0]
        assert 0 <= steps[-1].seconds_left < steps[0].seconds_left
        assert list((tmp_path / "run" / stage / "samples").glob("*.png"))
        packed = pack(read_config(config, stage), tmp_path / "run", tmp_path / f"packed-{stage}", dtype="fp32")
        after = weights_of(packed)
        changed = {name for name in before if not equal(before[name], after[name])}
        assert changed == ({"prior"} if stage == "prior" else {"prior", "unet"})
    tuned = load_bundle(packed, dtype=torch.float32)
    assert tuned.prior is not None
    assert tuned.prior.recall is not None
    assert tuned.prior.config.memory == len(tuned.prior.recall.tokens) == 5 + 5
    assert torch.equal(tuned.prior.recall.tokens[:5], before["prior"]["recall.tokens"])
    painted = Pipeline(tuned).paint(Request(prompt="a square", seed=1, num_inference_steps=2, width=32, height=32))
    assert painted[0].image.size == (32, 32)


@pytest.mark.parametrize("stage", ["prior", "denoiser"])
def test_a_tuning_resumes_exactly(stage: str, model: Path, tmp_path: Path) -> None:
    data, config = squares(tmp_path / "mine", 5), tmp_path / "config.toml"
    for run, ends in (("whole", [16]), ("parts", [8, 16])):
        for images in ends:
            config.write_text(CONFIG.format(start=model, images=images))
            trained(stage, config, data, tmp_path / run)
    whole, parts = (load_tensors(checkpoints(tmp_path / run / stage)[-1]) for run in ("whole", "parts"))
    assert equal(whole, parts)


def test_drafts_in_tuning_are_those_of_the_starts_own_quantizer(model: Path, tmp_path: Path) -> None:
    from gouache.training.run import assemble
    from gouache.training.stage import Ready
    from gouache.training.stages.denoiser import DenoiserTraining

    config = tmp_path / "config.toml"
    config.write_text(CONFIG.format(start=model, images=8))
    list(pack_pictures(squares(tmp_path / "mine", 5), tmp_path / "set", [Bucket(32, 32)], ReadReport()))
    *_, ready = assemble("denoiser", read_config(config, "denoiser"), tmp_path / "set", tmp_path / "run")
    assert isinstance(ready, Ready)
    stage, quantizer = ready.stage, load_bundle(model, dtype=torch.float32).quantizer
    assert isinstance(stage, DenoiserTraining)
    assert quantizer is not None
    batch = stage._batch(stage.held_out, [0, 1], [0, 1], exact=True)
    batch["keep_draft"] = torch.tensor([True, False])
    draft = stage.denoising.draft(batch)
    assert draft is not None
    assert torch.equal(draft[:1], quantizer.decode(quantizer.encode(batch["x0"][:1])))
    assert not draft[1].any()


def test_a_size_that_the_drafts_do_not_have_is_refused_with_the_right_one(model: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(CONFIG.format(start=model, images=8).replace("size = 32", "size = 48"))
    with pytest.raises(ConfigError, match=r"data\.size.*Say \[data\] size = 32"):
        trained("denoiser", config, squares(tmp_path / "mine", 5), tmp_path / "run")


def test_two_starts_cannot_be_packed_into_one_model(model: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    text = CONFIG.format(start=model, images=8)
    config.write_text(text.replace(str(model), str(tmp_path / "other"), 1))
    with pytest.raises(ConfigError, match="one model, which all stages train further"):
        pack(read_config(config, None), tmp_path / "run", tmp_path / "packed")


@pytest.mark.parametrize("buckets", [False, True])
def test_pictures_are_encoded_once_however_many_examples_are_asked_for(buckets: bool, tmp_path: Path) -> None:
    folder = squares(tmp_path / "mine", 50)
    wide = Image.new("RGB", (48, 24), "blue")
    wide.paste("red", (0, 0, 16, 16))
    wide.save(folder / "wide.png")
    (folder / "wide.txt").write_text("wide\nvery wide")
    shapes = make_buckets(32, step=8) if buckets else (Bucket(32, 32),)
    list(pack_pictures(folder, tmp_path / "set", shapes, ReadReport()))
    for flip, each in ((False, 1), (True, 2)):
        sources = open_sources(tmp_path / "set", DataConfig(size=32, flip=flip, templates=("{}", "so: {}")))
        assert sources.note == ""
        assert sources.every is not None
        examples = [sources.every.examples([number]) for number in range(len(sources.every))]
        assert len({(one.pictures.shape, one.captions[0], one.pictures.tobytes()) for one in examples}) == len(examples)
        rows = PackedPictures.open(tmp_path / "set")
        told = sum(len(rows.records[row].captions) for row in rows.indices("train"))
        assert len(sources.every) == 2 * each * told


def test_kohyas_folders_say_captions_and_how_often(tmp_path: Path) -> None:
    squares(tmp_path / "mine", 3, names="10_red box/{}")
    squares(tmp_path / "mine", 2, names="5_other/o{}")
    for path in (tmp_path / "mine").rglob("*.txt"):
        if path.stem == "0":
            path.rename(path.with_suffix(".caption"))
        else:
            path.unlink()
    found = {one.key: (one.captions, one.repeats) for one in read_pictures(tmp_path / "mine", ReadReport())}
    assert found["10_red box/0.png"] == (("a square number 0",), 10)
    assert found["10_red box/1.png"] == (("red box",), 10)
    assert found["5_other/o1.png"] == (("other",), 5)
    assert repeats_of("2024_summer/1.png") == (1, "")
    list(pack_pictures(tmp_path / "mine", tmp_path / "set", [Bucket(32, 32)], ReadReport()))
    stream = PackedStream(PackedPictures.open(tmp_path / "set"), 0, split="all")
    epoch = Counter(stream.example(n).caption for n in range(len(stream.rows)))
    assert epoch == {"a square number 0": 2, "red box": 4, "other": 2}


def test_a_tuning_has_rates_and_an_average_that_suit_it() -> None:
    tuned = DenoiserStage.from_dict({"start": "somewhere", "optimizer": {"betas": [0.9, 0.95]}})
    assert (tuned.optimizer.learning_rate, tuned.optimizer.warmup_images) == (1e-4, 100)
    assert tuned.optimizer.betas == (0.9, 0.95)
    assert (tuned.ema.lengths, tuned.ema.use) == ((0.1,), 0.1)
    own = PriorStage.from_dict({"start": "x", "optimizer": {"learning_rate": 2e-5}, "ema": {"lengths": [0.05, 0.2]}})
    assert (own.optimizer.learning_rate, own.ema.lengths, own.ema.use) == (2e-5, (0.05, 0.2), 0.05)
    assert DenoiserStage.from_json(tuned.to_json()) == tuned
    with pytest.raises(ConfigError, match="neither"):
        PriorStage.from_dict({})


def test_an_average_that_is_used_is_tracked() -> None:
    assert EmaConfig.from_dict({"lengths": [0.2, 0.1]}).use == 0.2
    assert EmaConfig.from_dict({"use": 0.15}).lengths == (0.15,)
    assert EmaConfig.from_dict({"use": 0.1}).lengths == (0.05, 0.1)
    with pytest.raises(ConfigError, match=r"ema\.use"):
        EmaConfig.from_dict({"lengths": [0.1], "use": 0.2})


@pytest.mark.parametrize(
    ("table", "key", "cure"),
    [
        ({"denoiser": {"start": "x", "caption_droput": 0.1}}, "denoiser: key 'caption_droput'", "'caption_dropout'"),
        ({"denoiser": {"start": "x", "loop": {"bach_size": 4}}}, "denoiser.loop: key 'bach_size'", "'batch_size'"),
        ({"denoiser": {"network": {"chanels": [32]}}}, "denoiser.network: key 'chanels'", "'channels'"),
        ({"denoiser": {"start": "x", "snr_gamma": 5}}, "denoiser: key 'snr_gamma'", 'weight = "min_snr"'),
        ({"denoiser": {"start": "x", "loop": {"train_batch_size": 4}}}, "key 'train_batch_size'", "called batch_size"),
        ({"max_train_steps": 1000}, "key 'max_train_steps'", "images = steps x batch_size"),
        ({"denoiser": {"start": "x", "mixed_precision": "fp16"}}, "key 'mixed_precision'", "called precision"),
        ({"lora_rank": 8}, "key 'lora_rank'", "called rank, in [lora]"),
        ({"denoiser": {"start": "x", "optimizer": {"learning_rat": 1}}}, "denoiser.optimizer: key", "'learning_rate'"),
        ({"denoiser": {"start": "x", "ema": {"length": [0.1]}}}, "denoiser.ema: key 'length'", "'lengths'"),
        ({"denoiser": {"start": "x", "optimizer": {"eight_bit": True}}}, "key 'eight_bit'", 'name = "adamw8bit"'),
        ({"denoiser": {"start": "x", "multires_noise_iterations": 6}}, "denoiser: key", "called pyramid_levels"),
        ({"lora": {"start": "x", "alhpa": 8}}, "lora: key 'alhpa'", "'alpha'"),
        ({"lora": {"start": "x", "loop": {"log_with": "wandb"}}}, "lora.loop: key 'log_with'", "wandb ="),
        ({"lora": {"start": "x", "sample_prompts": "p.txt"}}, "lora: key 'sample_prompts'", "prompts ="),
        ({"prior": {"start": "x", "token_nois": 0.1}}, "prior: key 'token_nois'", "'token_noise'"),
        ({"vae": {"network": {"chanels": [32]}}}, "vae.network: key 'chanels'", "'channels'"),
        ({"upscaler": {"network": {"block": 2}}}, "upscaler.network: key 'block'", "'blocks'"),
        ({"data": {"flipp": True}}, "data: key 'flipp'", "'flip'"),
        ({"tokens": {"network": {}, "loop": {"imagess": 1}}}, "tokens.loop: key 'imagess'", "'images'"),
    ],
)
def test_a_mistyped_key_gets_the_nearest_name_and_other_tools_names_ours(
    table: dict[str, object], key: str, cure: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        TrainConfig.from_dict(table, where="my.toml")
    assert key in caught.value.where
    assert cure in caught.value.cure


def test_precision_auto_is_bf16_only_where_it_is_native(monkeypatch: pytest.MonkeyPatch) -> None:
    for native, expected in ((True, "bf16"), (False, "no")):
        monkeypatch.setattr("gouache.training.loop.computes_bf16", lambda native=native: native)
        config = DenoiserStage.from_dict({"start": "x", "loop": LoopConfig(precision="auto").model_dump()})
        assert precision_of(config) == expected
    assert isinstance(computes_bf16(), bool)


def test_a_folder_without_a_single_caption_is_told_what_is_missing(model: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(CONFIG.format(start=model, images=8))
    for path in squares(tmp_path / "mine", 2).glob("*.txt"):
        path.unlink()
    with pytest.raises(DataError, match=r"no caption.*\.txt beside each picture"):
        trained("denoiser", config, tmp_path / "mine", tmp_path / "run")


def test_the_shipped_model_is_loaded_without_a_path(monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    monkeypatch.setattr("gouache.pipeline.pipeline.shipped_model", lambda: model)
    assert Pipeline.load().bundle.name == "small"
