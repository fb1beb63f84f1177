"""The page without a browser: what is served, by which policy, and that its words, modules and libraries fit."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gouache.serve.page import files
from gouache.serve.page.routes import STATE_BYTES, VIEWS

if TYPE_CHECKING:
    from tests.serve.conftest import MakeClient

ROOT = Path(__file__).parents[3]
MODULES = sorted(path for path in files.STATIC.rglob("*.js") if "vendor" not in path.parts)
NAMES = re.compile(r"\{(\w+)\}")
SAID = re.compile(r"""\bsay\(\s*["']([\w.]+)["']""")


def test_every_word_is_there_in_both_languages_with_the_same_gaps() -> None:
    for key, texts in files.current().words.items():
        assert set(texts) == set(files.LANGUAGES), key
        assert all(text.strip() for text in texts.values()), key
        assert set(NAMES.findall(texts["en"])) == set(NAMES.findall(texts["zh"])), key


def test_no_word_is_written_twice() -> None:
    owner: dict[str, str] = {}
    for path in sorted(files.STATIC.glob("**/*words.json")):
        pairs = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=list)
        for key, _ in pairs:
            assert key not in owner, f"{key} in {path.name} and {owner[key]}"
            owner[key] = str(path)


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.relative_to(files.STATIC).as_posix())
def test_what_a_module_says_and_imports_is_there(module: Path) -> None:
    text = module.read_text(encoding="utf-8")
    missing = {key for key in SAID.findall(text) if key not in files.current().words}
    assert not missing
    name = module.relative_to(files.STATIC).as_posix()
    for needed in files.current().needed_by(name):
        assert (files.STATIC / needed).is_file(), needed
    for target in files.imports_of(text):
        assert target in (*files.LIBRARIES, "gouache/words") or (module.parent / target).resolve().is_file(), (
            f"{name} imports {target}"
        )
    assert len(text.splitlines()) <= 500


def test_the_policy_runs_this_servers_modules_and_the_import_map_alone(make_client: MakeClient) -> None:
    answer = make_client(page=True).get("/", headers={"Accept-Language": "zh-CN,zh;q=0.9,en;q=0.8"})
    policy = answer.headers["content-security-policy"]
    assert "unsafe" not in policy
    assert '<html lang="zh"' in answer.text
    scripts = re.findall(r"<script([^>]*)>(.*?)</script>", answer.text, re.DOTALL)
    inline = [body for attributes, body in scripts if body and "application/json" not in attributes]
    assert len(inline) == 1
    assert f"script-src 'self' '{files.digest(inline[0])}'" in policy
    for address in json.loads(inline[0])["imports"].values():
        assert make_client(page=True).get(address).status_code == 200


@pytest.mark.parametrize("view", VIEWS)
def test_every_view_has_an_address_and_its_modules_are_fetched_at_once(make_client: MakeClient, view: str) -> None:
    client = make_client(page=True)
    answer = client.get(f"/{view}/some/part")
    preloads = re.findall(r'modulepreload" href="([^"]+)"', answer.text)
    assert any(address.endswith(f"/views/{view}/{view}.js") for address in preloads)
    for address in preloads:
        found = client.get(address)
        assert found.headers["content-type"].startswith("text/javascript")
        assert "immutable" in found.headers["cache-control"]


def test_what_is_not_the_pages_is_not_served(make_client: MakeClient) -> None:
    client = make_client(page=True)
    version = files.current().version
    for name in (
        "../routes.py",
        "..%2froutes.py",
        "%2e%2e/files.py",
        "app/none.js",
        "/etc/passwd",
        "app/words.json",
        "app",
    ):
        answer = client.get(f"/page/{version}/{name}")
        assert answer.status_code == 404, name
        assert "src/" not in answer.text


def test_an_older_version_gets_the_newest_file_and_does_not_keep_it(make_client: MakeClient) -> None:
    assert make_client(page=True).get("/page/0123456789ab/app/main.js").headers["cache-control"] == "no-cache"


def test_state_is_kept_for_its_user_and_bounded(make_client: MakeClient) -> None:
    client = make_client(page=True)
    assert client.put("/v1/page/state/paint", json={"prompt": "</script><b>"}).status_code == 204
    assert client.get("/v1/page").json()["state"]["paint"] == {"prompt": "</script><b>"}
    assert "</script><b>" not in client.get("/").text
    assert client.put("/v1/page/state/paint", content="[1]").status_code == 422
    assert client.put("/v1/page/state/paint", content="{").status_code == 422
    assert client.put("/v1/page/state/paint", json={"prompt": "x" * STATE_BYTES}).status_code == 422
    assert client.put("/v1/page/state/Paint", json={}).status_code == 422


def test_libraries_are_those_that_the_notice_names() -> None:
    notice = (ROOT / "NOTICE").read_text(encoding="utf-8")
    named = dict(re.findall(r"^\| (\S+) \| .* \| ([0-9a-f]{64}) \|$", notice, re.MULTILINE))
    there = (files.STATIC / "vendor").iterdir()
    assert named == {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in there}


def test_the_settings_name_every_library_as_the_notice_does(make_client: MakeClient) -> None:
    notice = (ROOT / "NOTICE").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\S+) \| (\S+) \(.*?\) \| (\S+) \| (.+?) \| [0-9a-f]{64} \|$", notice, re.MULTILINE)
    told = make_client(page=True).get("/v1/page/about").json()
    assert told["free"] > 0
    assert (told["watermark"], told["safety"]) == (False, "off")
    named = {(one["file"], one["name"].split("/hooks")[0], one["version"], one["licence"]) for one in told["libraries"]}
    assert named == set(rows)


def test_a_studio_without_a_page_serves_none(make_client: MakeClient) -> None:
    client = make_client(page=False)
    assert client.get("/").status_code == 404
    assert client.get("/v1/page").status_code == 200
