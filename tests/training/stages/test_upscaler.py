"""The stage `upscaler`: crops fit their pictures, batches are pure, it learns to beat interpolation, and it resumes."""

from __future__ import annotations

import json
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from gouache.checkpoints.formats.header import read_header
from gouache.checkpoints.formats.safetensors import load_tensors, save_tensors
from gouache.checkpoints.hub import file_sha256
from gouache.data.drawing import render_svg
from gouache.data.large import LargeSet, LargeStickers, OwnLarge, keep_large
from gouache.data.readers import Reading, ReadReport
from gouache.data.stickers import RECIPE, RECIPE_VERSION, StickerManifest, Stickers, is_held_out
from gouache.data.subsets.plan import plan_set
from gouache.errors import ConfigError, DataError, TrainingError
from gouache.models.configs import UpscalerConfig, VAEConfig
from gouache.models.upscalers import Upscaler
from gouache.models.vae import AutoencoderKL
from gouache.pipeline.inputs.images import on_background
from gouache.pipeline.inputs.tensors import rgba_to_tensor, to_tensor
from gouache.training.config import TrainConfig
from gouache.training.loop import train
from gouache.training.run import assemble, train_stage
from gouache.training.stage import Preparing, Ready
from gouache.training.stage_tables import UpscalerStage
from gouache.training.stages.upscaler import UpscalerTraining, on_both_grounds

SMALL, SCALE, CROP = 32, 4, 16
VAE = {
    "image_channels": 4,
    "latent_channels": 4,
    "channels": (8, 8),
    "layers_per_level": 1,
    "norm_groups": 4,
    "patch_size": 2,
    "middle_attention": False,
    "scale": 1.0,
}
STAGE = {
    "network": {"channels": 16, "blocks": 2, "scale": SCALE},
    "crop": CROP,
    "crops": 2,
    "loop": {"batch_size": 8, "images": 64, "log_images": 400, "validate_images": 100_000},
    "optimizer": {"learning_rate": 4e-3, "warmup_images": 0},
}


def svg_of(number: int) -> str:
    """A bar, a ring and a disc, of other colours and angles for each number."""
    hue = number * 37 % 360
    shapes = (
        f'<rect x="4" y="6" width="24" height="5" fill="hsl({hue},70%,45%)" transform="rotate({number * 23} 16 16)"/>'
        f'<circle cx="16" cy="16" r="{6 + number % 6}" fill="none" stroke="hsl({hue + 120},80%,40%)" stroke-width="2"/>'
        f'<circle cx="{8 + number % 9}" cy="22" r="4" fill="hsl({hue + 240},60%,60%)"/>'
    )
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32">{shapes}</svg>'


def write_set(folder: Path) -> Path:
    """A built set of 36 vector stickers, two of which are held out."""
    folder.mkdir()
    codes = [f"{n:x}" for n in range(0x1F400, 0x1F700)]
    kept = [code for code in codes if not is_held_out(code, "noto")][:34]
    kept += [code for code in codes if is_held_out(code, "noto")][:2]
    rows, pictures = [], []
    with zipfile.ZipFile(folder / "sources.zip", "w") as sources:
        for index, code in enumerate(kept):
            sources.writestr(f"noto/{code}.svg", svg_of(index))
            pictures.append(render_svg(svg_of(index), SMALL))
            rows.append(
                {
                    "index": index,
                    "code": code,
                    "style": "noto",
                    "label": "shape",
                    "keywords": [],
                    "zh_label": "",
                    "zh_keywords": [],
                    "group": "objects",
                    "subgroup": "tool",
                    "file": f"noto/{code}.svg",
                    "source": "shapes@1",
                    "licence": "MIT",
                }
            )
    np.save(folder / "pictures.npy", np.stack(pictures))
    (folder / "records.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    names = ("sources.zip", "pictures.npy", "records.jsonl")
    manifest = StickerManifest(
        recipe=RECIPE,
        recipe_version=RECIPE_VERSION,
        size=SMALL,
        count=len(rows),
        counts={"noto": len(rows)},
        packages=(),
        sha256={name: file_sha256(folder / name) for name in names},
    )
    (folder / "manifest.json").write_text(manifest.to_json())
    return folder


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("shapes") / "set")


