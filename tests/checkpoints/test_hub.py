"""The hub path against a loopback server that speaks enough of the hub's protocol; offline means no socket."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.loopback_hub import REPO, Hub, served_hub

from gouache.checkpoints import hub
from gouache.checkpoints.diffusers.repository import PART_FOLDERS, choose_files
from gouache.checkpoints.load import identify, load_bundle
from gouache.errors import CorruptCheckpoint, HubError, ModelNotFound

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture
def server(published: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with the tiny SD 1.x, code and other frameworks' files beside it; caches are in `tmp_path`."""
    with served_hub(published("sd1"), tmp_path, monkeypatch) as served:
        served.files |= {
            "pipeline.py": b"raise SystemExit",
            "unet/modeling.py": b"raise SystemExit",
            "README.md": b"# tiny",
            "unet/flax_model.msgpack": b"x",
            "unet/diffusion_pytorch_model.bin": b"x",
            "big.ckpt": b"x",
            "unet/diffusion_pytorch_model.fp16.safetensors": b"x",
            "safety_checker/model.safetensors": b"x",
        }
        yield served


def fetched(folder: Path) -> set[str]:
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}


def test_a_pulled_model_is_whole_and_without_code(server: Hub) -> None:
    folder = hub.pull(REPO)
    assert fetched(folder) == {
        name
        for name in server.files
        if name.split("/")[0] in (*PART_FOLDERS, "model_index.json")
        and name.endswith((".json", ".txt", "model.safetensors"))
    }
    assert load_bundle(folder).family == "sd1"
    assert hub.find(REPO) == folder
    assert [(model.name, model.path) for model in hub.on_disk()] == [(REPO, folder)]


@pytest.mark.usefixtures("server")
def test_a_pull_tells_how_far_it_is_and_stops_when_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    told: list[tuple[int, int]] = []
    folder = hub.pull(REPO, progress=lambda here, total: told.append((here, total)))
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file() and "verified" not in file.name)
    assert told[-1] == (size, size)
    assert [here for here, _ in told] == sorted(here for here, _ in told)

    def refuse(here: int, total: int) -> None:
        raise RuntimeError(f"enough after {here} of {total}")

    shutil.rmtree(folder.parents[1])
    with pytest.raises(HubError, match="enough after"):
        hub.pull(REPO, progress=refuse)


def test_a_large_file_goes_on_in_its_middle_in_a_later_pull(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 10_000)
    monkeypatch.setattr(hub, "LARGE", 100_000)
    large = [name for name in server.files if len(server.files[name]) >= 100_000 and name.startswith("unet/")]
    assert large

    def refuse(here: int, total: int) -> None:
        assert total > here
        if here > 60_000:
            raise RuntimeError("enough")

    with pytest.raises(HubError, match="enough"):
        hub.pull(REPO, progress=refuse)
    server.asked.clear()
    told: list[int] = []
    folder = hub.pull(REPO, progress=lambda here, _: told.append(here))
    ranges = [wanted for _, _, wanted in server.asked if wanted]
    assert ranges[0] == f"bytes={told[0] - 10_000}-", "it began where the first pull stopped"
    assert told == sorted(told)
    assert load_bundle(folder).family == "sd1"
    assert not [*folder.parents[1].rglob("*.part")]
    server.asked.clear()
    hub.pull(REPO)
    assert not [path for method, path, _ in server.asked if method == "GET" and path.endswith("tensors")]


def test_a_large_file_with_another_sha256_is_removed_and_named(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "LARGE", 100_000)
    server.lie = "unet/diffusion_pytorch_model.safetensors"
    with pytest.raises(CorruptCheckpoint, match=r"unet/diffusion_pytorch_model\.safetensors.*Pull it again"):
        hub.pull(REPO)
    server.lie = None
    assert identify(hub.pull(REPO)).kind == "model"


def test_what_is_there_is_not_fetched_again(server: Hub) -> None:
    hub.pull(REPO)
    server.asked.clear()
    hub.pull(REPO)
    assert not [path for method, path, _ in server.asked if method == "GET" and path.endswith("tensors")]


def test_a_download_that_stopped_goes_on_where_it_was(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 10_000)
    server.break_after = 100_000
    try:
        hub.pull(REPO)
    except HubError:
        hub.pull(REPO)
    assert [wanted for _, _, wanted in server.asked if wanted], "nothing was asked for from the middle on"
    assert load_bundle(hub.find(REPO)).family == "sd1"


def test_a_file_with_another_sha256_is_removed_and_named(server: Hub) -> None:
    server.lie = "vae/diffusion_pytorch_model.safetensors"
    with pytest.raises(CorruptCheckpoint, match=r"vae/diffusion_pytorch_model\.safetensors.*Pull it again"):
        hub.pull(REPO)
    server.lie = None
    assert identify(hub.pull(REPO)).kind == "model"


