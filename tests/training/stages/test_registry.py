"""A stage is one file, one line in the registry and a table of the config; nothing else knows stages by name."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from gouache.checkpoints.formats.header import read_header
from gouache.checkpoints.formats.safetensors import load_tensors, save_tensors
from gouache.errors import UnknownName
from gouache.training import config as configs
from gouache.training.config import TrainConfig, stage_tables
from gouache.training.inputs import RunInputs, initial_weights
from gouache.training.loop import TrainingProgress
from gouache.training.loop_config import StageConfig
from gouache.training.run import train_stage
from gouache.training.runlog import summarise
from gouache.training.stage import Batch, BatchNoise, Losses, Preparing, Ready, Stage
from gouache.training.stages.registry import STAGES
from gouache.training.state import checkpoints

SOURCE = Path(configs.__file__).parent


class ToyTable(StageConfig):
    """Table [toy]."""

    width: int = 3


class ToyTraining(Stage[nn.Linear]):
    """Learn to output zeros."""

    name = "toy"
    config: ToyTable

    def __init__(self, config: ToyTable) -> None:
        super().__init__()
        self.config, self.trained = config, nn.Linear(config.width, 1)

    @classmethod
    def from_run(cls, inputs: RunInputs) -> Iterator[Preparing | Ready]:
        table = inputs.table(cls.name, ToyTable)
        yield Preparing(1, 1)
        with initial_weights(table.loop.seed):
            yield Ready(cls(table), table)

    def batch(self, indices: Sequence[int]) -> Batch:
        return {"x": BatchNoise(self.config.loop.seed, indices).normal("x", (self.config.width,))}

    def forward(self, batch: Batch) -> Losses:
        return {"loss": self.trained(batch["x"]).square().mean()}

    def validate(self, network: nn.Linear) -> dict[str, float]:
        return {"score": float(network.weight.square().sum())}

    def export(self, network: nn.Linear, path: Path) -> None:
        save_tensors(path, network.state_dict(), {"component": self.name, "config": self.config.to_json()})


class WithToy(TrainConfig):
    """The config with one more table."""

    toy: ToyTable | None = None


TOML = """
[toy]
width = 2
[toy.loop]
batch_size = 8
images = 64
log_images = 16
[toy.optimizer]
learning_rate = 0.05
warmup_images = 0
"""


def trained(run: Path, images: int) -> tuple[list[Preparing | TrainingProgress], dict[str, Tensor]]:
    """Events of a session that is stopped at `images`, and the tensors of its last checkpoint."""
    events: list[Preparing | TrainingProgress] = []
    session = train_stage(
        "toy",
        run.parent / "config.toml",
        run.parent / "nothing",  # it makes its own examples
        run,
        stop=lambda: bool(events) and getattr(events[-1], "images_seen", 0) + 8 >= images,
    )
    for event in session:
        events.append(event)  # noqa: PERF402 - `stop` looks at what has come so far
    return events, load_tensors(checkpoints(run / "toy")[-1])


def test_one_file_and_one_line_make_a_stage_that_trains_resumes_and_exports(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(STAGES, "toy", ToyTraining)
    monkeypatch.setattr(configs, "TrainConfig", WithToy)
    (tmp_path / "config.toml").write_text(TOML)
    events, whole = trained(tmp_path / "whole", 64)
    assert events[0] == Preparing(1, 1)
    trained(tmp_path / "parts", 32)
    _, parts = trained(tmp_path / "parts", 64)
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    exported = tmp_path / "whole" / "toy" / "last.safetensors"
    assert read_header(exported).metadata["component"] == "toy"
    assert load_tensors(exported)["weight"].shape == (1, 2)
    assert [summary["stage"] for summary in summarise(tmp_path / "whole")] == ["toy"]


def test_every_registered_stage_has_its_name_and_its_table() -> None:
    assert tuple(STAGES) == stage_tables()
    assert all(name == stage.name for name, stage in STAGES.items())
    with pytest.raises(UnknownName, match="denoiser"):
        configs.read_config(Path("unread.toml"), "denoisr")


@pytest.mark.parametrize("name", ["pack.py", "run.py", "loop.py", "state.py", "runlog.py"])
def test_what_all_stages_share_names_none_of_them(name: str) -> None:
    tree = ast.parse((SOURCE / name).read_text(encoding="utf-8"))
    literals = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not literals & set(STAGES)
    assert not attributes & (set(STAGES) - {"clip"})  # numpy and torch clip numbers
    assert not {module for module in modules if module and module.startswith("gouache.training.stages.")} - {
        "gouache.training.stages.registry"
    }