@pytest.fixture(scope="module")
def large(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> LargeStickers:
    return LargeStickers(Stickers.open(shapes), SMALL * SCALE, tmp_path_factory.mktemp("large"))


def stage_of(large: LargeSet, **changes: object) -> UpscalerTraining:
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(1)
        vae = AutoencoderKL(VAEConfig.from_dict(VAE)).eval()
        return UpscalerTraining(UpscalerStage.from_dict({**STAGE, **changes}), large, vae, 0)


def test_a_target_is_its_place_of_the_picture_drawn_large(large: LargeStickers) -> None:
    stage = stage_of(large, decoded=0.0, degraded=0.0)
    batch = stage.batch(range(6))
    batch["amounts"].zero_()
    averaged = F.avg_pool2d(batch["target"], SCALE)
    assert torch.allclose(stage._degraded(batch), averaged, atol=1e-5)
    assert batch["target"].shape == (6, 4, CROP * SCALE, CROP * SCALE)
    assert batch["picture"].shape == (3, 4, SMALL, SMALL), "two crops of each picture"


def test_batches_are_pure_functions_of_their_numbers(large: LargeStickers) -> None:
    stage = stage_of(large)
    whole, part = stage.batch(range(8)), stage.batch(range(3, 6))
    for name in ("target", "grain", "amounts"):
        assert torch.equal(whole[name][3:6], part[name])
    with torch.no_grad():
        assert torch.allclose(stage._degraded(whole)[3:6], stage._degraded(part), atol=1e-5)
    assert not torch.equal(whole["target"][0], whole["target"][2])


def test_shares_of_what_is_done_to_crops(large: LargeStickers) -> None:
    amounts = stage_of(large, decoded=0.6, degraded=0.25)._amounts_of(range(4000))
    share, blur, grain = amounts.unbind(1)
    assert float((share == 1).float().mean()) == pytest.approx(0.6, abs=0.03)
    assert float((share == 0).float().mean()) == pytest.approx(0.2, abs=0.03)
    assert float((blur > 0).float().mean()) == pytest.approx(0.25, abs=0.03)
    assert float(blur.max()) <= 0.5
    assert float(grain.max()) <= 0.03


def test_twenty_steps_bring_it_nearer_to_pictures_it_never_saw(large: LargeStickers, tmp_path: Path) -> None:
    figures = []
    for steps in (1, 20):
        loop = {"batch_size": 8, "images": 8 * steps, "log_images": 800, "validate_images": 100_000}
        stage = stage_of(large, decoded=0.0, degraded=0.0, loop=loop)
        *_, last = train(stage, stage.config, tmp_path / str(steps))
        figures.append(last.figures["psnr_clean"])
    assert figures[1] > figures[0]
    assert list((tmp_path / "20" / "samples").glob("*.png"))


@pytest.mark.slow
def test_it_learns_to_beat_interpolation_on_pictures_it_never_saw(large: LargeStickers, tmp_path: Path) -> None:
    loop = {"batch_size": 8, "images": 2400, "log_images": 800, "validate_images": 100_000}
    stage = stage_of(large, decoded=0.0, degraded=0.0, loop=loop)
    *_, last = train(stage, stage.config, tmp_path)
    assert last.figures["psnr_clean"] > last.figures["lanczos_clean"] + 1
    assert last.figures["lanczos_clean"] > last.figures["bicubic_clean"]
    exported = tmp_path / "last.safetensors"
    metadata = read_header(exported).metadata
    assert metadata["component"] == "upscaler"
    network = Upscaler(UpscalerConfig.from_json(metadata["config"], where="last"))
    network.load_state_dict(load_tensors(exported))
    assert list((tmp_path / "samples").glob("*.png"))


def test_a_run_that_stopped_ends_as_the_one_that_did_not(large: LargeStickers, tmp_path: Path) -> None:
    def run(images: int, folder: str) -> dict[str, torch.Tensor]:
        loop = {"batch_size": 8, "images": images, "log_images": 400, "validate_images": 100_000}
        stage = stage_of(large, loop=loop)
        for _ in train(stage, stage.config, tmp_path / folder):
            pass
        return {name: tensor.clone() for name, tensor in stage.saved().items()}

    run(24, "twice")
    whole, resumed = run(48, "once"), run(48, "twice")
    assert whole.keys() == resumed.keys()
    assert not any(name.startswith("vae.") for name in whole)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_going_beyond_white_is_no_error(large: LargeStickers) -> None:
    stage = stage_of(large, decoded=0.0, degraded=0.0)
    batch = stage.batch(range(2))
    batch["target"] = torch.ones_like(batch["target"])
    with torch.no_grad():
        stage.trained.get_parameter("conv_out.bias").fill_(3.0)
        assert float(stage(batch)["loss"]) == 0.0
        batch["target"] = torch.zeros_like(batch["target"])
        assert float(stage(batch)["l1"]) > 0.5


def test_a_fringe_that_white_hides_is_seen_on_black() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 4), np.uint8)
    seven = on_both_grounds(rgba_to_tensor(pixels)[None])[0]
    black = on_background(Image.fromarray(pixels), "black")
    assert torch.allclose(seven[4:], to_tensor(black, 3), atol=1.01 / 127.5)
    assert torch.equal(seven[:4], rgba_to_tensor(pixels))
    plain = torch.zeros(1, 3, 2, 2)
    assert on_both_grounds(plain) is plain


