"""The page without a browser: words in both languages, texts that stay texts, drafts, charts, lists."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path
from string import Formatter
from types import SimpleNamespace
from typing import Any, cast
from xml.etree import ElementTree

import gradio as gr
import pytest
from PIL import Image

from gouache.errors import ConfigError
from gouache.serve.page import parts
from gouache.serve.page import train_tab as charts
from gouache.serve.page.edit_tab import frame_of
from gouache.serve.page.job_view import status
from gouache.serve.page.models_tab import prompt_words
from gouache.serve.page.requests import NAMES, draft, filled, keep_draft, request_of, settings_of
from gouache.serve.page.words import SAID, WORDS, said
from gouache.serve.server import create_app
from gouache.serve.settings import Settings
from gouache.serve.studio import Studio

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
PAGE = Path(parts.__file__).parent
FIELDS: dict[str, Any] = {
    "prompt": "a red fox",
    "negative": "",
    "style": "-",
    "model": "-",
    "sampler": "-",
    "schedule": "-",
    "steps": 0,
    "guidance": 0,
    "width": 0,
    "height": 0,
    "count": 1,
    "seed": -1,
}


def asking(language: str = "en-US", user: str = "local") -> gr.Request:
    return cast("gr.Request", SimpleNamespace(headers={"accept-language": language}, username=user))


@pytest.mark.parametrize("key", [*WORDS, *(f"said {key}" for key in SAID)])
def test_every_sentence_has_both_languages(key: str) -> None:
    english, chinese = SAID[key.removeprefix("said ")] if key.startswith("said ") else WORDS[key]
    assert english.strip()
    assert (
        re.search(r"[\u4e00-\u9fff]", chinese) or english == chinese == "SHA-256" or not re.search(r"[A-Za-z]", english)
    ), key
    fields = [[field for _, field, _, _ in Formatter().parse(text) if field is not None] for text in (english, chinese)]
    assert len(fields[0]) == len(fields[1])


def test_every_word_is_used_and_every_used_word_is_there() -> None:
    used: set[str] = set()
    for path in set(PAGE.glob("*.py")) - {PAGE / "words.py"}:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                used.add(node.value)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("say", "said"):
                first = node.args[0]
                table = WORDS if node.func.id == "say" else SAID
                if isinstance(first, ast.Constant):
                    assert first.value in table, f"{path.name}: {first.value!r}"
    made = {
        f"phase_{phase}"
        for phase in ("preparing", "training", "packing", "stopping", "interrupted", "done", "stopped", "failed")
    }
    made |= {f"{key}_hint" for key in ("nothing", "nothing_edited", "none_found", "no_pictures")}
    made |= {"compared_prompts", "compared_pictures", "data_title", "data_text", "plan_title", "plan_text"}
    assert set(SAID) - used - made == set()
    assert set(WORDS) - used == set()


def test_no_text_is_written_past_the_tables() -> None:
    """Labels, placeholders, hints and button texts are words of the table, never literals."""
    for path in PAGE.glob("*_tab.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.keyword) and node.arg in ("label", "placeholder", "info"):
                literal = isinstance(node.value, ast.Constant) and str(node.value.value).strip()
                assert not literal, f"{path.name}:{node.value.lineno}"
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("gr.Button", "gr.Tab", "gr.Accordion"):
                assert not isinstance(node.args[0], ast.Constant), f"{path.name}:{node.lineno}"


def test_no_selector_has_a_comma_in_brackets() -> None:
    """Gradio puts its own prefix before every part between commas, inside brackets too."""
    css = re.sub(r"/\*.*?\*/", "", (PAGE / "page.css").read_text(encoding="utf-8"), flags=re.DOTALL)
    selectors = [text for text in re.findall(r"([^{}]+)\{", css) if not text.strip().startswith("@")]
    assert len(selectors) > 100
    assert [text for text in selectors if re.search(r"\([^)]*,", text)] == []


def test_the_browsers_language_decides() -> None:
    assert said("done", asking("en-US,en")) == "Done"
    assert said("done", asking("zh-CN,zh;q=0.9,en")) == "完成"
    assert said("before", asking("zh"), 3) == "前面还有 3 个任务"


@pytest.mark.parametrize(
    "text", ["<script>x</script>", "{{value}}", "${alert(1)}", "`x`", '" onload="x', "\\u003c", "a & b"]
)
def test_texts_stay_texts(text: str) -> None:
    shown = parts.plain(text)
    assert not set(shown) & set("<>{}`$\\\"'")
    assert ElementTree.fromstring(f"<p>{shown}</p>").text == text


def test_a_piece_of_html_is_whole() -> None:
    request = asking()
    pieces = [
        parts.heading("a<b", "c"),
        parts.empty("a", "b"),
        parts.progress("a", ["b", ""], 0.5),
        parts.progress("a", [], None),
        parts.notice("a", "b"),
        parts.trouble("a", "<b>"),
        parts.facts({"a": 1, "b": ""}),
        parts.items([parts.item("k", "t", "b", tag="x", chosen=True)]),
        frame_of(Image.new("RGBA", (40, 20)), request),
        frame_of(None, request),
    ]
    for piece in pieces:
        ElementTree.fromstring(f"<div>{piece}</div>")
    assert 'aria-valuenow="50.0"' in pieces[2]
    assert "<dt>b</dt>" not in pieces[6]
    assert 'data-width="40" data-height="20"' in pieces[8]


def test_fields_become_a_request_and_come_back() -> None:
    assert request_of(FIELDS).model_dump(exclude_defaults=True) == {"prompt": "a red fox"}
    given = FIELDS | {"style": "3d", "steps": 7, "guidance": 2.5, "seed": 5, "width": 64, "sampler": "euler"}
    request = request_of(given)
    assert (request.style, request.num_inference_steps, request.seed, request.width) == ("3d", 7, 5, 64)
    back = settings_of('{"request": ' + request.to_json() + "}")
    assert back == {name: value for name, value in given.items() if name != "model"}
    assert len(filled(back)) == len(NAMES)
    with pytest.raises(ConfigError):
        request_of(FIELDS | {"width": 3})


def test_a_draft_is_kept_per_user(studio: Studio) -> None:
    keep_draft(studio, "ada", FIELDS | {"prompt": "half a thought"})
    assert draft(studio, "ada")["prompt"] == "half a thought"
    assert draft(studio, "bob") == {}


def test_status_of_an_empty_studio(studio: Studio) -> None:
    line, stage = status(studio, asking("zh-CN"), "nothing")
    assert line == ""
    assert "还没有作品" in stage


def test_the_status_names_place_and_error(studio: Studio) -> None:
    from gouache.pipeline.request import Request

    first, _ = studio.submit(Request(prompt="x"), owner="local", source="page")
    studio.submit(Request(prompt="y"), owner="local", source="page")
    assert "1 ahead" in status(studio, asking(), "nothing")[0]
    job = studio.leases.claim("worker", 30.0)
    assert job is not None
    assert job.id == first.id
    studio.leases.progress(job, picture=0, step=3, steps=12, jpeg=b"jpeg")
    line, stage = status(studio, asking(), "nothing")
    assert 'aria-valuenow="25.0"' in line
    assert "step 3 of 12" in line
    assert "1 more queued" in line
    assert "data:image/jpeg" in stage
    studio.leases.fail(job, {"message": "width: given <3>, expected more."})
    studio.cancel(studio.jobs.listing(owner="local", limit=1)[0].id, "local")
    assert "Cancelled" in status(studio, asking(), "nothing")[0]


def test_the_loss_chart_shows_the_mean_and_the_checks() -> None:
    log: list[dict[str, float]] = [{"images_seen": 10.0 * i, "loss": 1.0} for i in range(1, 30)]
    log.append({"images_seen": 300.0, "validation/score": 0.5})
    chart = charts.loss_chart(log, ("Loss", "Held out", "pictures"))
    assert "Loss: 1" in chart
    assert "Held out: 0.5" in chart
    assert chart.count("<circle") == 1
    for line in re.findall(r'points="([^"]+)"', chart):
        for point in line.split():
            x, y = map(float, point.split(","))
            assert charts.LEFT <= x <= charts.WIDTH - charts.RIGHT
            assert charts.TOP <= y <= charts.HEIGHT - charts.BOTTOM
    ElementTree.fromstring(f"<div>{chart}</div>")
    assert charts.loss_chart(log[:1], ("", "", "")) == ""


def test_the_running_mean_has_no_bias_at_its_start() -> None:
    assert [y for _, y in charts.smooth([(1, 4.0), (2, 4.0), (3, 4.0)])] == pytest.approx([4.0, 4.0, 4.0])
    assert len(charts.thinned([(i, 0.0) for i in range(10_000)])) <= charts.MOST_POINTS + 1


def test_an_adapter_goes_into_the_prompt_by_its_kind() -> None:
    from gouache.checkpoints.adapters.library import AdapterFile

    lora = AdapterFile("ink", (), "lora", "sd1", "LoRA", Path("ink.safetensors"), 10)
    word = AdapterFile("zog", (), "textual-inversion", "sd1", "1 vector", Path("zog.pt"), 10)
    assert prompt_words(lora) == "<lora:ink:0.8>"
    assert prompt_words(word) == "zog"


def test_gradio_is_told_where_to_keep_its_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", "elsewhere")
    seen: list[str] = []
    monkeypatch.setattr("gouache.serve.page.mount.mount_page", lambda *_: seen.append(os.environ["GRADIO_TEMP_DIR"]))
    studio = Studio(Settings(data=tmp_path, workers=0))
    create_app(studio)
    studio.close()
    assert seen == [str(tmp_path / "page-cache")]


@pytest.mark.slow
def test_gradio_keeps_its_copies_in_the_data_folder_from_its_first_import(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from gouache.serve.server import create_app;"
        "from gouache.serve.settings import Settings; from gouache.serve.studio import Studio;"
        "create_app(Studio(Settings(data=Path(sys.argv[1]), workers=0)));"
        "from gradio import route_utils; print(route_utils.DEFAULT_TEMP_DIR)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert Path(done.stdout.split()[-1]) == tmp_path / "page-cache"
