"""The optimizer against torch's own arithmetic, and the course of the learning rate."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from gouache.errors import MissingDependency
from gouache.training.loop_config import OptimizerConfig
from gouache.training.optimizer import decay_groups, learning_rate, make_optimizer


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


def test_eight_bit_moments_need_their_package() -> None:
    with pytest.raises(MissingDependency, match="bitsandbytes"):
        make_optimizer(Small(), OptimizerConfig(eight_bit=True))


@pytest.mark.parametrize(("done", "wanted"), [(0.5, 2.0), (0.8, 2.0), (0.9, 1.0), (1.0, 0.0)])
def test_the_rate_cools_down_over_the_last_share_of_the_run(done: float, wanted: float) -> None:
    config = OptimizerConfig(learning_rate=2.0, warmup_images=0, cooldown=0.2)
    assert learning_rate(config, 12_345, done) == pytest.approx(wanted)
