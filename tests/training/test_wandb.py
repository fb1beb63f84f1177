"""The log at Weights & Biases: figures and pictures, one run over all sessions, refusals before anything begins."""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gouache.errors import MissingDependency, TrainingError
from gouache.training.loop import train
from gouache.training.run import train_stage
from gouache.training.runlog import read_log
from gouache.training.stage import Stage

MakeStage = Callable[..., Stage[Any]]
BLOCK, FULL, LAST = 32_768, 1, 4
LOOP = {"batch_size": 2, "log_images": 2, "validate_images": 4, "channels_last": False, "wandb": "my-project"}


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No network, no login of whoever runs the tests, and no reports of errors to its makers."""
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("HOME", str(tmp_path))
    yield
    if (wandb := sys.modules.get("wandb")) is not None:
        wandb.teardown()  # it reads its variables once, and keeps a process of its own


def run(stage: Stage[Any], folder: Path, images: int) -> None:
    loop = stage.config.loop.model_copy(update={"images": images})
    list(train(stage, stage.config.model_copy(update={"loop": loop}), folder))


def records(file: Path) -> Iterator[Any]:
    """The records of an offline run, which `wandb sync` would upload: LevelDB's log format behind seven bytes."""
    from wandb.proto import wandb_internal_pb2

    data, place, whole = file.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if (left := BLOCK - place % BLOCK) < 7:
            place += left
            continue
        length, kind = struct.unpack("<HB", data[place + 4 : place + 7])
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (FULL, LAST):
            yield wandb_internal_pb2.Record.FromString(whole)
            whole = b""


def test_figures_and_pictures_arrive_and_a_resumed_run_is_the_same_one(make_stage: MakeStage, tmp_path: Path) -> None:
    folder = tmp_path / "shapes" / "vae"
    run(make_stage("vae", loop=LOOP), folder, 4)
    run(make_stage("vae", loop=LOOP), folder, 8)
    sessions = sorted((folder / "wandb").glob("offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime_ns)
    assert len(sessions) == 2
    rows, runs = [], []
    for session in sessions:
        for record in records(session):
            if record.WhichOneof("record_type") == "history":
                items = {item.key or item.nested_key[0]: item.value_json for item in record.history.item}
                rows.append({key: json.loads(value) for key, value in items.items()})
            elif record.WhichOneof("record_type") == "run":
                runs.append((record.run.project, record.run.run_id, record.run.display_name))
    assert len(set(runs)) == 1
    assert (runs[0][0], runs[0][2]) == ("my-project", "shapes/vae")
    for figure in ("loss", "validation/psnr"):
        shown = [(row["images_seen"], row[figure]) for row in rows if figure in row]
        logged = [(line["images_seen"], line[figure]) for line in read_log(folder) if figure in line]
        assert shown == [(seen, pytest.approx(value)) for seen, value in logged]
    assert [row["images_seen"] for row in rows if "samples" in row] == [4, 8]


def test_without_a_login_the_run_says_so_at_its_start(
    make_stage: MakeStage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    with pytest.raises(TrainingError, match=r"loop\.wandb.*wandb login.*WANDB_MODE=offline"):
        run(make_stage("tokens", loop=LOOP), tmp_path / "run", 4)


def test_without_the_package_nothing_is_encoded_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "config.toml"
    config.write_text('[denoiser]\nstart = "pocket"\n[denoiser.loop]\nwandb = "my-project"\n')
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingDependency, match=r"loop\.wandb: given my-project.*pip install wandb"):
        list(train_stage("denoiser", config, tmp_path / "no data", tmp_path / "run"))
    config.write_text('[denoiser]\nstart = "pocket"\n[denoiser.optimizer]\nname = "prodigy"\n')
    monkeypatch.setitem(sys.modules, "prodigyopt", None)
    with pytest.raises(MissingDependency, match=r"optimizer\.name: given prodigy.*pip install prodigyopt"):
        list(train_stage("denoiser", config, tmp_path / "no data", tmp_path / "run"))
    assert not (tmp_path / "run").exists()
