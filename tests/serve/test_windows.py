"""The server and the command line can be imported where Unix's own modules and calls are missing, as on Windows."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "src" / "gouache"
UNIX = {"fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "readline", "syslog"}
BLOCKED = """
import os, signal, sys
# Libraries choose their own way by platform, which is still Linux: they come first.
import accelerate, fastapi, multiprocess, platformdirs, psutil, sqlalchemy, torch, uvicorn
for name in ("fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "readline", "syslog"):
    sys.modules[name] = None
for name in ("fork", "forkpty", "setsid", "nice", "getuid", "geteuid", "getpgid", "killpg", "statvfs"):
    if hasattr(os, name):
        delattr(os, name)
for name in ("SIGKILL", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGQUIT", "SIGPIPE"):
    if hasattr(signal, name):
        delattr(signal, name)
import importlib, pkgutil
import gouache.cli, gouache.serve
from gouache.cli.main import app
names = [m.name for p in (gouache.cli, gouache.serve) for m in pkgutil.walk_packages(p.__path__, p.__name__ + ".")]
for name in names:
    importlib.import_module(name)
print(len(names))
"""


def test_no_module_imports_at_its_top_what_only_unix_has() -> None:
    files = sorted(PACKAGE.rglob("*.py"))
    assert len(files) > 200
    for file in files:
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not UNIX & {name.partition(".")[0] for name in names}, f"{file}:{node.lineno}"


@pytest.mark.slow
def test_every_module_imports_without_what_only_unix_has() -> None:
    done = subprocess.run([sys.executable, "-c", BLOCKED], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > 60