def test_wrong_configs_and_data_are_refused(shapes: Path, large: LargeStickers, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at most"):
        stage_of(large, crop=SMALL + 1)
    with pytest.raises(ConfigError, match="image_channels"):
        stage_of(large, network={"image_channels": 3})
    config = TrainConfig.from_dict({"data": {"size": SMALL}, "upscaler": STAGE})
    with pytest.raises(TrainingError, match="stage vae"):
        list(assemble("upscaler", config, shapes, tmp_path))
    config = TrainConfig.from_dict({"data": {"size": 64}, "upscaler": STAGE})
    with pytest.raises(DataError, match="64"):
        list(assemble("upscaler", config, shapes, tmp_path))


def test_the_stage_is_put_together_from_files(shapes: Path, tmp_path: Path) -> None:
    (tmp_path / "vae").mkdir()

    vae = AutoencoderKL(VAEConfig.from_dict(VAE))
    save_tensors(tmp_path / "vae" / "last.safetensors", vae.state_dict(), {"config": vae.config.to_json()})
    config = TrainConfig.from_dict({"data": {"size": SMALL}, "upscaler": STAGE})
    (ready,) = assemble("upscaler", config, shapes, tmp_path)
    assert isinstance(ready, Ready)
    assert isinstance(ready.stage, UpscalerTraining)
    assert isinstance(ready.stage.large, LargeStickers)
    assert ready.stage.large.size == SMALL * SCALE
    assert ready.stage.large.folder.parent == tmp_path


def photographs(folder: Path, sides: dict[str, tuple[int, int]]) -> Path:
    """Pictures of smooth colours and edges, no two alike, as `name: (width, height)`; no captions."""
    folder.mkdir()
    for number, (name, (width, height)) in enumerate(sides.items()):
        y, x = np.mgrid[:height, :width] / 24
        waves = [np.sin(x * (1 + c) + number) + np.cos(y * (2 - c / 2)) + (x * 3 % 5 < 2) for c in range(3)]
        Image.fromarray((np.stack(waves, 2) * 50 + 110).clip(0, 255).astype(np.uint8)).save(folder / name)
    return folder


def own(folder: Path, cache: Path) -> OwnLarge:
    for _ in keep_large(plan_set(folder, reading=Reading(missing="x")).subsets, cache, LARGE, ReadReport()):
        pass
    return OwnLarge(cache, LARGE)


LARGE = SMALL * SCALE
OWN = {"wide.png": (300, 140), "tall.png": (128, 200), "huge.png": (700, 900), "even.png": (128, 128)}


def test_crops_of_own_pictures_are_pure_functions_and_parts_of_the_pictures(tmp_path: Path) -> None:
    folder = photographs(tmp_path / "own", OWN)
    kept = own(folder, tmp_path / "kept")
    assert len(kept.judged) == 1
    assert len(kept.shown) == 3
    first, again = kept.endless(3), kept.endless(3)
    crops = [first.picture(number) for number in range(30)]
    assert all(np.array_equal(crops[n], again.picture(n)) for n in (29, 4, 0))
    assert len({crop.tobytes() for crop in crops}) > 20
    assert not np.array_equal(kept.endless(4).picture(0), crops[0])
    shown = [kept.whole(name) for name in kept.shown]
    for crop in crops[:6]:
        turned = [np.rot90(side, turns) for side in (crop, crop[:, ::-1]) for turns in range(4)]
        assert any(is_part(one, whole) for one in turned for whole in shown)
    # No crop of what is held out, and of the largest twice the crop's side is kept.
    assert {whole.shape[:2] for whole in map(kept.whole, (*kept.shown, *kept.judged))} == {
        (140, 300),
        (200, 128),
        (329, 256),
        (128, 128),
    }


def test_no_more_is_kept_than_a_subset_takes(tmp_path: Path) -> None:
    (subset,) = plan_set(photographs(tmp_path / "own", OWN), reading=Reading(missing="x")).subsets
    assert list(keep_large([replace(subset, most=2)], tmp_path / "kept", LARGE, ReadReport())) == [1, 2]
    assert len(list((tmp_path / "kept").iterdir())) == 2


def is_part(crop: np.ndarray, whole: np.ndarray) -> bool:
    height, width = (big - small + 1 for big, small in zip(whole.shape[:2], crop.shape[:2], strict=True))
    if height < 1 or width < 1:
        return False
    corner = (whole[:height, :width] == crop[0, 0]).all(axis=2)
    return any(
        np.array_equal(whole[top : top + len(crop), left : left + len(crop)], crop) for top, left in np.argwhere(corner)
    )


def test_a_run_on_own_pictures_that_stopped_ends_as_the_one_that_did_not(tmp_path: Path) -> None:
    folder = photographs(tmp_path / "own", OWN | {"small.jpg": (127, 400)})
    config = tmp_path / "config.toml"

    def run(images: int, name: str) -> tuple[dict[str, torch.Tensor], list[str]]:
        out = tmp_path / name
        if not out.exists():
            (out / "vae").mkdir(parents=True)
            with torch.random.fork_rng():
                torch.default_generator.manual_seed(1)
                vae = AutoencoderKL(VAEConfig.from_dict(VAE))
            save_tensors(out / "vae" / "last.safetensors", vae.state_dict(), {"config": vae.config.to_json()})
        config.write_text(
            f"[data]\nsize = {SMALL}\n[upscaler]\ncrop = {CROP}\ncrops = 2\n[upscaler.network]\nchannels = 16\n"
            f"blocks = 2\n[upscaler.loop]\nbatch_size = 8\nimages = {images}\nvalidate_images = 100000\n"
        )
        events = list(train_stage("upscaler", config, folder, out))
        notes = [event.note for event in events if isinstance(event, Preparing)]
        return load_tensors(out / "upscaler" / "last.safetensors"), notes

    first, notes = run(24, "twice")
    assert any("smaller than 128x128, left out: small.jpg (127x400)" in note for note in notes)
    whole, resumed = run(48, "once")[0], run(48, "twice")[0]
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert not all(torch.equal(first[name], whole[name]) for name in whole)


def test_pictures_that_are_all_too_small_are_named(tmp_path: Path) -> None:
    folder = photographs(tmp_path / "own", {"one.png": (127, 300), "two.png": (64, 64)})
    with pytest.raises(DataError, match=r"too small: one\.png \(127x300\), two\.png \(64x64\)") as caught:
        own(folder, tmp_path / "kept")
    assert "128 pixels or more" in str(caught.value)
    assert not (tmp_path / "kept").exists()
