"""Sets as people fine-tune on them: one picture or five, masks, pictures of the class, kohya's dataset config."""

from __future__ import annotations

import json
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tests.training.test_from_packed import COSINE, TOKENS, UNET, VAE, equal, small_model
from tests.training.test_tuning_packed import squares, trained

from gouache.checkpoints.formats.safetensors import load_tensors
from gouache.checkpoints.load import load_bundle
from gouache.checkpoints.save import write_model
from gouache.data.buckets import Bucket
from gouache.data.packed import PackedPictures, pack_pictures
from gouache.data.readers import ReadReport
from gouache.errors import ConfigError
from gouache.models.network_configs import NetworkConfig
from gouache.pipeline.pipeline import Pipeline
from gouache.pipeline.request import Request
from gouache.training.batches.loss_marks import loss_marks
from gouache.training.batches.sources import NOTHING_HELD_OUT, open_sources
from gouache.training.class_pictures import class_folder, paint_class_pictures
from gouache.training.config import DataConfig, TrainConfig, read_config
from gouache.training.denoising import Denoising
from gouache.training.run import assemble, built_set, train_stage
from gouache.training.stage import Batch, BatchNoise, Preparing, Ready
from gouache.training.stage_tables import DenoiserStage
from gouache.training.stages.lora import LoraTraining
from gouache.training.stages.prior import token_draws, token_nats
from gouache.training.state import checkpoints

STAGES = ("vae", "tokens", "prior", "denoiser")
LOOP = {"batch_size": 4, "images": 8, "log_images": 4}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed model whose pictures begin on a draft, as the shipped one's do; quick to paint with."""
    return write_model(small_model(), tmp_path_factory.mktemp("model") / "small", "gouache")


Tables = dict[str, dict[str, Any]]


def written(path: Path, tables: Tables) -> Path:
    """A config in TOML, whose values JSON spells alike."""
    lines = []
    for name, values in tables.items():
        lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())]
    path.write_text("\n".join(lines))
    return path


@pytest.mark.parametrize(
    ("count", "stages"),
    [(1, STAGES), pytest.param(5, STAGES, marks=pytest.mark.slow), pytest.param(1, ("lora",), marks=pytest.mark.slow)],
)
def test_every_stage_takes_one_picture_or_five(
    count: int, stages: tuple[str, ...], model: Path, tmp_path: Path
) -> None:
    """Two steps of each, on a plain folder; the run says that nothing is held out."""
    loops = {f"{stage}.loop": LOOP for stage in stages}
    networks: Tables = {"vae.network": VAE, "tokens.network": TOKENS}
    data = squares(tmp_path / "mine", count)
    tables: Tables = {"data": {"size": 32}, **networks, **loops}
    tables |= {stage: {"start": str(model)} for stage in stages if stage not in ("vae", "tokens")}
    config = written(tmp_path / "config.toml", tables)
    for stage in stages:
        notes, steps = trained(stage, config, data, tmp_path / "run")
        assert any(NOTHING_HELD_OUT in note for note in notes) or stage == "vae"
        assert steps[-1].images_seen == 8
        assert all(np.isfinite(list(steps[-1].losses.values())))
        assert (tmp_path / "run" / stage / "last.safetensors").is_file()


def denoising(weight: str = "min_snr") -> tuple[Denoising, dict[str, torch.Tensor]]:
    """The loss of a network that predicts its input times a factor, and a batch for it."""
    sizes: NetworkConfig = DenoiserStage.from_dict({"network": {**UNET, "draft_channels": 0, "pooled_width": 0}}).sizes
    table = DenoiserStage.from_dict({"network": UNET, "weight": weight})
    loss = Denoising(table, COSINE, sizes, None)
    latents = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    batch = loss.draws(latents, BatchNoise(0, [0, 1, 2]))
    text = {"context": torch.zeros(3, 1, 4), "mask": torch.ones(3, 1, dtype=torch.bool), "pooled": torch.zeros(3, 0)}
    return loss, batch | text


def half(x: torch.Tensor, t: torch.Tensor, context: torch.Tensor, /, **given: Any) -> torch.Tensor:  # noqa: ARG001
    return 0.5 * x


