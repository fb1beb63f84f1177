"""The process of one training run: runs the plan's commands one after the other, each `python -m gouache ...`.

It belongs to nobody: the server that started it may die. A lock on a file in the run's folder, which the commands
inherit, says that it lives; `state.json` says how far it is. SIGTERM is handed to the command, which then leaves a
checkpoint.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

import psutil

from gouache.checkpoints.hub import models_folder
from gouache.errors import TrainingError
from gouache.files import write_bytes
from gouache.serve.training.plan import (
    LOCK,
    OUTPUT,
    PLAN,
    STATE,
    STOP,
    RunState,
    TrainingPlan,
    commands,
    read_state,
    write_text,
)

LOCK_TRIES = 50
WINDOWS = sys.platform == "win32"
DETACHED = "--detached"
STOPPED_CODES = (130, -signal.SIGTERM, -signal.SIGINT)
TAIL = 64_000


def take_lock(folder: Path) -> int | None:
    """The lock of a run as an open file, or None if its process lives."""
    file = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        _lock(file)
    except OSError:
        os.close(file)
        return None
    return file


def _lock(file: int) -> None:
    """Lock an open file or raise OSError. Commands inherit it, which the package filelock does not offer."""
    try:
        import fcntl
    except ImportError:  # Windows, where nothing is inherited.
        import msvcrt

        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
    else:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def is_alive(folder: Path) -> bool:
    """Whether the run's process, or a command of it, lives."""
    file = take_lock(folder)
    if file is None:
        return True
    os.close(file)
    return False


def error_in(output: str, code: int) -> str:
    """What a command that failed said: gouache's own sentence, else the last line."""
    _, mark, said = f"\n{output}".rpartition("\ngouache: ")
    if mark:
        return said.strip()[:2000]
    lines = output.strip().splitlines()
    return f"{lines[-1][:500] if lines else 'no output'} (exit status {code})"


def parts_of_error(said: str) -> dict[str, str]:
    """The parts of gouache's own sentence, as `GouacheError.to_dict` has them; another text is the message alone."""
    found = re.fullmatch(r"(.+?): given (.*?), expected (.*?)\.(?: (.*))?", said, re.DOTALL)
    where, given, expected, cure = (found[1], found[2], found[3], found[4] or "") if found else ("", "", "", "")
    values = {"where": where, "given": given, "expected": expected, "cure": cure}
    return {"kind": TrainingError.__name__, "message": said, **values}


def lora_place(name: str) -> Path:
    """Where the LoRA of a run goes, so that prompts find it."""
    return models_folder() / "lora" / f"{name}.safetensors"


