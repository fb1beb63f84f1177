"""The engine compile: it computes what torch computes, up to rounding, and says what stands in its way.

Compiling takes minutes even for the smallest network, so most of these are slow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from tests.pipeline.conftest import seeded
from torch import nn

from gouache.errors import EngineError, InvalidInput, MissingDependency
from gouache.models.bundle import ModelBundle
from gouache.models.configs import MMDiTConfig, UNetConfig
from gouache.models.mmdit import MMDiT
from gouache.models.unet import UNet
from gouache.pipeline.engine import names
from gouache.pipeline.engine.compiling import CACHE, KEPT, Compiled, compiled_folder, compiler_version
from gouache.pipeline.engine.engine import Engine
from gouache.pipeline.engine.graph import Signature
from gouache.pipeline.engine.networks import EngineMMDiT, EngineUNet
from gouache.pipeline.pipeline import Pipeline
from gouache.pipeline.replay import replay
from gouache.pipeline.request import Request

if TYPE_CHECKING:
    from tests.pipeline.sd3_twins import Sd3Twins

MakeBundle = Callable[..., ModelBundle]
REQUEST = Request(prompt="a cat", seed=3, width=48, height=32, num_inference_steps=2)
FARTHEST = 1e-5
"""Of a compiled fp32 network's output from torch's, as a share of the largest: a hundred roundings."""
SMALL = MMDiTConfig(layers=2, heads=2, head_width=8, context_width=20, pooled_width=12, grid=10)
needs_compiler = pytest.mark.skipif(names.compiler() is None, reason="no C++ compiler")


def test_without_a_compiler_it_is_refused_with_what_to_install(
    tiny: ModelBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(MissingDependency, match=r"no-such-compiler.*apt-get install g\+\+"):
        Engine("compile", tiny)
    assert Engine("auto", tiny).name == "torch"


@needs_compiler
def test_the_recipe_can_name_the_compiler() -> None:
    assert any(digit.isdecimal() for digit in compiler_version())


@needs_compiler
@pytest.mark.parametrize(
    "asked", [{"seamless": "both"}, {"pag": {}}, {"deep_cache": {}}], ids=lambda one: next(iter(one))
)
def test_what_changes_blocks_inside_is_refused_by_name(tiny: ModelBundle, asked: dict[str, object]) -> None:
    with pytest.raises(EngineError, match=f"engine compile: given {next(iter(asked))}"):
        Pipeline(tiny, "compile").run(REQUEST.replace(asked))


@needs_compiler
def test_half_precision_is_taken_and_another_accelerator_is_not(make_tiny: MakeBundle) -> None:
    bundle = make_tiny().to("cpu", torch.bfloat16)
    assert Engine("compile", bundle).name == "compile"
    with pytest.raises(InvalidInput, match="a model on meta"):
        Engine("compile", make_tiny().to("meta"))


@needs_compiler
def test_stable_diffusion_3_is_taken(sd3: Sd3Twins) -> None:
    bundle = sd3.ours("3 medium").bundle
    fitted = Engine("compile", bundle).fitted(bundle, REQUEST)
    assert isinstance(fitted.bundle.unet, EngineMMDiT)
    assert fitted.runs_unet()
    if names.is_installed("openvino"):
        with pytest.raises(InvalidInput, match="a MMDiT"):
            Engine("openvino", bundle)


class Undecided(nn.Module):
    """What it does depends on the numbers, which no program for all of them can express."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x


class Sum(nn.Module):
    """Small enough to be compiled in seconds."""

    def __init__(self, start: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((3, 3), start), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x @ self.weight).sin() + 1


def called(network: Callable[..., object], inputs: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    out = network(inputs["x"])
    assert isinstance(out, torch.Tensor)
    return (out,)


SIGNATURE = Signature("Sum", ("x",), called)


def drawn(rows: int) -> dict[str, torch.Tensor]:
    return {"x": torch.randn(rows, 3, generator=torch.Generator().manual_seed(rows))}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE, str(tmp_path / "compiled"))
    return tmp_path / "compiled"


@pytest.mark.usefixtures("folder")
@needs_compiler
@torch.no_grad()
def test_a_network_that_can_not_be_compiled_is_an_error_with_a_way_out() -> None:
    with pytest.raises(EngineError, match=r"Undecided: .*--engine torch"):
        Compiled(Undecided(), [])(SIGNATURE, drawn(2), None)


@needs_compiler
@torch.no_grad()
def test_a_folder_that_can_not_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(CACHE, str(tmp_path / "file" / "compiled"))
    with pytest.raises(EngineError, match=rf"{tmp_path}/file/compiled: Not a directory.*{CACHE}"):
        Compiled(Sum(), [])(SIGNATURE, drawn(2), None)


