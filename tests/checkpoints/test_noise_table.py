"""A noise schedule that a file records is used or refused, never passed over."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from gouache.checkpoints.convert import convert
from gouache.checkpoints.diffusers.folder import read_json
from gouache.checkpoints.formats.header import read_header
from gouache.checkpoints.formats.safetensors import write_json
from gouache.checkpoints.load import load_bundle
from gouache.checkpoints.noise_table import recorded_schedule, table_to_record
from gouache.diffusion.noise_schedule import make_noise_schedule
from gouache.errors import CorruptCheckpoint, GouacheError, IncompatibleCheckpoint, InvalidInput
from gouache.models.configs import NoiseScheduleConfig
from gouache.models.denoiser import schedule_from

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
Marked = Callable[[dict[str, Tensor]], Path]
Recorded = Callable[[dict[str, Tensor]], NoiseScheduleConfig]
STANDARD = make_noise_schedule("scaled_linear").alphas_cumprod
RESCALED = make_noise_schedule("scaled_linear", zero_terminal_snr=True).alphas_cumprod
OTHER = make_noise_schedule("cosine").alphas_cumprod


@pytest.fixture(scope="module")
def single(published: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """The tensors of a single file of SD 1.x."""
    file = tmp_path_factory.mktemp("single") / "one.safetensors"
    convert(published("sd1"), file, "single-file")
    return load_file(file)


@pytest.fixture
def marked(single: dict[str, Tensor], tmp_path: Path) -> Marked:
    """Writes the file with more tensors."""

    def write(more: dict[str, Tensor]) -> Path:
        save_file(single | more, tmp_path / "marked.safetensors")
        return tmp_path / "marked.safetensors"

    return write


@pytest.fixture
def recorded(tmp_path: Path) -> Callable[[dict[str, Tensor]], NoiseScheduleConfig]:
    """What a file with these tensors beside the networks' says of the schedule."""

    def read(more: dict[str, Tensor]) -> NoiseScheduleConfig:
        save_file({"of a network": torch.zeros(1), **more}, tmp_path / "tables.safetensors")
        return recorded_schedule(read_header(tmp_path / "tables.safetensors"))

    return read


def test_a_plain_file_says_nothing_of_a_table(single: dict[str, Tensor]) -> None:
    assert not {"alphas_cumprod", "ztsnr", "v_pred"} & set(single)


@pytest.mark.parametrize(
    ("more", "rescaled"),
    [
        ({}, False),
        ({"alphas_cumprod": STANDARD.float()}, False),
        ({"alphas_cumprod": (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2).cumprod(0)}, False),
        ({"alphas_cumprod": STANDARD.half()}, False),
        ({"alphas_cumprod": STANDARD.bfloat16()}, False),
        ({"denoiser.sigmas": ((1 - STANDARD) / STANDARD).sqrt().float()}, False),
        ({"alphas_cumprod": RESCALED.float()}, True),
        ({"alphas_cumprod": torch.where(RESCALED > 1e-7, RESCALED, 0.0).float()}, True),
        ({"alphas_cumprod": STANDARD.float(), "ztsnr": torch.empty(0)}, True),
        ({"ztsnr": torch.empty(0)}, True),
    ],
)
def test_stable_diffusions_table_is_known_in_any_precision(
    recorded: Recorded, more: dict[str, Tensor], rescaled: bool
) -> None:
    assert recorded(more) == NoiseScheduleConfig(zero_terminal_snr=rescaled)


@pytest.mark.parametrize(
    "more",
    [
        {"alphas_cumprod": OTHER.float()},
        {"denoiser.sigmas": ((1 - OTHER) / OTHER).sqrt()},
        {"denoiser.sigmas": ((1 - OTHER) / OTHER).sqrt().flip(0)},
    ],
)
def test_another_table_is_the_schedule(recorded: Recorded, more: dict[str, Tensor]) -> None:
    found = recorded(more)
    assert found.name == "table"
    torch.testing.assert_close(schedule_from(found).alphas_cumprod, OTHER, rtol=1e-5, atol=1e-9)


