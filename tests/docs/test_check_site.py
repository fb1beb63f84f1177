"""What `make docs` calls a dead link, on small sites."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "docs" / "check_site.py"


def page(body: str, head: str = "<title>t</title>") -> str:
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{body}</body></html>'


def check(folder: Path) -> tuple[int, str]:
    done = subprocess.run([sys.executable, str(SCRIPT), str(folder)], capture_output=True, text=True, check=False)
    assert not done.stderr
    return done.returncode, done.stdout


def test_a_sound_site_has_no_faults(tmp_path: Path) -> None:
    (tmp_path / "zh").mkdir()
    (tmp_path / "style.css").write_text("@import 'more.css'; p { background: url(data:image/png;base64,AA) }")
    (tmp_path / "more.css").write_text("")
    (tmp_path / "a picture.png").write_bytes(b"")
    (tmp_path / "index.html").write_text(
        page(
            '<h1 id="采样器">x</h1><a href="zh/">zh</a><a href="zh/index.html#there"></a>'
            '<a href="#%E9%87%87%E6%A0%B7%E5%99%A8"></a>'
            '<a href="https://example.org/x">out</a><a href="mailto:a@b"></a><img src="a%20picture.png" alt="">',
            '<title>t</title><link rel="stylesheet" href="style.css?digest=1">',
        ),
        encoding="utf-8",
    )
    (tmp_path / "zh" / "index.html").write_text(page('<p id="there"></p><a href="../index.html#top"></a>'))
    assert check(tmp_path) == (0, "2 pages, 8 links, 0 faults\n")


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ('<a href="gone.html"></a>', "gone.html: no such file"),
        ('<a href="#gone"></a>', "#gone: no such place on that page"),
        ('<img src="gone.png">', "gone.png: no such file"),
        ('<img srcset="gone.png 2x">', "gone.png: no such file"),
        ('<a href="../../x.html"></a>', "../../x.html: leads out of the site"),
        ('<a href="/en/index.html"></a>', "/en/index.html: begins at the top of the server"),
        ('<script src="https://cdn.example/x.js"></script>', "would be loaded from another host"),
        ('<img src="//cdn.example/x.png">', "would be loaded from another host"),
        ("<style>p { background: url(gone.png) }</style>", "gone.png: no such file"),
        ('<p style="background: url(https://cdn.example/x.png)"></p>', "would be loaded from another host"),
    ],
)
def test_faults_are_found(tmp_path: Path, body: str, fault: str) -> None:
    (tmp_path / "index.html").write_text(page(body))
    code, said = check(tmp_path)
    assert code == 1
    assert f"index.html: {fault}" in said or (fault in said and "another host" in fault)
    assert "1 faults" in said


def test_style_sheets_titles_and_an_empty_folder(tmp_path: Path) -> None:
    code, said = check(tmp_path)
    assert code == 1
    assert "no pages" in said
    (tmp_path / "style.css").write_text("@import url('gone.css');")
    (tmp_path / "index.html").write_text("<html><p>x</p></html>")
    code, said = check(tmp_path)
    assert code == 1
    assert said.count("\n") == 4
    assert "style.css: gone.css: no such file" in said
    assert "index.html: no title" in said
    assert "index.html: no language" in said