def test_programs_are_kept_in_our_folder_and_not_in_the_one_for_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(CACHE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert compiled_folder() == tmp_path / "gouache" / "compiled"


@pytest.mark.usefixtures("folder")
@pytest.mark.slow
@pytest.mark.timeout(1800)
@needs_compiler
@torch.no_grad()
def test_a_compiler_that_fails_is_quoted(tmp_path: Path) -> None:
    broken = tmp_path / "broken-g++"
    broken.write_text(
        '#!/bin/sh\ncase "$1" in --version) exec g++ "$@";; esac\necho "x.cpp: error: no space" >&2; exit 1\n'
    )
    broken.chmod(0o755)
    config = import_module("torch._inductor.config")
    with (
        config.patch({"cpp.cxx": (None, str(broken))}),
        pytest.raises(EngineError, match=r"Sum: .*error: no space.*--engine torch"),
    ):
        Compiled(Sum(), [])(SIGNATURE, drawn(2), None)


@pytest.mark.usefixtures("folder")
@pytest.mark.slow
@pytest.mark.timeout(1800)
@needs_compiler
@torch.no_grad()
def test_every_size_and_every_weight_is_compiled_for_itself() -> None:
    first, other = Sum(), Sum(0.5)
    one, two = Compiled(first, []), Compiled(other, [])
    for rows in [*range(2, KEPT + 4), 2]:  # more than torch keeps, and the first again, which was let go of
        for network, runner in ((first, one), (other, two)):
            (found,) = runner(SIGNATURE, drawn(rows), None)
            torch.testing.assert_close(found, network(drawn(rows)["x"]), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@needs_compiler
@torch.no_grad()
def test_what_is_damaged_on_the_disk_is_made_again(folder: Path) -> None:
    (expected,) = Compiled(Sum(), [])(SIGNATURE, drawn(2), None)
    for file in folder.rglob("*"):
        if file.is_file():
            file.write_bytes(b"nonsense")
    torch.compiler.reset()
    (found,) = Compiled(Sum(), [])(SIGNATURE, drawn(2), None)
    assert torch.equal(found, expected)


def inputs(unet: nn.Module, rows: int, height: int, width: int) -> tuple[torch.Tensor, ...]:
    assert isinstance(unet, UNet)
    draw = torch.Generator().manual_seed(rows + height)
    return (
        torch.randn(rows, 4, height, width, generator=draw),
        torch.rand(rows, generator=draw) * 999,
        torch.randn(rows, 77, unet.config.context_width, generator=draw),
    )


@pytest.mark.slow
@pytest.mark.timeout(1800)
@needs_compiler
@pytest.mark.usefixtures("folder")
@torch.no_grad()
def test_a_u_net_gives_what_torch_gives_with_these_weights_and_others() -> None:
    config = UNetConfig(
        channels=(16,), layers_per_level=1, transformer_layers=(1,), heads=(2,), context_width=32, norm_groups=8
    )
    for seed in (0, 1):
        network = UNet(config).eval().requires_grad_(False)
        seeded(network, seed)
        given = inputs(network, 2, 9, 7)
        expected = network(*given)
        found = EngineUNet(network, Compiled(network, []))(*given)
        assert (found - expected).abs().max() <= FARTHEST * expected.abs().max()


@pytest.mark.usefixtures("folder")
@pytest.mark.slow
@pytest.mark.timeout(1800)
@needs_compiler
@torch.no_grad()
def test_a_transformer_gives_what_torch_gives() -> None:
    network = MMDiT(SMALL).eval().requires_grad_(False)
    seeded(network, 5)
    draw = torch.Generator().manual_seed(3)
    x = torch.randn(2, SMALL.in_channels, 8, 12, generator=draw)
    context = torch.randn(2, 9, SMALL.context_width, generator=draw)
    given: dict[str, Any] = {
        "context_mask": torch.arange(9).expand(2, 9) < torch.tensor([[9], [5]]),
        "pooled": torch.randn(2, SMALL.pooled_width, generator=draw),
        "residuals": [torch.randn(2, 24, SMALL.width, generator=draw)] * (SMALL.layers - 1),
    }
    made = EngineMMDiT(network, Compiled(network, []))
    expected = network(x, torch.tensor([20.0, 700.0]), context, **given)
    found = made(x, torch.tensor([20.0, 700.0]), context, **given)
    assert (found - expected).abs().max() <= FARTHEST * expected.abs().max()


@pytest.mark.usefixtures("folder")
@pytest.mark.slow
@pytest.mark.timeout(1800)
@needs_compiler
def test_a_picture_is_torch_s_up_to_rounding_and_its_own_to_the_bit(make_tiny: MakeBundle) -> None:
    request = REQUEST.replace({"count": 2})
    by_torch = Pipeline(make_tiny()).paint(request)
    painted = Pipeline(make_tiny(), "compile").paint(request)
    for one, other in zip(painted, by_torch, strict=True):
        far = np.abs(np.asarray(one.image).astype(np.int16) - np.asarray(other.image)).max()
        assert far <= 1
        assert one.recipe.machine.engine == "compile"
        assert one.recipe.versions["c++"] == compiler_version()
    torch.compiler.reset()
    alone = Pipeline(make_tiny(), "compile").paint(painted[1].recipe.request)
    assert alone[0].recipe.pixels == painted[1].recipe.pixels


@pytest.mark.usefixtures("folder")
@pytest.mark.slow
@pytest.mark.timeout(1800)
@needs_compiler
def test_a_replay_keeps_the_engine_and_says_so_on_another(tmp_path: Path) -> None:
    pipeline = Pipeline.load(None, engine="compile")
    (painted,) = pipeline.paint(Request(prompt="a cat", seed=1, num_inference_steps=2))
    file = tmp_path / "cat.png"
    file.write_bytes(painted.encode("png"))
    assert replay(file).same
    assert "engine: compile then, torch now" in replay(file, engine="torch").reasons
