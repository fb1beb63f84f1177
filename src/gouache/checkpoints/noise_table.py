"""The noise schedule that a single file records: the buffers and marks that its training code left in it."""

from __future__ import annotations

import torch
from torch import Tensor

from gouache.checkpoints.formats.header import Header, open_source
from gouache.diffusion.noise_schedule import make_noise_schedule
from gouache.errors import CorruptCheckpoint, IncompatibleCheckpoint, InvalidInput
from gouache.models.configs import NoiseScheduleConfig
from gouache.models.denoiser import schedule_from

ALPHAS_CUMPROD = "alphas_cumprod"
SIGMAS = "denoiser.sigmas"
ZERO_TERMINAL_SNR = "ztsnr"
CONTINUOUS_EDM = "edm_vpred.sigma_max"


def recorded_schedule(header: Header) -> NoiseScheduleConfig:
    """The noise schedule that a file was trained on: its table if it has one, else Stable Diffusion's.

    A table that is Stable Diffusion's to the precision it is stored in gives that name, so that a table which somebody
    rounded to half precision does no harm. Any other is used as it stands.

    Raises:
        CorruptCheckpoint: the table is no noise schedule.
        IncompatibleCheckpoint: the network was trained on continuous noise levels.
    """
    if CONTINUOUS_EDM in header.tensors:
        raise IncompatibleCheckpoint(
            str(header.path),
            given=f"a network for continuous noise levels (tensor {CONTINUOUS_EDM!r})",
            expected="one for the steps of a noise schedule",
            cure="gouache can't paint with EDM networks such as CosXL.",
        )
    marked = ZERO_TERMINAL_SNR in header.tensors
    table = _table(header)
    if table is None:
        return NoiseScheduleConfig(zero_terminal_snr=marked)
    standard = NoiseScheduleConfig(num_timesteps=len(table))
    rescaled = standard.model_copy(update={"zero_terminal_snr": True})
    if _is(table, rescaled):
        return rescaled
    if _is(table, standard):
        return rescaled if marked else standard
    return _as_it_stands(table, str(header.path))


def records_nothing_else(schedule: NoiseScheduleConfig) -> bool:
    """Whether a single file tells this schedule without a table: Stable Diffusion's, rescaled or not."""
    standard = NoiseScheduleConfig(zero_terminal_snr=schedule.zero_terminal_snr)
    made, wanted = schedule_from(schedule).alphas_cumprod, schedule_from(standard).alphas_cumprod
    return not schedule.continuous and torch.equal(made, wanted)


def table_to_record(schedule: NoiseScheduleConfig, where: str) -> Tensor:
    """A schedule's table for a single file. [T] fp32

    Raises:
        IncompatibleCheckpoint: it is no variance-preserving table.
    """
    made = schedule_from(schedule)
    if made.path != "vp" or schedule.continuous:
        raise IncompatibleCheckpoint(
            where,
            given=f"a network on the noise schedule {schedule.name}",
            expected="a variance-preserving one, which a single file can record",
            cure="Use --to gouache.",
        )
    return made.alphas_cumprod.float()


def _table(header: Header) -> Tensor | None:
    """[T], from the least noise to the most, in the file's precision."""
    for name in (ALPHAS_CUMPROD, SIGMAS):
        if name in header.tensors:
            values = open_source(header.path).read(name, mapped=False)
            break
    else:
        return None
    if values.ndim != 1 or len(values) < 2 or not values.is_floating_point() or not bool(values.isfinite().all()):
        raise CorruptCheckpoint(
            str(header.path), given=f"{name!r} of shape {tuple(values.shape)}", expected="a row of finite numbers"
        )
    return (1 / (1 + values.double() ** 2)).to(values.dtype).sort(descending=True)[0] if name == SIGMAS else values


def _is(table: Tensor, config: NoiseScheduleConfig) -> bool:
    """Equal to a few units in the last place of the precision that the table is stored in; fp32 sums drift by more."""
    wanted = schedule_from(config).alphas_cumprod
    precision = max(4 * torch.finfo(table.dtype).eps, 1e-4)
    return bool(torch.allclose(table.double(), wanted, rtol=precision, atol=1e-7))


def _as_it_stands(table: Tensor, where: str) -> NoiseScheduleConfig:
    values = tuple(table.double().tolist())
    try:
        make_noise_schedule("table", num_timesteps=len(values), alphas_cumprod=values)
    except InvalidInput as error:
        raise CorruptCheckpoint(
            where, given=f"a table of the noise schedule that is none: {error}", expected="values falling from 1 to 0"
        ) from error
    return NoiseScheduleConfig(name="table", num_timesteps=len(values), alphas_cumprod=values)
