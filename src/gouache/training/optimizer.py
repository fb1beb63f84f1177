"""AdamW with decay groups by tag, and the course of the learning rate in images seen."""

from __future__ import annotations

import math

import torch
from torch import nn

from gouache.errors import MissingDependency
from gouache.training.loop_config import OptimizerConfig


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


def make_optimizer(network: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019, algorithm 2) over the network's trainable parameters.

    Raises:
        MissingDependency: 8-bit moments are asked for and bitsandbytes is not installed.
    """
    groups = decay_groups(network)
    parameters = [
        {"params": groups["decay"], "weight_decay": config.weight_decay},
        {"params": groups["no_decay"], "weight_decay": 0.0},
    ]
    if config.eight_bit:
        return _eight_bit(parameters, config)
    fused = all(p.is_floating_point() for group in groups.values() for p in group)
    return torch.optim.AdamW(parameters, lr=config.learning_rate, betas=config.betas, eps=config.epsilon, fused=fused)


def _eight_bit(parameters: list[dict[str, object]], config: OptimizerConfig) -> torch.optim.Optimizer:
    try:
        from bitsandbytes.optim import AdamW8bit  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise MissingDependency(
            "optimizer.eight_bit", given="true", expected="the package bitsandbytes", cure="pip install bitsandbytes"
        ) from error
    optimizer: torch.optim.Optimizer = AdamW8bit(
        parameters, lr=config.learning_rate, betas=config.betas, eps=config.epsilon
    )
    return optimizer


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