def test_a_gated_model_says_where_to_accept_the_licence(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    server.token = "right"
    with pytest.raises(HubError, match=rf"gated model.*Accept the licence at {server.url}/{REPO}.*HF_TOKEN"):
        hub.pull(REPO)
    with pytest.raises(HubError, match="gated"):
        hub.pull(REPO, token="wrong")
    monkeypatch.setenv("HF_TOKEN", "right")
    assert identify(hub.pull(REPO)).kind == "model"


def test_a_name_that_cannot_be_a_repositorys(server: Hub) -> None:
    with pytest.raises(HubError, match="owner/name"):
        hub.pull("no//such::name")
    assert not server.asked


def test_no_such_repository(server: Hub) -> None:
    with pytest.raises(HubError, match="no such repository"):
        hub.pull("painter/nothing")
    assert server.asked


def test_a_hub_that_is_not_there(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")
    with pytest.raises(HubError, match="an answer from"):
        hub.pull(REPO)
    assert not server.asked


def test_offline_never_opens_a_socket(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = hub.pull(REPO)

    def refuse(*_: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for value in ("1", "true", "YES"):
        monkeypatch.setenv("GOUACHE_OFFLINE", value)
        with pytest.raises(HubError, match="GOUACHE_OFFLINE"):
            hub.pull(REPO)
    assert hub.find(REPO) == folder
    assert load_bundle(hub.find(REPO)).family == "sd1"
    assert hub.on_disk()[0].name == REPO
    assert server.asked


def run_pull(*options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`gouache pull` as a process of its own, with the fixture's hub and folders."""
    code = "import sys; from gouache.cli.main import main; sys.argv[0] = 'gouache'; main()"
    more = {"HF_HUB_DISABLE_XET": "1", "HF_TOKEN_PATH": os.environ["HF_HUB_CACHE"] + "/none", **environment}
    return subprocess.run(
        [sys.executable, "-c", code, "pull", REPO, *options],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | more,
    )


def test_the_command_pulls_says_what_it_may_not_and_stays_offline(server: Hub) -> None:
    server.token = "right"
    gated = run_pull()
    assert gated.returncode == 3
    assert gated.stdout == ""
    assert f"Accept the licence at {server.url}/{REPO}" in " ".join(gated.stderr.split())
    assert "Traceback" not in gated.stderr
    pulled = run_pull("--json", HF_TOKEN="right")
    assert pulled.returncode == 0, pulled.stderr
    told = json.loads(pulled.stdout)
    assert told == {"path": str(hub.find(REPO)), "name": REPO, "kind": "model", "family": "sd1"}
    assert load_bundle(told["path"]).family == "sd1"
    server.asked.clear()
    offline = run_pull(GOUACHE_OFFLINE="1")
    assert offline.returncode == 3
    assert "GOUACHE_OFFLINE" in offline.stderr
    assert not server.asked


def test_names_that_are_nowhere_get_a_cure(server: Hub) -> None:
    with pytest.raises(ModelNotFound, match="gouache pull painter/tiny"):
        hub.find(REPO)
    hub.pull(REPO)
    with pytest.raises(ModelNotFound, match="Did you mean 'painter/tiny'"):
        hub.find("painter/tinny")
    with pytest.raises(ModelNotFound, match="Did you mean 'pocket'"):
        hub.find("pockt")
    with pytest.raises(ModelNotFound):
        hub.find("../../etc/passwd-of-nobody")
    assert server.asked


def test_the_models_folder_is_looked_in_first(server: Hub, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "mine.safetensors").write_bytes(b"x" * 10)
    assert hub.find("mine") == tmp_path / "models" / "mine.safetensors"
    assert [(model.name, model.bytes) for model in hub.on_disk()] == [("mine", 10)]
    assert not server.asked


def test_which_files_are_chosen() -> None:
    choose = choose_files
    assert choose(["README.md", "net-Q4_K_M.gguf", "net-Q8_0.gguf"]) == ["net-Q8_0.gguf"]
    parts = ["model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.bin"]
    plain = "unet/diffusion_pytorch_model.safetensors"
    half = "unet/diffusion_pytorch_model.fp16.safetensors"
    assert choose(parts) == parts
    assert choose([*parts, half]) == [*parts[:2], half]
    assert choose([*parts, half, plain]) == [*parts[:2], plain]
    assert choose([*parts, half, plain], "fp16") == [*parts[:2], half]
    shards = [f"unet/diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    index = "unet/diffusion_pytorch_model.safetensors.index.json"
    assert choose([*parts, *shards, index, half]) == [*parts[:2], *shards, index]
    assert choose(["README.md", "v1-5-pruned-emaonly.safetensors", "v1-5-pruned.safetensors", "v1-5-pruned.ckpt"]) == [
        "v1-5-pruned.safetensors"
    ]
    assert choose(["only.ckpt", "run.py"]) == ["only.ckpt"]
    third = ["model_index.json", "transformer/config.json", "transformer/diffusion_pytorch_model.safetensors"]
    third += ["text_encoder_3/config.json", "text_encoder_3/model.safetensors", "tokenizer_3/spiece.model"]
    assert choose([*third, "sd3_medium.safetensors", "tokenizer_3/tokenize.py"]) == third
    peft = ["adapter_config.json", "adapter_model.safetensors"]
    assert choose(["README.md", *peft, "x.py"]) == peft
    assert choose(["model.json", "unet.safetensors", "vae.safetensors", "vocab.txt", "x.py"]) == [
        "model.json",
        "vocab.txt",
        "unet.safetensors",
        "vae.safetensors",
    ]
    assert choose(["README.md", "run.py"]) == []
