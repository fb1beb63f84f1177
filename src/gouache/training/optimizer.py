"""The optimizers by name, decay groups by tag, and the course of the learning rate in images seen."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gouache.errors import MissingDependency
from gouache.training.loop_config import OptimizerConfig, OptimizerName

Groups = list[dict[str, Any]]

PACKAGES: Mapping[OptimizerName, str] = {
    "adamw8bit": "bitsandbytes",
    "prodigy": "prodigyopt",
    "schedule_free": "schedulefree",
}
"""What an optimizer needs beside torch."""


def decay_groups(network: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Sort the trainable parameters by tag: `decay` for matrices and kernels, `no_decay` for the rest.

    Biases, gains of norms and embeddings of positions are vectors of scale or offset: decay would pull them to a
    value that means something (zero gain), not to a simpler network.
    """
    groups: dict[str, list[nn.Parameter]] = {"decay": [], "no_decay": []}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            tag = "decay" if parameter.ndim >= 2 and "embed" not in name else "no_decay"
            groups[tag].append(parameter)
    return groups


def check_optimizer(config: OptimizerConfig) -> None:
    """Refuse an optimizer whose package is not installed.

    Raises:
        MissingDependency: names it.
    """
    package = PACKAGES.get(config.name)
    if package is not None and importlib.util.find_spec(package) is None:
        raise MissingDependency(
            "optimizer.name",
            given=config.name,
            expected=f"the package {package}",
            cure=f"pip install {package}, or gouache[optimizers], which brings all of them.",
        )


RATE_FACTOR = "rate_factor"
"""Of a group of parameters, beside its `lr`: what the run's learning rate is multiplied by there."""


def make_optimizer(
    network: nn.Module, config: OptimizerConfig, factors: Mapping[nn.Parameter, float] | None = None
) -> torch.optim.Optimizer:
    """The optimizer that the config names, over the network's trainable parameters.

    Args:
        network: what is trained.
        config: name and settings.
        factors: on the learning rate, of parameters that have a rate of their own; none = 1 for all.

    Raises:
        MissingDependency: its package is not installed.
    """
    check_optimizer(config)
    groups = decay_groups(network)
    parameters: Groups = []
    for tag, decay in (("decay", config.weight_decay), ("no_decay", 0.0)):
        by_factor: dict[float, list[nn.Parameter]] = {}
        for parameter in groups[tag]:
            by_factor.setdefault((factors or {}).get(parameter, 1.0), []).append(parameter)
        parameters += [
            {"params": own, "weight_decay": decay, RATE_FACTOR: factor} for factor, own in sorted(by_factor.items())
        ]
    # No group is empty: Prodigy and Schedule-Free look at their first.
    return OPTIMIZERS[config.name](parameters, config)


def _adamw(parameters: Groups, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Loshchilov & Hutter 2019, algorithm 2."""
    fused = all(p.is_floating_point() for group in parameters for p in group["params"])
    return torch.optim.AdamW(parameters, lr=config.learning_rate, betas=config.betas, eps=config.epsilon, fused=fused)


def _adamw8bit(parameters: Groups, config: OptimizerConfig) -> torch.optim.Optimizer:
    """The same with block-wise quantized moments (Dettmers et al. 2022, arXiv:2110.02861)."""
    from bitsandbytes.optim import AdamW8bit

    optimizer: torch.optim.Optimizer = AdamW8bit(
        parameters, lr=config.learning_rate, betas=config.betas, eps=config.epsilon
    )
    return optimizer


def _adafactor(parameters: Groups, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Shazeer & Stern 2018 (arXiv:1804.04235), algorithm 4 without momentum, decay apart from the gradient."""
    return torch.optim.Adafactor(parameters, lr=config.learning_rate)


def _prodigy(parameters: Groups, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Mishchenko & Defazio 2024 (arXiv:2306.06101), with the bias correction that its authors advise for diffusion."""
    from prodigyopt import Prodigy

    optimizer: torch.optim.Optimizer = Prodigy(
        parameters,
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.epsilon,
        use_bias_correction=True,
        # Steps of a warm-up are short for another reason than a rate that was guessed too low.
        safeguard_warmup=config.warmup_images > 0,
    )
    return optimizer


def _schedule_free(parameters: Groups, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Defazio et al. 2024 (arXiv:2405.15682), algorithm 1; the warm-up is `learning_rate`'s, as of all others."""
    from schedulefree import AdamWScheduleFree

    optimizer: torch.optim.Optimizer = AdamWScheduleFree(
        parameters, lr=config.learning_rate, betas=config.betas, eps=config.epsilon
    )
    optimizer.train()  # type: ignore[attr-defined]
    return optimizer


OPTIMIZERS: Mapping[OptimizerName, Callable[[Groups, OptimizerConfig], torch.optim.Optimizer]] = {
    "adamw": _adamw,
    "adamw8bit": _adamw8bit,
    "adafactor": _adafactor,
    "prodigy": _prodigy,
    "schedule_free": _schedule_free,
}


@torch.no_grad()
def own_average(network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The average x that Schedule-Free keeps of the weights; new tensors, by name.

    Gradients are taken at y = (1 - beta) z + beta x (Defazio et al. 2024, equation 3), and the network holds y. The
    package can turn the network's own weights into x and back, which rounds: a run would depend on when it was judged.
    """
    weights = dict(network.state_dict())
    for name, y in network.named_parameters(remove_duplicate=False):
        beta = optimizer.param_groups[0]["betas"][0]
        if "z" in optimizer.state.get(y, {}):
            weights[name] = y.lerp(optimizer.state[y]["z"], 1 - 1 / beta)
    return weights


def rate_found(config: OptimizerConfig, optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """For the log: the rate that Prodigy has come to; nothing of the others."""
    return {"rate_found": float(optimizer.param_groups[0]["d"])} if config.name == "prodigy" else {}


def learning_rate(config: OptimizerConfig, images_seen: int, done: float) -> float:
    """The learning rate: a linear warm-up, then the configured course, then the cooldown.

    `inverse_sqrt` is Karras et al. 2024, equation 67; `cosine` is Loshchilov & Hutter 2017, equation 5.

    Args:
        config: of the optimizer.
        images_seen: images trained on so far.
        done: share of the run that is over, by images or by time, 0..1.
    """
    rate = config.learning_rate
    if config.warmup_images > 0:
        rate *= min(1.0, (images_seen + 1) / config.warmup_images)
    if config.schedule == "linear":
        rate *= config.final_fraction + (1 - config.final_fraction) * (1 - done)
    elif config.schedule == "cosine":
        rate *= config.final_fraction + (1 - config.final_fraction) * 0.5 * (1 + math.cos(math.pi * done))
    elif config.schedule == "inverse_sqrt":
        rate /= math.sqrt(max(images_seen / config.decay_images, 1.0))
    if config.cooldown > 0:
        rate *= min(1.0, (1 - done) / config.cooldown)
    return rate