def test_a_mask_multiplies_squared_errors_and_one_of_ones_changes_no_bit() -> None:
    loss, batch = denoising()
    plain = loss.errors(half, batch)
    whole = loss.errors(half, batch | {"loss_mask": torch.ones(3, 1, 8, 8)})
    assert all(torch.equal(one, other) for one, other in zip(plain, whole, strict=True))
    left = torch.zeros(3, 1, 8, 8)
    left[..., :4] = 1
    right = 1 - left
    parts = [loss.errors(half, batch | {"loss_mask": mask}) for mask in (left, right)]
    for k in range(2):  # a mean over the whole picture, so the two halves add up to it
        assert torch.allclose(parts[0][k] + parts[1][k], plain[k], rtol=1e-5)
        assert not torch.allclose(parts[0][k], plain[k], rtol=1e-2)
    weights = torch.tensor([1.0, 0.5, 0.0])
    weighted, unweighted = loss.errors(half, batch | {"loss_weight": weights})
    assert torch.equal(weighted, plain[0] * weights)
    assert torch.equal(unweighted, plain[1])


def test_the_priors_nats_are_multiplied_by_the_mask_over_each_tokens_cell(model: Path) -> None:
    """One of ones changes no bit; where it is 0, nothing is learned of a token; half of a cell counts half."""
    bundle = load_bundle(model, dtype=torch.float32)
    prior, quantizer = bundle.prior, bundle.quantizer
    assert prior is not None
    assert quantizer is not None
    config, noise = prior.config, BatchNoise(0, [0, 1])
    batch: Batch = {"latents": noise.normal("latents", (4, 8, 8)), **token_draws(config, noise, 0.1, 0.5)}
    batch |= {"context": noise.normal("context", (6, 32)), "pooled": noise.normal("pooled", (32,))}
    batch["mask"] = torch.ones(2, 6, dtype=torch.bool)
    plain = token_nats(prior, quantizer, batch)
    assert torch.equal(token_nats(prior, quantizer, batch | {"loss_mask": torch.ones(2, 1, 8, 8)}), plain)
    left = torch.zeros(2, 1, 8, 8)
    left[0, ..., :4] = 1  # of the first picture; of the second nothing counts
    logits: list[torch.Tensor] = []
    hook = prior.register_forward_hook(lambda _prior, _inputs, out: logits.append(out.requires_grad_()))
    found = token_nats(prior, quantizer, batch | {"loss_mask": left})
    hook.remove()
    # Scales of 1, 2 and 4 a side, row by row: the only cell counts half, then every other column, then every other two.
    cells = torch.tensor([0.5, *[1.0, 0.0] * 2, *[1.0, 1.0, 0.0, 0.0] * 4])
    assert torch.equal(found, plain * torch.stack([cells, torch.zeros(21)]))
    (gradient,) = torch.autograd.grad(found.sum(), logits)
    silent = gradient.abs().sum(2) == 0  # [B,S]
    assert torch.equal(silent, torch.stack([cells == 0, torch.ones(21, dtype=torch.bool)]))


def masked(folder: Path, count: int = 4) -> Path:
    """Squares with masks: the square's place counts, but for the last, which has none."""
    squares(folder, count)
    (folder / "masks").mkdir()
    for i in range(count - 1):
        mask = np.zeros((32, 32), np.uint8)
        mask[8:24, 4 : 20 - i] = 255
        Image.fromarray(mask).save(folder / "masks" / f"{i}.png")
    return folder


def test_marks_are_the_masks_at_the_latents_size_and_the_weights_of_the_class(tmp_path: Path) -> None:
    squares(masked(tmp_path / "mine") / "reg" / "1_square", 2)
    list(pack_pictures(tmp_path / "mine", tmp_path / "set", (Bucket(32, 32),), ReadReport()))
    packed = PackedPictures.open(tmp_path / "set")
    views = [(row, mirrored) for row in range(len(packed)) for mirrored in (False, True)]
    marks = loss_marks(packed, views, (8, 8), 0.25)
    of_class = [packed.records[row].regularisation for row, _ in views]
    assert marks["loss_weight"].tolist() == [0.25 if one else 1.0 for one in of_class]
    for (row, mirrored), found in zip(views, marks["loss_mask"], strict=True):
        mask = torch.tensor(np.array(packed.mask(row))).float() / 255
        expected = F.avg_pool2d((mask.flip(1) if mirrored else mask)[None, None], 4)[0]
        assert torch.allclose(found, expected, atol=1e-6)
    assert sorted({packed.records[row].key for row, _ in views if np.all(packed.mask(row) == 255)}) == [
        "3.png",
        "reg/1_square/0.png",
        "reg/1_square/1.png",
    ]
    unmarked = squares(tmp_path / "plain", 2)
    list(pack_pictures(unmarked, tmp_path / "plain-set", (Bucket(32, 32),), ReadReport()))
    assert loss_marks(PackedPictures.open(tmp_path / "plain-set"), [(0, False)], (8, 8), 0.25) == {}


