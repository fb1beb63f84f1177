"""The commands inspect, convert and models, as a user runs them; and loading at full size, measured from outside."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gouache.checkpoints import hub
from gouache.cli.main import app
from gouache.errors import ModelNotFound
from gouache.pipeline.pipeline import find_model

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
RUNNER = CliRunner()


@pytest.fixture(autouse=True)
def _folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GOUACHE_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))


def test_inspect_convert_and_models_together(published: Callable[[str], Path], tmp_path: Path) -> None:
    target = tmp_path / "models" / "tiny.safetensors"
    made = RUNNER.invoke(
        app, ["convert", str(published("sd2-v")), str(target), "--to", "single-file", "--dtype", "fp16"]
    )
    assert (made.exit_code, made.stdout.strip()) == (0, str(target))
    plain = RUNNER.invoke(app, ["inspect", "tiny"])
    assert plain.exit_code == 0
    assert "model of Stable Diffusion 2.x" in plain.stdout
    assert "prediction  v (metadata modelspec.prediction_type)" in plain.stdout
    told = json.loads(RUNNER.invoke(app, ["inspect", "tiny", "--json", "--sha256"]).stdout)
    assert (told["family"], told["prediction"], told["kind"]) == ("sd2", "v", "model")
    assert told["parts"]["unet"]["dtypes"] == ["F16"]
    assert told["parameters"] == sum(part["parameters"] for part in told["parts"].values())
    assert len(told["sha256"]["tiny.safetensors"]) == 64
    listed = json.loads(RUNNER.invoke(app, ["models", "--json"]).stdout)
    assert [(model["name"], model["is"]) for model in listed["models"]] == [("tiny", "sd2 model")]


def test_one_bad_file_does_not_hide_the_others(published: Callable[[str], Path], tmp_path: Path) -> None:
    models = tmp_path / "models"
    models.mkdir()
    (models / "bad.safetensors").write_bytes(b"<!DOCTYPE html>")
    (models / "good").symlink_to(published("sd1"))
    lines = RUNNER.invoke(app, ["models"]).stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["bad", "good"]
    assert "unusable: a web page" in lines[0]
    assert lines[1].endswith("sd1 model")


def test_errors_come_as_one_typed_exception(tmp_path: Path) -> None:
    result = RUNNER.invoke(app, ["inspect", str(tmp_path / "nothing")])
    assert isinstance(result.exception, ModelNotFound)
    assert RUNNER.invoke(app, ["convert", "a", "b", "--to", "zip"]).exit_code == 2


def test_inspect_needs_no_torch(published: Callable[[str], Path]) -> None:
    code = (
        "import sys; from gouache.checkpoints.identify import identify; "
        f"print(identify({str(published('sdxl'))!r}).family, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["sdxl", "False"]


FULL_SIZE = """
import resource, sys, torch
from gouache.checkpoints.load import load_bundle
def peak():  # of this process alone: the counter of getrusage is inherited over exec
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024
before = peak()
bundle = load_bundle(sys.argv[1], dtype=getattr(torch, sys.argv[2]))
size = sum(t.numel() * t.element_size() for net in bundle.networks().values() for t in net.state_dict().values())
print(peak() - before, size)
"""


def test_one_rule_for_where_models_lie(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    for name in ("GOUACHE_MODELS", "GOUACHE_DATA", "XDG_DATA_HOME", "HF_HUB_CACHE", "HF_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert hub.model_folders() == [
        tmp_path / ".local/share/gouache/models",
        tmp_path / ".cache/huggingface/hub",
    ]
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "xdg"))
    assert hub.models_folder() == tmp_path / "xdg/gouache/models"
    monkeypatch.setenv("GOUACHE_DATA", "~/data")
    assert hub.data_folder() == tmp_path / "data"
    assert hub.models_folder() == tmp_path / "data/models"
    monkeypatch.setenv("GOUACHE_MODELS", str(tmp_path / "mine"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    assert hub.model_folders() == [tmp_path / "mine", tmp_path / "hf/hub"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/own.safetensors").write_bytes(b"x")
    assert find_model("own") == hub.find("own") == tmp_path / "mine/own.safetensors"
    for name in ("GOUACHE_DATA", "XDG_DATA_HOME"):
        monkeypatch.delenv(name)
    code = "import sys; sys.platform = 'darwin'; from gouache.checkpoints import hub; print(hub.data_folder())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()) == tmp_path / "Library/Application Support/gouache"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("to", "stored", "wanted"),
    [("single-file", "float32", "float32"), ("single-file", "float32", "float16"), ("ckpt", "float16", "float32")],
)
def test_sd15_at_full_size_loads_within_1_15_of_its_size(tmp_path: Path, to: str, stored: str, wanted: str) -> None:
    import torch

    from gouache.checkpoints.formats.header import TensorInfo
    from gouache.checkpoints.formats.safetensors import load_tensors
    from gouache.checkpoints.networks import build_on_meta
    from gouache.checkpoints.save import ModelToWrite, NetworkToWrite, write_model
    from gouache.models.configs import DenoiserConfig, GenerationDefaults, TextEncoderConfig, UNetConfig, VAEConfig

    dtype = getattr(torch, stored)
    name = {"float32": "F32", "float16": "F16"}[stored]
    networks = {}
    for part, config in (("unet", UNetConfig()), ("vae", VAEConfig()), ("text_encoder", TextEncoderConfig())):
        state = build_on_meta(config).state_dict()
        infos = {key: TensorInfo(name, tuple(tensor.shape)) for key, tensor in state.items()}

        def filled(key: str, infos: dict[str, TensorInfo] = infos) -> torch.Tensor:
            return torch.full(infos[key].shape, 0.01, dtype=dtype)

        networks[part] = NetworkToWrite(config, infos, filled)
    model = ModelToWrite("sd1", "base", "full", DenoiserConfig(), GenerationDefaults(), networks)
    path = write_model(model, tmp_path / "full.safetensors", "single-file")
    if to == "ckpt":
        torch.save({"state_dict": load_tensors(path, verify=False)}, tmp_path / "full.ckpt")
        path = tmp_path / "full.ckpt"
    command = [sys.executable, "-c", FULL_SIZE, str(path), wanted]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    grown, size = map(int, done.stdout.split())
    assert size == 1_066_235_307 * getattr(torch, wanted).itemsize
    assert grown <= 1.15 * size