def test_a_model_is_loaded_with_what_its_file_records(marked: Marked) -> None:
    bundle = load_bundle(marked({"ztsnr": torch.empty(0)}))
    assert torch.equal(bundle.schedule.alphas_cumprod, RESCALED)
    bundle = load_bundle(marked({"alphas_cumprod": OTHER}))
    assert torch.equal(bundle.schedule.alphas_cumprod, OTHER)


def test_another_table_lives_through_every_layout(marked: Marked, tmp_path: Path) -> None:
    source = marked({"alphas_cumprod": OTHER.float()})
    wanted = load_bundle(source).schedule.alphas_cumprod
    for name, layout in (("own", "gouache"), ("folder", "diffusers"), ("again.safetensors", "single-file")):
        convert(source, tmp_path / name, layout)  # type: ignore[arg-type]
        source = tmp_path / name
        torch.testing.assert_close(load_bundle(source).schedule.alphas_cumprod, wanted, rtol=1e-6, atol=1e-12)


def test_diffusers_reads_the_table_that_we_write(marked: Marked, tmp_path: Path) -> None:
    from diffusers import DDIMScheduler

    convert(marked({"alphas_cumprod": OTHER.float()}), tmp_path / "folder", "diffusers")
    scheduler = DDIMScheduler.from_pretrained(tmp_path / "folder", subfolder="scheduler")
    torch.testing.assert_close(scheduler.alphas_cumprod.double(), OTHER, rtol=1e-3, atol=1e-7)


def test_betas_that_were_given_to_diffusers_are_the_schedule(marked: Marked, tmp_path: Path) -> None:
    convert(marked({}), tmp_path / "folder", "diffusers")
    file = tmp_path / "folder" / "scheduler" / "scheduler_config.json"
    write_json(file, {**read_json(file), "trained_betas": [0.01] * 100})
    schedule = load_bundle(tmp_path / "folder").schedule
    assert schedule.num_timesteps == 100
    assert float(schedule.alphas_cumprod[-1]) == pytest.approx(0.99**100)
    write_json(file, {**read_json(file), "trained_betas": [0.5, 2.0]})
    with pytest.raises(IncompatibleCheckpoint, match="trained_betas"):
        load_bundle(tmp_path / "folder")


@pytest.mark.parametrize(
    ("more", "error"),
    [
        ({"alphas_cumprod": OTHER.flip(0).float()}, CorruptCheckpoint),
        ({"alphas_cumprod": torch.full((1000,), 0.5)}, CorruptCheckpoint),
        ({"alphas_cumprod": torch.full((1000,), torch.nan)}, CorruptCheckpoint),
        ({"alphas_cumprod": torch.ones(())}, CorruptCheckpoint),
        ({"alphas_cumprod": torch.arange(1000)}, CorruptCheckpoint),
        ({"edm_vpred.sigma_max": torch.tensor(-1.0)}, CorruptCheckpoint),
        ({"edm_vpred.sigma_max": torch.tensor(120)}, CorruptCheckpoint),
        ({"edm_vpred.sigma_max": torch.tensor(1.0), "edm_vpred.sigma_min": torch.tensor(2.0)}, CorruptCheckpoint),
    ],
)
def test_what_is_no_schedule_is_refused(recorded: Recorded, more: dict[str, Tensor], error: type[GouacheError]) -> None:
    with pytest.raises(error, match=r"tables\.safetensors"):
        recorded(more)


def test_a_schedule_without_a_table_is_refused_where_a_table_is_needed() -> None:
    with pytest.raises(IncompatibleCheckpoint, match="--to gouache"):
        table_to_record(NoiseScheduleConfig(name="flow"), "file")
    assert torch.equal(
        table_to_record(NoiseScheduleConfig(beta_end=0.02), "file"),
        make_noise_schedule("scaled_linear", beta_end=0.02).alphas_cumprod.float(),
    )


def test_a_table_goes_with_its_name_only() -> None:
    with pytest.raises(InvalidInput, match="alphas_cumprod"):
        make_noise_schedule("table", num_timesteps=2)
    with pytest.raises(InvalidInput, match="alphas_cumprod"):
        make_noise_schedule("linear", alphas_cumprod=(0.9, 0.5))
    made = make_noise_schedule("table", num_timesteps=2, alphas_cumprod=(0.9, 0.5))
    assert made.alphas_cumprod.tolist() == [0.9, 0.5]