TOML = """
[[datasets]]
resolution = 32
[[datasets.subsets]]
image_dir = "mine"
num_repeats = 2
caption_extension = ".txt"
shuffle_caption = {shuffle}
caption_dropout_rate = {dropout}
caption_prefix = "sks"
flip_aug = true
[[datasets.subsets]]
image_dir = "class"
is_reg = true
class_tokens = "square"
"""


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    masked(tmp_path / "mine")
    for path in (tmp_path / "mine").glob("*.txt"):
        path.write_text("a square, red, plain, small")
    for path in squares(tmp_path / "class", 3).glob("*.txt"):
        path.unlink()
    (tmp_path / "dataset.toml").write_text(TOML.format(shuffle="true", dropout=0.2))
    return tmp_path / "dataset.toml"


def test_what_a_lora_sees_of_a_dataset_config_depends_on_the_images_numbers_alone(
    dataset: Path, model: Path, tmp_path: Path
) -> None:
    tables: Tables = {"data": {"size": 32}, "lora": {"start": str(model), "rank": 2, "prior_loss_weight": 0.5}}
    config = read_config(written(tmp_path / "config.toml", {**tables, "lora.loop": LOOP}), "lora")
    pictures = pictures_of(built_set(dataset, tmp_path / "run", config.data))
    stages = []
    for _ in range(2):
        *_, ready = assemble("lora", config, pictures.folder, tmp_path / "run")
        assert isinstance(ready, Ready)
        assert isinstance(ready.stage, LoraTraining)
        stages.append(ready.stage)
    first, second = stages
    for start in range(0, 40, 4):  # the first from the beginning, the second from where a run was killed
        batch = first.batch(range(start, start + 4))
        if start >= 20:
            again = second.batch(range(start, start + 4))
            assert batch.keys() == again.keys()
            assert all(torch.equal(batch[name], again[name]) for name in batch)
        shown = first.data.shown(range(start, start + 4))
        of_class = [pictures.records[one.row].regularisation for one in shown]
        assert batch["loss_weight"].tolist() == [0.5 if one else 1.0 for one in of_class]
        assert batch["loss_mask"].shape == (4, 1, 8, 8)
    captions = {one.caption for one in first.data.shown(range(400))}
    assert {"", "square", "sks a square, red, plain, small"} < captions
    assert len(captions) == 2 + 24  # four tags, in every order
    assert {one.mirrored for one in first.data.shown(range(40)) if one.caption == "square"} == {False}
    assert not any(pictures.records[one.row].regularisation for one in first.held_out.plain(range(4)))


@pytest.mark.slow
def test_a_lora_on_a_dataset_config_with_masks_and_shuffled_tags_resumes_exactly(
    dataset: Path, model: Path, tmp_path: Path
) -> None:
    tables: Tables = {"data": {"size": 32}, "lora": {"start": str(model), "rank": 2, "prior_loss_weight": 0.5}}
    for run, ends in (("whole", [16]), ("parts", [8, 16])):
        for images in ends:
            config = written(tmp_path / "config.toml", {**tables, "lora.loop": {**LOOP, "images": images}})
            notes, _ = trained("lora", config, dataset, tmp_path / run)
    whole, parts = (load_tensors(checkpoints(tmp_path / run / "lora")[-1]) for run in ("whole", "parts"))
    assert equal(whole, parts)
    assert not any("pictures," in note for note in notes)  # the second session finds the set that the first built


def test_the_denoiser_takes_what_can_be_encoded_and_names_the_stage_that_can_do_more(
    dataset: Path, model: Path, tmp_path: Path
) -> None:
    tables: Tables = {"data": {"size": 32}, "denoiser": {"start": str(model)}, "denoiser.loop": LOOP}
    config = written(tmp_path / "config.toml", tables)
    with pytest.raises(ConfigError, match=r"data\.captions.*Train stage lora"):
        trained("denoiser", config, dataset, tmp_path / "refused")
    dataset.write_text(TOML.format(shuffle="false", dropout=0))
    trained("denoiser", config, dataset, tmp_path / "run")
    [built] = (tmp_path / "run").glob("pictures-32-*")
    sources = open_sources(built, DataConfig(size=32))
    assert sources.every is not None
    captions = sources.every.examples(range(len(sources.every))).captions
    # Four pictures and their mirror images against three of the class, all as often as an epoch shows them.
    assert [captions.count(one) for one in ("sks a square, red, plain, small", "square")] == [8, 3]
    assert len(sources.plain) == len(sources.held_out) == 4
    config = written(tmp_path / "few.toml", {**tables, "data": {"size": 32, "examples": 5}})
    with pytest.raises(ConfigError, match=r"data\.examples.*11 or more"):
        trained("denoiser", config, dataset, tmp_path / "few")


