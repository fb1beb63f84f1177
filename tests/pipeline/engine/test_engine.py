"""The engines: what OpenVINO computes is what torch computes, up to rounding, and what can't be done is said."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.pipeline.conftest import seeded
from torch import nn

from gouache.errors import EngineError, InvalidInput, MissingDependency, UnknownName
from gouache.models.bundle import ModelBundle
from gouache.models.conditioning.controlnet import ControlNet
from gouache.models.configs import ControlNetConfig, UNetConfig
from gouache.models.mmdit import MMDiT
from gouache.models.unet import Residuals, UNet
from gouache.pipeline.engine import names, store
from gouache.pipeline.engine.engine import Engine
from gouache.pipeline.engine.graph import Signature
from gouache.pipeline.engine.networks import EngineControlNet, Runner
from gouache.pipeline.generate.generation import Painted
from gouache.pipeline.pipeline import Pipeline
from gouache.pipeline.replay import replay
from gouache.pipeline.request import Request

MakeBundle = Callable[..., ModelBundle]
REQUEST = Request(prompt="a cat", seed=3, width=48, height=32)
FARTHEST = 1e-5
"""Of OpenVINO's fp32 from torch's, as a share of the largest output: a hundred roundings."""
needs_openvino = pytest.mark.skipif(not names.is_installed("openvino"), reason="openvino isn't installed")


def pixels(painted: Painted) -> np.ndarray:
    return np.asarray(painted.image).astype(np.int16)


def test_an_engine_by_a_wrong_name_is_refused_with_the_right_one(tiny: ModelBundle) -> None:
    with pytest.raises(UnknownName, match="openvino"):
        Engine("openvnio", tiny)


def test_an_engine_that_is_not_installed_names_what_to_install(
    tiny: ModelBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(names, "find_spec", lambda _: None)
    with pytest.raises(MissingDependency, match=r"pip install 'gouache\[cpu\]'"):
        Engine("openvino", tiny)
    assert Engine("auto", tiny).name == "torch"


def test_what_reports_every_use_is_not_found_by_openvino_s_tools() -> None:
    pytest.importorskip("openvino_telemetry")
    with names.unreported(), pytest.raises(ImportError):
        import_module("openvino_telemetry")
    assert import_module("openvino_telemetry")


def test_auto_leaves_a_small_model_to_torch(tiny: ModelBundle, pipe: Pipeline) -> None:
    (painted,) = Pipeline(tiny, "auto").paint(REQUEST)
    assert painted.recipe.machine.engine == "torch"
    assert painted.recipe.pixels == pipe.paint(REQUEST)[0].recipe.pixels
    assert not painted.recipe.notes


@needs_openvino
def test_a_model_in_half_precision_is_refused_by_name_and_left_to_torch_by_auto(make_tiny: MakeBundle) -> None:
    bundle = make_tiny().to("cpu", torch.bfloat16)
    with pytest.raises(InvalidInput, match="bfloat16"):
        Pipeline(bundle, "openvino")
    assert Pipeline(bundle, "auto").engine.name == "torch"


@needs_openvino
@pytest.mark.parametrize(
    "asked",
    [
        {"seamless": "both"},
        {"pag": {}},
        {"sag": {}},
        {"freeu": {}},
        {"slg": {}},
        {"deep_cache": {}},
        {"block_cache": {}},
        {"token_merging": 0.5},
    ],
    ids=lambda asked: next(iter(asked)),
)
def test_what_changes_blocks_inside_is_refused_by_name(tiny: ModelBundle, asked: dict[str, object]) -> None:
    with pytest.raises(EngineError, match=next(iter(asked))):
        Pipeline(tiny, "openvino").run(REQUEST.replace(asked))


@needs_openvino
def test_auto_paints_by_torch_what_the_engine_can_not_and_notes_it(
    tiny: ModelBundle, pipe: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gouache.pipeline.engine.engine.LEAST_WEIGHTS", 0)
    request = REQUEST.replace({"seamless": "x"})
    (painted,) = Pipeline(tiny, "auto").paint(request)
    assert painted.recipe.machine.engine == "torch"
    assert painted.recipe.pixels == pipe.paint(request)[0].recipe.pixels
    assert any("seamless" in note for note in painted.recipe.notes)


class Undecided(nn.Module):
    """What it does depends on the numbers, which no graph can express."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize("lenient", [True, False], ids=["auto", "openvino"])
