"""Weights, averages and moments sharded over the processes of a run (FSDP2, torch's `fully_shard`).

Every process keeps one slice of each tensor, along its first dimension. A unit's weights are gathered when its forward
or backward pass begins, and released when it ends; its gradients are averaged and sharded again. What is elementwise
(AdamW, the averages) works on the slices as they are. Checkpoints hold whole tensors, so that they don't depend
on how many processes wrote them: `gathered` and `placed` lead there and back.

The launcher's flag is accelerate's (`--use_fsdp --fsdp_version 2`). Sharding is done here, since accelerate's own way
begins only on a GPU (`AcceleratorState` of accelerate 1.15), and this one is the same on every device.

Rajbhandari et al. 2020, "ZeRO" (arXiv 1910.02054), section 5 (stage 3); Zhao et al. 2023, "PyTorch FSDP"
(arXiv 2304.11277), section 3.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gouache.errors import TrainingError
from gouache.models.prior import PriorLayer
from gouache.models.quantizer import Block
from gouache.nn.attention import TransformerBlock
from gouache.nn.resnet import Downsample, ResnetBlock, Upsample
from gouache.training.loop_config import StageConfig
from gouache.training.stage import Stage

if TYPE_CHECKING:
    from accelerate import Accelerator

UNITS = (ResnetBlock, TransformerBlock, Downsample, Upsample, PriorLayer, Block)
"""What is gathered at once. Everything else is one unit that stays gathered for the whole step."""


def sharding_asked() -> bool:
    """Whether the launcher asks for sharded weights."""
    return _set("ACCELERATE_USE_FSDP")


def check_sharding(config: StageConfig) -> None:
    """Refuse settings that sharded weights don't support, instead of ignoring them.

    Raises:
        TrainingError: names the flag or key, and what to do instead.
    """
    version = os.environ.get("FSDP_VERSION", "1")
    for wrong, given, expected, cure in (
        (version != "2", f"version {version}", "version 2", "Launch with --fsdp_version 2."),
        (_set("FSDP_OFFLOAD_PARAMS"), "offloading", "weights on the device", "Launch without --fsdp_offload_params."),
        (
            _set("FSDP_ACTIVATION_CHECKPOINTING"),
            "activation checkpointing by accelerate",
            "gouache's own",
            "Launch without --fsdp_activation_checkpointing; set gradient_checkpointing in the config.",
        ),
        (config.loop.precision == "fp16", "precision fp16", "bf16 or fp32", "Set loop.precision."),
        (config.loop.compile, "compile", "a network that is not compiled", "Set loop.compile = false."),
        (
            config.optimizer.name != "adamw",
            f"optimizer {config.optimizer.name}",
            "adamw, whose moments are sharded too",
            "Leave out optimizer.name.",
        ),
    ):
        if wrong:
            raise TrainingError("FSDP", given=given, expected=expected, cure=cure)


def _set(flag: str) -> bool:
    return os.environ.get(flag, "false").lower() in ("true", "1", "yes")


def shard(stage: Stage[Any], accelerator: Accelerator) -> None:
    """Shard the stage's weights over all processes, in place; frozen sub-modules stay whole.

    Every process must hold the same weights before. Its optimizer and averages are made afterwards.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(accelerator.device.type, (int(accelerator.num_processes),))
    used = {parameter for name in stage.frozen for parameter in stage.get_submodule(name).parameters()}
    for parameter in set(stage.parameters()) - used:
        parameter.data = parameter.data.contiguous()  # torch shards no channels-last kernels
    for unit in reversed([module for module in stage.modules() if isinstance(module, UNITS)]):  # inner ones first
        if used.isdisjoint(unit.parameters()):
            fully_shard(unit, mesh=mesh)
    # Frozen networks see every batch and have no gradients or moments: sharding would save little and cost a gather.
    fully_shard(stage, mesh=mesh, ignored_params=used)


def local(tensor: Tensor) -> Tensor:
    """This process's slice of a sharded tensor, sharing its memory; any other tensor as it is."""
    slice_: Tensor = tensor.to_local() if _is_sharded(tensor) else tensor  # type: ignore[attr-defined]
    return slice_


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor from all its slices: every process must call this. Any other tensor as it is."""
    full: Tensor = tensor.full_tensor() if _is_sharded(tensor) else tensor  # type: ignore[attr-defined]
    return full


def gathered(tensors: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """Whole tensors, gathered one after the other: every process must call this, those with `keep` get them.

    The gathered ones lie on the CPU, so that a device never holds more than one of them.
    """
    result = {}
    for name in sorted(tensors):  # in one order everywhere, or slices of different tensors would be put together
        full = whole(tensors[name].detach())
        if keep:
            result[name] = full.cpu() if _is_sharded(tensors[name]) else full
    return result


def placed(full: Tensor, like: Tensor) -> Tensor:
    """The whole tensor `full`, which every process has, sharded as `like` is; whole if that is."""
    if not _is_sharded(like):
        return full
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor), "only sharded tensors are cut"
    return distribute_tensor(full.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def _is_sharded(tensor: Tensor) -> bool:
    if not torch.distributed.is_available():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)
