"""The log of a run: one JSON object a line, and TensorBoard beside it where that is installed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gouache.checkpoints.format import atomic_write


class RunLog:
    """Appends lines to `RUN/log.jsonl`; on resume, lines past the checkpoint are dropped, for they are run again."""

    def __init__(self, run: Path, images_seen: int) -> None:
        self.path = run / "log.jsonl"
        kept = [line for line in read_log(run) if line["images_seen"] <= images_seen]
        with atomic_write(self.path) as file:
            file.write("".join(json.dumps(line) + "\n" for line in kept).encode())
        self._board = _tensorboard(run)

    def write(self, images_seen: int, figures: dict[str, float]) -> None:
        """Add one line of figures."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"images_seen": images_seen, **figures}) + "\n")
        if self._board is not None:
            for name, value in figures.items():
                self._board.add_scalar(name, value, images_seen)

    def picture(self, images_seen: int, sheet: Any) -> None:
        """Show a sheet of pictures (uint8 [H,W,3]) in TensorBoard."""
        if self._board is not None:
            self._board.add_image("samples", sheet, images_seen, dataformats="HWC")

    def close(self) -> None:
        """Flush what is buffered."""
        if self._board is not None:
            self._board.close()


def read_log(run: Path) -> list[dict[str, float]]:
    """All whole lines of a run's log; a last line cut short by a crash is left out."""
    path = run / "log.jsonl"
    if not path.exists():
        return []
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines


def _tensorboard(run: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(run / "tensorboard")