def test_a_network_that_can_not_be_translated_goes_to_torch_by_auto_alone(lenient: bool) -> None:
    pytest.importorskip("openvino")
    notes: list[str] = []
    runner = Runner(Undecided(), lenient, notes)
    given = {"x": torch.randn(2, 3, generator=torch.Generator().manual_seed(0))}

    def called(network: Callable[..., object], inputs: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        out = network(inputs["x"])
        assert isinstance(out, torch.Tensor)
        return (out,)

    signature = Signature("Undecided", ("x",), called)
    if not lenient:
        with pytest.raises(EngineError, match="Undecided"):
            runner(signature, given, lambda: given)
        return
    assert runner(signature, given, lambda: given) is None
    assert runner(signature, given, lambda: given) is None
    assert len(notes) == 1
    assert "Undecided was run by torch" in notes[0]


@pytest.fixture
def small_graph() -> object:
    ov = pytest.importorskip("openvino")
    given = ov.opset13.parameter([2, 3], np.float32)
    return ov.Model([ov.opset13.add(given, ov.opset13.constant(np.ones((2, 3), np.float32)))], [given], "small")


def test_a_kept_graph_is_found_again(small_graph: object) -> None:
    notes: list[str] = []
    assert store.find("kept", notes) is None
    store.keep("kept", small_graph, "a graph", [])
    assert store.find("kept", notes) is not None
    assert not notes
    assert not list(store.graphs_folder().glob(".*")), "nothing half-written is left"


@pytest.mark.parametrize("name", [store.GRAPH, store.NUMBERS, store.ENTRY])
@pytest.mark.parametrize("damage", [b"", b"something else", None], ids=["empty", "foreign", "missing"])
def test_a_damaged_graph_is_noted_and_can_be_replaced(small_graph: object, name: str, damage: bytes | None) -> None:
    store.keep("damaged", small_graph, "a graph", [])
    file = store.graphs_folder() / "damaged" / name
    file.unlink() if damage is None else file.write_bytes(damage)
    notes: list[str] = []
    assert store.find("damaged", notes) is None
    assert len(notes) == 1
    assert "damaged" in notes[0]
    store.keep("damaged", small_graph, "a graph", [])
    assert store.find("damaged", notes) is not None


def test_the_oldest_graphs_leave_when_there_is_no_room(small_graph: object, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("first", "second"):
        store.keep(key, small_graph, key, [])
    monkeypatch.setattr(store, "LIMIT", 1)
    store.keep("third", small_graph, "third", [])
    assert store.find("first", []) is None
    assert store.find("third", []) is not None


def test_a_folder_that_can_not_be_written_is_noted_and_costs_nothing_else(
    small_graph: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    notes: list[str] = []
    store.keep("key", small_graph, "a graph", notes)
    assert store.find("key", []) is None
    assert len(notes) == 1
    assert re.search(rf"{tmp_path}/file.* \(Not a directory\).*writable.*XDG_CACHE_HOME", notes[0])


@contextmanager
def full_disk() -> Iterator[None]:
    """No file may become longer than 64 bytes: writing more is an error, as on a full disk."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_noted_and_leaves_nothing_half_written(small_graph: object) -> None:
    notes: list[str] = []
    with full_disk():
        store.keep("full", small_graph, "a graph", notes)
    assert len(notes) == 1
    assert "with room for it" in notes[0]
    assert store.find("full", []) is None
    assert not list(store.graphs_folder().glob(".*"))


@pytest.mark.parametrize("package", ["torch", "openvino"])
def test_a_graph_of_another_version_is_not_taken(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network, signature = nn.Linear(2, 3), Signature("Linear", ("x",), lambda _network, _inputs: ())
    before = store.key_of(network, signature)
    assert store.key_of(nn.Linear(2, 3), signature) == before, "the numbers make no difference"
    real = names.version_of
    monkeypatch.setattr(store, "version_of", lambda name: "0.1" if name == package else real(name))
    assert store.key_of(network, signature) != before


def inputs(unet: UNet | MMDiT, rows: int, height: int, width: int, tokens: int) -> tuple[torch.Tensor, ...]:
    draw = torch.Generator().manual_seed(rows + height)
    return (
        torch.randn(rows, 4, height, width, generator=draw),
        torch.rand(rows, generator=draw) * 999,
        torch.randn(rows, tokens, unet.config.context_width, generator=draw),
    )


@pytest.fixture(scope="module")
def compiled(tiny: ModelBundle) -> Iterator[ModelBundle]:
    pytest.importorskip("openvino")
    with torch.no_grad():
        yield Engine("openvino", tiny).fitted(tiny, REQUEST).bundle


@pytest.mark.slow
@pytest.mark.parametrize("size", [(2, 16, 16, 77), (1, 8, 12, 77), (3, 9, 7, 154)], ids=str)
def test_the_u_net_gives_what_torch_gives_at_every_size(
    tiny: ModelBundle, compiled: ModelBundle, size: tuple[int, int, int, int]
) -> None:
    given = inputs(tiny.unet, *size)
    expected = tiny.unet(*given)
    assert (compiled.unet(*given) - expected).abs().max() <= FARTHEST * expected.abs().max()


@pytest.mark.slow
@pytest.mark.parametrize("size", [(1, 8, 8), (2, 12, 7)], ids=str)
def test_the_decoder_gives_what_torch_gives(
    tiny: ModelBundle, compiled: ModelBundle, size: tuple[int, int, int]
) -> None:
    rows, height, width = size
    latents = torch.randn(rows, 4, height, width, generator=torch.Generator().manual_seed(0))
    expected = tiny.vae.decode(latents)
    assert (compiled.vae.decode(latents) - expected).abs().max() <= FARTHEST * expected.abs().max()


@pytest.mark.slow
def test_residuals_of_a_controlnet_and_a_mask_enter_the_graph(tiny: ModelBundle, compiled: ModelBundle) -> None:
    unet, draw = tiny.unet, torch.Generator().manual_seed(5)
    shapes = [(16, 9, 7), (16, 9, 7), (16, 5, 4), (32, 5, 4)]
    added = Residuals(
        tuple(torch.randn(2, *shape, generator=draw) for shape in shapes), torch.randn(2, 32, 1, 1, generator=draw)
    )
    mask = torch.ones(2, 20, dtype=torch.bool)
    mask[1, 9:] = False
    given = inputs(unet, 2, 9, 7, 20)
    expected = unet(*given, context_mask=mask, residuals=added)
    found = compiled.unet(*given, context_mask=mask, residuals=added)
    assert (found - expected).abs().max() <= FARTHEST * expected.abs().max()


@pytest.mark.slow
@pytest.mark.parametrize("guess", [False, True], ids=["", "guess"])
@pytest.mark.parametrize("pooled_residuals", [False, True], ids=["maps", "pooled"])
def test_a_controlnet_gives_what_torch_gives(tiny: ModelBundle, guess: bool, pooled_residuals: bool) -> None:
    pytest.importorskip("openvino")
    assert isinstance(tiny.unet.config, UNetConfig)
    config = ControlNetConfig(unet=tiny.unet.config, hint_widths=(4, 8, 12), pooled_residuals=pooled_residuals)
    network = ControlNet(config).eval().requires_grad_(False)
    seeded(network, 7)
    x, timestep, context = inputs(tiny.unet, 2, 9, 7, 20)
    features = torch.randn(1, 16, 9, 7, generator=torch.Generator().manual_seed(6))
    with torch.no_grad():
        bundle = Engine("openvino", tiny).fitted(replace(tiny, controls={"edges": network}), REQUEST).bundle
        steering = bundle.controls["edges"]
        assert isinstance(steering, EngineControlNet)
        expected = network(x, timestep, context, features, guess=guess)
        found = steering(x, timestep, context, features, guess=guess)
    assert expected.middle is not None
    assert found.middle is not None
    for one, other in zip((*found.skips, found.middle), (*expected.skips, expected.middle), strict=True):
        assert one.shape == other.shape
        assert (one - other).abs().max() <= FARTHEST * other.abs().max()


@needs_openvino
def test_a_controlnet_stays_ready_while_requests_name_it(tiny: ModelBundle) -> None:
    assert isinstance(tiny.unet.config, UNetConfig)
    steered = replace(
        tiny, controls={"edges": ControlNet(ControlNetConfig(unet=tiny.unet.config, hint_widths=(4, 8, 12)))}
    )
    engine = Engine("openvino", tiny)
    first = engine.fitted(steered, REQUEST).bundle.controls["edges"]
    assert engine.fitted(steered, REQUEST).bundle.controls["edges"] is first
    engine.fitted(tiny, REQUEST)
    assert engine.fitted(steered, REQUEST).bundle.controls["edges"] is not first, "its memory was given back"


@pytest.mark.slow
@pytest.mark.parametrize("sdxl", [False, True], ids=["sd1", "sdxl"])
def test_a_picture_by_openvino_is_torch_s_up_to_rounding_and_its_own_to_the_bit(
    make_tiny: MakeBundle, sdxl: bool
) -> None:
    pytest.importorskip("openvino")
    request = REQUEST.replace({"count": 2})
    by_torch = Pipeline(make_tiny(sdxl=sdxl)).paint(request)
    pipeline = Pipeline(make_tiny(sdxl=sdxl), "openvino")
    painted = pipeline.paint(request)
    for one, other in zip(painted, by_torch, strict=True):
        assert np.abs(pixels(one) - pixels(other)).max() <= 1
        assert one.recipe.machine.engine == "openvino"
        assert one.recipe.versions["openvino"]
    alone = Pipeline(make_tiny(sdxl=sdxl), "openvino").paint(painted[1].recipe.request)
    assert alone[0].recipe.pixels == painted[1].recipe.pixels


@pytest.mark.slow
def test_image_to_image_and_inpainting_take_it(tiny: ModelBundle, pipe: Pipeline, picture: Path, mask: Path) -> None:
    pytest.importorskip("openvino")
    compiled = Pipeline(tiny, "openvino")
    whole = Request(prompt="a cat", seed=3, init_image=str(picture), strength=0.6)
    for request in (whole, whole.replace({"mask": {"image": str(mask)}})):
        one, other = compiled.paint(request)[0], pipe.paint(request)[0]
        assert np.abs(pixels(one) - pixels(other)).max() <= 1


@pytest.mark.slow
def test_other_weights_of_the_same_shapes_take_the_same_graph(tiny: ModelBundle) -> None:
    pytest.importorskip("openvino")
    given = inputs(tiny.unet, 2, 8, 12, 77)
    assert isinstance(tiny.unet.config, UNetConfig)
    other = UNet(tiny.unet.config).eval().requires_grad_(False)
    with torch.no_grad():
        Engine("openvino", tiny).fitted(tiny, REQUEST).bundle.unet(*given)
        before = store.summary()
        changed = replace(tiny, unet=other)
        found, expected = Engine("openvino", tiny).fitted(changed, REQUEST).bundle.unet(*given), other(*given)
    assert store.summary() == before
    assert (found - expected).abs().max() <= FARTHEST * expected.abs().max()


@pytest.mark.slow
def test_a_damaged_graph_is_made_again_with_a_note(tiny: ModelBundle) -> None:
    pytest.importorskip("openvino")
    Pipeline(tiny, "openvino").paint(REQUEST)
    for file in store.graphs_folder().glob(f"*/{store.GRAPH}"):
        file.write_text("nonsense")
    (painted,) = Pipeline(tiny, "openvino").paint(REQUEST)
    assert any("damaged" in note for note in painted.recipe.notes)
    (again,) = Pipeline(tiny, "openvino").paint(REQUEST)
    assert not again.recipe.notes
    assert again.recipe.pixels == painted.recipe.pixels


@pytest.mark.slow
def test_a_replay_keeps_the_engine_and_says_so_on_another(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    pipeline = Pipeline.load(None, engine="openvino")
    (painted,) = pipeline.paint(Request(prompt="a cat", seed=1, num_inference_steps=2))
    file = tmp_path / "cat.png"
    file.write_bytes(painted.encode("png"))
    assert replay(file).same
    other = replay(file, engine="torch")
    assert "engine: openvino then, torch now" in other.reasons
