"""What a notebook shows, in a kernel of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.loopback_hub import REPO, served_hub

from gouache.checkpoints.save import bundle_to_write, write_model
from gouache.notebook import in_notebook, told
from gouache.pipeline.pipeline import Pictures, Pipeline, untrained_bundle
from gouache.pipeline.request import Request

START = "from gouache import Request\nfrom gouache.pipeline.pipeline import Pipeline, untrained_bundle\n"
START += "pipeline = Pipeline(untrained_bundle())"
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::RuntimeWarning"
)


def test_pictures_are_a_list_that_shows_itself() -> None:
    pictures = Pipeline(untrained_bundle()).paint(
        Request(prompt='a <b>"fox"', seed=4, count=2, width=32, height=32, num_inference_steps=2)
    )
    assert isinstance(pictures, list)
    assert [one.seed for one in pictures] == [4, 5]
    shown = pictures._repr_html_()
    assert shown.count("data:image/png;base64,") == 2
    assert "<b>" not in shown
    assert "seed 5" in shown
    assert repr(pictures[0]).startswith("Painted('a <b>\"fox\"', seed 4, 32x32, untrained, ")
    assert Pictures()._repr_html_().count("<img") == 0


def test_a_request_shows_what_differs_from_the_defaults() -> None:
    request = Request(prompt="a fox", seed=4, num_inference_steps=8)
    assert repr(request) == "Request(prompt='a fox', seed=4, num_inference_steps=8)"
    assert repr(Request()) == "Request(prompt='')"
    assert repr(Pipeline(untrained_bundle())) == "Pipeline('untrained', family 'sd1', on cpu, torch.float32)"


def test_outside_of_notebooks_the_events_pass_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert not in_notebook()
    assert list(told(iter((1, 2)), lambda _one: (0.5, "half"), progress=True)) == [1, 2]
    assert capsys.readouterr() == ("", "")


def run(*cells: str, interrupted: int | None = None) -> list[list[Any]]:
    """What each cell sent while it ran in one kernel.

    Args:
        cells: their sources.
        interrupted: number of the cell that is stopped as soon as it shows something.
    """
    from jupyter_client.manager import start_new_kernel

    manager, client = start_new_kernel(kernel_name="python3")
    try:
        sent = []
        for number, source in enumerate(cells):
            messages: list[Any] = []

            def hear(message: Any, number: int = number, messages: list[Any] = messages) -> None:
                messages.append(message)
                kinds = [one["msg_type"] for one in messages]
                # Once: a second signal would stop the sending of the error.
                if number == interrupted and kinds[-1] not in kinds[:-1] and kinds[-1] == "update_display_data":
                    manager.interrupt_kernel()

            client.execute_interactive(source, timeout=120, output_hook=hear)
            sent.append(messages)
        return sent
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def texts(messages: list[Any], kind: str, form: str) -> list[str]:
    """What messages of one kind show in one form."""
    return [one["content"]["data"][form] for one in messages if one["msg_type"] == kind]


@pytest.mark.slow
def test_a_cell_shows_a_bar_and_then_the_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GOUACHE_PROGRESS", raising=False)
    shown, quiet = run(f"{START}\npipeline.paint('a fox')", "pipeline.paint('a fox', progress=False)")
    bars = texts(shown, "update_display_data", "text/html")
    assert "step 1 of 8" in bars[0]
    assert bars[-1] == ""
    assert texts(shown, "execute_result", "text/html")[0].count("<img") == 1
    assert not texts(quiet, "display_data", "text/html")
    assert not [one for one in shown + quiet if one["msg_type"] in ("stream", "error")]
    monkeypatch.setenv("GOUACHE_PROGRESS", "off")
    (silent,) = run(f"{START}\npipeline.paint('a fox')")
    assert not texts(silent, "display_data", "text/html")


@pytest.mark.slow
def test_an_interrupted_cell_leaves_a_pipeline_that_paints_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GOUACHE_PROGRESS", raising=False)
    small = "pipeline.paint(Request(prompt='a fox', seed=1), progress=False)[0].recipe.pixels"
    long = "pipeline.paint(Request(prompt='a fox', seed=1, num_inference_steps=500))"
    before, stopped, after = run(f"{START}\n{small}", long, small, interrupted=1)
    assert [one["content"]["ename"] for one in stopped if one["msg_type"] == "error"] == ["KeyboardInterrupt"]
    assert texts(stopped, "update_display_data", "text/html")[-1] == ""
    same = [texts(one, "execute_result", "text/plain") for one in (before, after)]
    assert same[0] == same[1] != []


TRAINING = """
[data]
size = 16
missing_caption = "a thing"
[vae.network]
channels = [32]
[vae.loop]
batch_size = 4
images = 40
"""


@pytest.mark.slow
def test_training_from_python_shows_a_bar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GOUACHE_PROGRESS", raising=False)
    (tmp_path / "own").mkdir()
    for number in range(40):
        Image.new("RGB", (16, 16), (number * 6, 99, 0)).save(tmp_path / "own" / f"{number}.png")
    (tmp_path / "config.toml").write_text(TRAINING)
    start = f"from pathlib import Path\nfrom gouache.training.run import train_stage\nhere = Path({str(tmp_path)!r})"
    cell = 'for event in train_stage("vae", here / "config.toml", here / "own", here / "run"): pass'
    (shown,) = run(f"{start}\n{cell}")
    assert not [one["content"] for one in shown if one["msg_type"] == "error"]
    bars = texts(shown, "update_display_data", "text/html")
    assert any("of 40 images" in one for one in bars)
    assert bars[-1] == ""
    assert (tmp_path / "run" / "vae" / "last.safetensors").exists()


@pytest.mark.slow
def test_downloading_and_loading_show_a_bar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GOUACHE_PROGRESS", raising=False)
    write_model(bundle_to_write(untrained_bundle()), tmp_path / "model", "diffusers")
    with served_hub(tmp_path / "model", tmp_path, monkeypatch):
        pull = f"from gouache.checkpoints.hub import pull\npath = pull({REPO!r})"
        pulled, loaded = run(pull, "from gouache import Pipeline\nPipeline.load(path)")
    for shown, said in ((pulled, f"{REPO}: "), (loaded, "loading ")):
        assert not [one["content"] for one in shown if one["msg_type"] == "error"]
        bars = texts(shown, "update_display_data", "text/html")
        assert said in bars[0]
        assert bars[-1] == ""