class _Session:
    """One life of the process."""

    def __init__(self, folder: Path, models: Path, source: Path) -> None:
        self.folder, self.models, self.source = folder, models, source
        self.plan = TrainingPlan.from_json((folder / PLAN).read_text(encoding="utf-8"), where=str(folder / PLAN))
        self.child: subprocess.Popen[bytes] | None = None
        self.stopping = False
        before = read_state(folder)
        self.state = RunState(
            pid=os.getpid(), trained=before.trained, attempts=before.attempts + 1, finished=before.finished
        )
        self.is_cut_short = False
        self._write()

    def stop(self, _signal: int, _frame: FrameType | None) -> None:
        self.stopping = True
        if self.child is not None and self.child.poll() is None:
            self.child.send_signal(signal.SIGTERM)

    def run(self, lock: int) -> None:
        for step, arguments in commands(self.plan, self.folder, self.source).items():
            if step == "data" and (self.folder / "pictures" / "manifest.json").is_file():
                continue
            is_training, mark = step in self.plan.parts, f"{step} {self.plan.part_minutes:g}"
            if is_training and (self.is_cut_short or mark in self.state.finished):
                continue
            if step == "pack":
                shutil.rmtree(self.folder / "model", ignore_errors=True)
            code = self._command(step, arguments, lock, is_training=is_training)
            if code != 0 and not (is_training and self._is_worth_packing(code)):
                self._fail(code)
                return
            if is_training and code == 0:
                self._change(finished=(*self.state.finished, mark))
        if self.plan.stage == "lora":
            place = lora_place(self.plan.name)
            place.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(place, (self.folder / "lora" / "last.safetensors").read_bytes(), force=True)
        elif self.plan.is_packed:
            self._publish()
        self._end("stopped" if (self.folder / STOP).exists() else "done")

    def _is_worth_packing(self, code: int) -> bool:
        """A training that its user stopped is used as it stands, if it has come to anything."""
        wanted = code in STOPPED_CODES and (self.folder / STOP).exists()
        if not wanted or not any((self.folder / part / "last.safetensors").is_file() for part in self.plan.parts):
            return False
        self.stopping, self.is_cut_short = False, True
        return True

    def _command(self, step: str, arguments: list[str], lock: int, *, is_training: bool) -> int:
        if self.stopping:
            return STOPPED_CODES[0]
        log = self.folder / step / "log.jsonl"
        before = log.stat().st_size if log.is_file() else 0
        with (self.folder / OUTPUT).open("wb") as output:
            self.child = subprocess.Popen(
                [sys.executable, "-m", "gouache", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=() if WINDOWS else (lock,),
            )
        _be_nice(self.child.pid)
        self._change(step=step, child=self.child.pid, since=0.0)
        if self.stopping:
            self.child.send_signal(signal.SIGTERM)
        while (code := self._wait(self.child)) is None:
            # Loading and encoding are no training: the clock starts with the first line of figures.
            if is_training and not self.state.since and log.is_file() and log.stat().st_size > before:
                self._change(since=time.time())
        if self.state.since:
            self._change(trained=self.state.trained + time.time() - self.state.since, since=0.0)
        return code

    def _wait(self, child: subprocess.Popen[bytes]) -> int | None:
        try:
            return child.wait(0.5)
        except subprocess.TimeoutExpired:
            return None

    def _fail(self, code: int) -> None:
        if self.stopping or code in STOPPED_CODES:
            # Stopped by its user; or by the end of the server or machine: then it goes on later.
            self._end("stopped" if (self.folder / STOP).exists() else "")
            return
        output = (self.folder / OUTPUT).read_bytes()[-TAIL:].decode("utf-8", "replace")
        self._end("failed", error_in(output.replace("\r", "\n"), code))

    def _publish(self) -> None:
        """Put the packed model where models are looked for; an older one of this run leaves."""
        place = self.models / self.plan.name
        place.parent.mkdir(parents=True, exist_ok=True)
        if place.exists():
            old = self.folder / "model.old"
            shutil.rmtree(old, ignore_errors=True)
            place.rename(old)
            shutil.rmtree(old, ignore_errors=True)
        (self.folder / "model").rename(place)

    def _end(self, result: str, error: str = "") -> None:
        self._change(result=result, error=error, ended=time.time(), child=0, attempts=0)

    def _change(self, **values: object) -> None:
        self.state = RunState.from_dict({**self.state.model_dump(), **values})
        self._write()

    def _write(self) -> None:
        write_text(self.folder / STATE, self.state.to_json())


def _be_nice(process: int) -> None:
    """Painting goes before training where both want the same processors."""
    with contextlib.suppress(psutil.Error):
        psutil.Process(process).nice(psutil.BELOW_NORMAL_PRIORITY_CLASS if WINDOWS else 10)


def _detach(arguments: list[str]) -> None:
    """Start this program once more, without parent or terminal, and return as soon as its session has begun."""
    flags = subprocess.DETACHED_PROCESS | subprocess.CREATE_NEW_PROCESS_GROUP if WINDOWS else 0  # type: ignore[attr-defined,unused-ignore]
    child = subprocess.Popen(
        [sys.executable, "-m", "gouache.serve.training.run_process", DETACHED, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        creationflags=flags,
    )
    assert child.stdout is not None, "it was asked for as a pipe"
    child.stdout.read()  # Ends when the session closes its side, or when it can't begin.


def main(folder: Path, models: Path, source: Path) -> None:
    """Run a plan to its end; the standard output is closed as soon as that has begun.

    Args:
        folder: of the run.
        models: where a finished model goes.
        source: the folder of pictures.
    """
    for _ in range(LOCK_TRIES):
        lock = take_lock(folder)
        if lock is not None:
            break
        time.sleep(0.02)  # Somebody only looks whether the run lives.
    else:
        return
    session = _Session(folder, models, source)
    with open(os.devnull, "wb") as nowhere:  # noqa: PTH123
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, session.stop)
    session.run(lock)


if __name__ == "__main__":
    if sys.argv[1] == DETACHED:
        main(*(Path(argument) for argument in sys.argv[2:5]))
    else:
        _detach(sys.argv[1:4])