def test_repeats_of_folders_count_in_what_is_encoded(tmp_path: Path) -> None:
    squares(tmp_path / "mine", 2, names="6_a/{}")
    squares(tmp_path / "mine", 3, names="2_b/b{}")
    list(pack_pictures(tmp_path / "mine", tmp_path / "set", (Bucket(32, 32),), ReadReport()))
    every = open_sources(tmp_path / "set", DataConfig(size=32, flip=True)).every
    assert every is not None
    shown = [every.view(number) for number in range(len(every))]  # type: ignore[attr-defined]
    packed = PackedPictures.open(tmp_path / "set")
    counts = {packed.records[row].key: sum(view[0] == row for view in shown) for row in range(len(packed))}
    assert counts == {"6_a/0.png": 6, "6_a/1.png": 6, "2_b/b0.png": 2, "2_b/b1.png": 2, "2_b/b2.png": 2}


def test_pictures_of_the_class_are_painted_once_and_as_the_pipeline_paints_them(model: Path, tmp_path: Path) -> None:
    folder = class_folder(tmp_path, model, "a disc", size=32, seed=7)
    assert next(paint_class_pictures(folder, model, "a disc", 2, size=32, seed=7)) == 1  # and no further
    kept = (folder / "00000.png").stat().st_mtime_ns
    assert list(paint_class_pictures(folder, model, "a disc", 2, size=32, seed=7)) == [1, 2]
    assert (folder / "00000.png").stat().st_mtime_ns == kept
    expected = Pipeline.load(model).paint(Request(prompt="a disc", seed=8, width=32, height=32))[0].image
    assert np.array_equal(np.asarray(Image.open(folder / "00001.png")), np.asarray(expected))
    assert [path.read_text() for path in sorted(folder.glob("*.txt"))] == ["a disc\n"] * 2
    others = {class_folder(tmp_path, model, *one, size=32, seed=k) for one, k in ((["a cat"], 7), (["a disc"], 8))}
    assert len(others | {folder}) == 3


def test_a_stage_with_a_class_prompt_paints_learns_and_resumes(model: Path, tmp_path: Path) -> None:
    data = squares(tmp_path / "mine", 4)
    table = {"start": str(model), "class_prompt": "a disc", "class_pictures": 2}
    config = written(tmp_path / "config.toml", {"data": {"size": 32}, "denoiser": table, "denoiser.loop": LOOP})
    painted = [0]
    for event in train_stage("denoiser", config, data, tmp_path / "run", stop=lambda: painted[0] >= 1):
        assert isinstance(event, Preparing)
        assert event.what == "painting 'a disc'"
        painted[0] = event.done
    [folder] = (tmp_path / "run").glob("class-pictures-*")
    assert len(list(folder.glob("*.png"))) == 1
    trained("denoiser", config, data, tmp_path / "run")
    [built] = (tmp_path / "run").glob("pictures-32-*")
    packed = PackedPictures.open(built)
    assert (len(packed), packed.to_learn) == (6, 4)
    assert {one.captions for one in packed.records if one.regularisation} == {("a disc",)}
    # A set that is built takes pictures of the class too; fewer of them are the first of those that are there.
    plain = pictures_of(built_set(data, tmp_path / "plain", DataConfig(size=32)))
    fewer = pictures_of(built_set(plain.folder, tmp_path / "fewer", DataConfig(size=32), painted=(folder, 1)))
    assert [one.sha256 for one in fewer.records] == [one.sha256 for one in packed.records[:5]]


def pictures_of(building: Generator[Preparing, None, Path]) -> PackedPictures:
    while True:
        try:
            next(building)
        except StopIteration as ended:
            return PackedPictures.open(ended.value)


def test_other_tools_names_are_answered_with_ours(tmp_path: Path) -> None:
    names = {"shuffle_caption": "[data.captions]", "reg_data_dir": "regularisation", "alpha_mask": "masks"}
    for key, ours in names.items():
        with pytest.raises(ConfigError) as caught:
            TrainConfig.from_dict({"data": {key: True}}, where="my.toml")
        assert ours in caught.value.cure
    config = DataConfig(size=32, regularisation=tmp_path)
    with pytest.raises(ConfigError, match="one of the two"):
        next(built_set(tmp_path, tmp_path / "run", config, painted=(tmp_path, 3)))
