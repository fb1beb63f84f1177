"""The optimizer against torch's own arithmetic, and the course of the learning rate."""

from __future__ import annotations

import math
import sys
from typing import get_args

import pytest
import torch
from torch import nn

from gouache.errors import ConfigError, MissingDependency
from gouache.training.loop_config import OptimizerConfig, OptimizerName
from gouache.training.optimizer import PACKAGES, decay_groups, learning_rate, make_optimizer, own_average
from gouache.training.stage_tables import DenoiserStage, LoraStage


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.norm = nn.LayerNorm(2)
        self.position_embedding = nn.Parameter(torch.ones(4, 2))


def test_only_matrices_and_kernels_decay() -> None:
    network = Small()
    groups = decay_groups(network)
    assert [id(p) for p in groups["decay"]] == [id(network.linear.weight)]
    assert len(groups["no_decay"]) == 4


def test_one_step_is_adamw_written_out() -> None:
    network = Small()
    config = OptimizerConfig(learning_rate=0.1, weight_decay=0.3, betas=(0.9, 0.99), epsilon=1e-8)
    before = {name: value.clone() for name, value in network.named_parameters()}
    optimizer = make_optimizer(network, config)
    for parameter in network.parameters():
        parameter.grad = torch.full_like(parameter, 0.5)
    optimizer.step()
    for name, after in network.named_parameters():
        # After one step both moments are unbiased to g and g^2: the update is the learning rate times the sign.
        decay = 0.3 if name == "linear.weight" else 0.0
        wanted = before[name] * (1 - 0.1 * decay) - 0.1 * 0.5 / (0.5 + 1e-8)
        assert torch.allclose(after, wanted, atol=1e-6), name


@pytest.mark.parametrize(
    ("schedule", "seen", "wanted"),
    [
        ("constant", 500, 1.0),
        ("linear", 500, 0.1 + 0.9 * 0.5),
        ("linear", 1000, 0.1),
        ("cosine", 250, 0.1 + 0.45 * (1 + math.cos(math.pi / 4))),
        ("cosine", 1000, 0.1),
        ("inverse_sqrt", 100, 1.0),
        ("inverse_sqrt", 800, 0.5),
    ],
)
def test_the_course_of_the_learning_rate(schedule: str, seen: int, wanted: float) -> None:
    config = OptimizerConfig.from_dict(
        {"learning_rate": 1.0, "warmup_images": 50, "schedule": schedule, "decay_images": 200, "final_fraction": 0.1}
    )
    assert learning_rate(config, seen, seen / 1000) == pytest.approx(wanted)


def test_the_warm_up_is_linear() -> None:
    config = OptimizerConfig(learning_rate=2.0, warmup_images=100)
    assert [learning_rate(config, seen, seen / 1000) for seen in (0, 49, 99, 500)] == pytest.approx(
        [0.02, 1.0, 2.0, 2.0]
    )


@pytest.mark.parametrize("name", ["adamw8bit", "prodigy", "schedule_free"])
def test_an_optimizer_of_a_package_that_is_missing_names_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = OptimizerConfig.from_dict({"name": name})
    monkeypatch.setitem(sys.modules, PACKAGES[config.name], None)
    with pytest.raises(MissingDependency, match=rf"given {name}.*pip install {PACKAGES[config.name]}"):
        make_optimizer(Small(), config)


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"name": "prodigy", "learning_rate": 1e-4}, r"factor from 0\.1 to 10"),
        ({"name": "schedule_free", "schedule": "cosine"}, "constant"),
        ({"name": "schedule_free", "cooldown": 0.3}, "cooldown = 0"),
        ({"name": "schedule_free", "betas": [0.0, 0.99]}, "above 0"),
        ({"name": "adafactor", "betas": [0.9, 0.999]}, "adafactor"),
        ({"betas": [0.9, 1.0]}, "below 1"),
        ({"name": "adam"}, "schedule_free"),
    ],
)
def test_what_an_optimizer_would_ignore_or_misunderstand_is_refused(values: dict[str, object], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        OptimizerConfig.from_dict(values)


@pytest.mark.parametrize(
    ("name", "fresh", "tuning", "low_rank"),
    [
        ("adamw", 3e-4, 1e-4, 1e-3),
        ("adafactor", 1e-2, 3e-3, 1e-1),
        ("prodigy", 1.0, 1.0, 1.0),
        ("schedule_free", 1e-3, 3e-4, 3e-3),
    ],
)
def test_every_optimizer_has_a_rate_of_its_own(name: str, fresh: float, tuning: float, low_rank: float) -> None:
    assert OptimizerConfig.from_dict({"name": name}).learning_rate == fresh
    table = DenoiserStage.from_dict({"start": "somewhere", "optimizer": {"name": name}})
    assert table.optimizer.learning_rate == tuning
    assert DenoiserStage.from_json(table.to_json()) == table
    lora = LoraStage.from_dict({"start": "somewhere", "optimizer": {"name": name}})
    assert lora.optimizer.learning_rate == low_rank


def quadratic(config: OptimizerConfig, steps: int) -> tuple[Small, torch.optim.Optimizer]:
    """A small network pulled towards zero by its squared length."""
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        network = Small()
    optimizer = make_optimizer(network, config)
    for _ in range(steps):
        optimizer.zero_grad()
        torch.stack([p.square().sum() for p in network.parameters()]).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return network, optimizer


@pytest.mark.parametrize("name", get_args(OptimizerName))
def test_every_optimizer_goes_downhill(name: OptimizerName) -> None:
    rate = {"prodigy": 1.0, "adafactor": 0.05}.get(name, 0.03)
    config = OptimizerConfig.from_dict({"name": name, "learning_rate": rate, "weight_decay": 0.0})
    networks = [quadratic(config, steps)[0] for steps in (0, 60)]
    before, after = (sum(float(p.detach().square().sum()) for p in network.parameters()) for network in networks)
    assert after < 0.5 * before


def test_schedule_frees_average_is_the_mean_of_its_iterates_and_leaves_the_weights_alone() -> None:
    """At a constant rate x is the plain mean of z_1..z_t (Defazio et al. 2024, equation 5 with c = 1 / t)."""
    config = OptimizerConfig(name="schedule_free", learning_rate=0.03, weight_decay=0.0)
    iterates = []
    for steps in range(1, 6):
        network, optimizer = quadratic(config, steps)
        iterates.append(optimizer.state[network.linear.weight]["z"].clone())
    before = network.linear.weight.detach().clone()
    average = own_average(network, optimizer)
    assert torch.allclose(average["linear.weight"], torch.stack(iterates).mean(0), atol=1e-6)
    assert torch.equal(network.linear.weight, before)
    assert average.keys() == network.state_dict().keys()
    optimizer.eval()  # type: ignore[attr-defined]  # the package's own way to x
    assert torch.allclose(average["linear.weight"], network.linear.weight, atol=1e-6)


@pytest.mark.parametrize(("done", "wanted"), [(0.5, 2.0), (0.8, 2.0), (0.9, 1.0), (1.0, 0.0)])
def test_the_rate_cools_down_over_the_last_share_of_the_run(done: float, wanted: float) -> None:
    config = OptimizerConfig(learning_rate=2.0, warmup_images=0, cooldown=0.2)
    assert learning_rate(config, 12_345, done) == pytest.approx(wanted)
