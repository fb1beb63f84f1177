"""The noise schedule that a single file records: the buffers and marks that its training code left in it.

EDM networks in SDXL's shape are marked by the tensors that ComfyUI and diffusers look for: CosXL's by the ends of its
levels, Playground 2.5's by mean and deviation of its latents.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gouache.checkpoints.formats.header import Header, open_source
from gouache.diffusion.noise_schedule import make_noise_schedule
from gouache.errors import CorruptCheckpoint, IncompatibleCheckpoint, InvalidInput
from gouache.models.configs import DenoiserConfig, NoiseScheduleConfig, VAEConfig
from gouache.models.denoiser import schedule_from
from gouache.models.scheduler_config import SchedulerConfig, number

ALPHAS_CUMPROD = "alphas_cumprod"
SIGMAS = "denoiser.sigmas"
ZERO_TERMINAL_SNR = "ztsnr"
EDM_SIGMA_MIN, EDM_SIGMA_MAX = "edm_vpred.sigma_min", "edm_vpred.sigma_max"
EDM_MEAN, EDM_STD = "edm_mean", "edm_std"


def recorded_schedule(header: Header) -> NoiseScheduleConfig:
    """The noise schedule that a file was trained on: its table if it has one, else Stable Diffusion's.

    A table that is Stable Diffusion's to the precision it is stored in gives that name, so that a table which somebody
    rounded to half precision does no harm. Any other is used as it stands.

    Raises:
        CorruptCheckpoint: the table is no noise schedule.
    """
    edm = recorded_scheduler(header)
    if edm is not None:
        ends = {key: number(edm, key) for key in ("sigma_min", "sigma_max", "sigma_data")}
        return NoiseScheduleConfig.from_dict({"name": "edm", **ends}, where=str(header.path))
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


def recorded_scheduler(header: Header) -> SchedulerConfig | None:
    """The scheduler of diffusers for an EDM network's file, with the levels that the file records; None for any other.

    Raises:
        CorruptCheckpoint: a recorded end is no noise level.
    """
    if EDM_MEAN in header.tensors:
        return SchedulerConfig(class_name="EDMDPMSolverMultistepScheduler")
    if EDM_SIGMA_MAX not in header.tensors:
        return None
    high = _row(header, EDM_SIGMA_MAX, 1)[0]
    low = _row(header, EDM_SIGMA_MIN, 1)[0] if EDM_SIGMA_MIN in header.tensors else 0.002
    if not 0 < low < high:
        raise CorruptCheckpoint(
            str(header.path), given=f"noise levels from {low} to {high}", expected="0 < sigma_min < sigma_max"
        )
    return SchedulerConfig(class_name="EDMEulerScheduler", sigma_min=low, sigma_max=high, sigma_data=1.0)


def recorded_latents(header: Header, config: VAEConfig) -> VAEConfig:
    """The autoencoder with the mean and deviation of the latents that the file records, if it does.

    Raises:
        CorruptCheckpoint: they are none, or not one for each channel.
    """
    if EDM_MEAN not in header.tensors or EDM_STD not in header.tensors:
        return config
    mean, std = (_row(header, name, config.latent_channels) for name in (EDM_MEAN, EDM_STD))
    if min(std) <= 0:
        raise CorruptCheckpoint(str(header.path), given=f"{EDM_STD} = {std}", expected="deviations above 0")
    return config.model_copy(update={"scale": tuple(1 / one for one in std), "shift": tuple(mean)})


def edm_marks(denoiser: DenoiserConfig, vae: VAEConfig, where: str) -> dict[str, Tensor]:
    """The tensors that mark an EDM network's single file.

    Raises:
        IncompatibleCheckpoint: it is neither CosXL's kind nor Playground 2.5's.
    """
    schedule, scale, shift = denoiser.schedule, vae.scale, vae.shift
    if denoiser.parameterization == "v" and schedule.sigma_data == 1.0:
        ends = {EDM_SIGMA_MIN: schedule.sigma_min, EDM_SIGMA_MAX: schedule.sigma_max}
        return {name: torch.tensor(end) for name, end in ends.items()}
    usual = NoiseScheduleConfig(name="edm", sigma_min=0.002, sigma_max=80.0, sigma_data=0.5)
    if denoiser.parameterization == "edm" and schedule == usual:
        scales = scale if isinstance(scale, tuple) else (scale,) * vae.latent_channels
        shifts = shift if isinstance(shift, tuple) else (shift,) * vae.latent_channels
        return {EDM_MEAN: torch.tensor(shifts), EDM_STD: 1 / torch.tensor(scales)}
    raise IncompatibleCheckpoint(
        where,
        given=f"an EDM network with sigma_data {schedule.sigma_data}",
        expected="CosXL's kind (v, sigma_data 1) or Playground 2.5's, which a single file can record",
        cure="Use --to gouache or --to diffusers.",
    )


def _row(header: Header, name: str, count: int) -> list[float]:
    values = open_source(header.path).read(name, mapped=False)
    if values.numel() != count or not values.is_floating_point() or not bool(values.isfinite().all()):
        raise CorruptCheckpoint(
            str(header.path), given=f"{name!r} of shape {tuple(values.shape)}", expected=f"{count} finite numbers"
        )
    row: list[float] = values.double().flatten().tolist()
    return row


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
            where,
            given=f"a table of the noise schedule that is none: {error}",
            expected="values descending from 1 to 0",
        ) from error
    return NoiseScheduleConfig(name="table", num_timesteps=len(values), alphas_cumprod=values)
