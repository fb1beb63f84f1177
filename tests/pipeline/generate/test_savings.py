"""What is kept over steps: runs against diffusers' on the same weights, closed forms, calls, refusals, replays."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from tests.models.caching.test_deep_cache import Remembering
from tests.pipeline.generate.test_guiders import pixels, rows_of_calls
from tests.pipeline.test_parity import NEGATIVE, PROMPT, psnr

from gouache.errors import ConfigError, InvalidInput
from gouache.models.unet import UNet, UNetConfig
from gouache.pipeline.fields.guiders import BlockCache, CfgCache, DeepCache
from gouache.pipeline.generate.guided import sigmas_of
from gouache.pipeline.generate.savings import Savings
from gouache.pipeline.pipeline import Pipeline
from gouache.pipeline.request import Request

if TYPE_CHECKING:
    from tests.pipeline.conftest import MakeBundle
    from tests.pipeline.sd3_twins import Sd3Twins
    from tests.pipeline.twins import Twins

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword"),
    pytest.mark.filterwarnings("ignore:.*deprecated.*:FutureWarning"),
]

WALK = Request(
    prompt=PROMPT,
    negative_prompt=NEGATIVE,
    seed=11,
    num_inference_steps=5,
    guidance_scale=4.0,
    sampler="ddim",
    schedule="leading",
)
QUICK = Request(
    prompt="a cat", negative_prompt="bad", seed=4, num_inference_steps=4, sampler="euler", schedule="karras"
)
ALL: dict[str, dict[str, Any]] = {
    "cfg_cache": {"start": 0.0},
    "deep_cache": {"interval": 2, "branch": 1},
    "block_cache": {"threshold": 0.17},
}
TOGETHER = ({**ALL, "block_cache": None}, {**ALL, "deep_cache": None})
"""What leaves out blocks does so by one rule at a time."""


@pytest.mark.parametrize("branch", [0, 2])
def test_deep_cache_is_diffusers_with_blocks_that_remember(twins: Twins, branch: int) -> None:
    pair = twins.of("sd1")
    request = WALK.replace({"deep_cache": {"interval": 3, "branch": branch}})
    plain = pair.text_to_image(WALK)
    wrapped = Remembering(pair.theirs.unet, branch)

    def next_step(_pipeline: Any, step: int, _timestep: Any, given: dict[str, Any]) -> dict[str, Any]:
        wrapped.full = (step + 1) % 3 == 0
        return given

    try:
        reference = pair.text_to_image(WALK, callback_on_step_end=next_step)
    finally:
        wrapped.undo()
    assert float(np.abs(reference - plain).mean()) > 0.01, "keeping features changes the picture"
    assert psnr(pair.ours.paint(request)[0].image, reference) >= 60


def test_a_guidance_interval_is_diffusers_callback_that_ends_guidance(twins: Twins) -> None:
    """As diffusers' manual has it: a callback drops the negative prompt's row for the remaining steps."""
    pair = twins.of("sd1")
    levels = sigmas_of(pair.ours.resolve(WALK), pair.ours.bundle).tolist()
    request = WALK.replace({"guidance_interval": ((levels[0] + levels[1]) / 2, 1000.0)})

    def end_guidance(pipeline: Any, step: int, _timestep: Any, given: dict[str, Any]) -> dict[str, Any]:
        if step == 0:
            given["prompt_embeds"] = given["prompt_embeds"].chunk(2)[-1]
            pipeline._guidance_scale = 0.0
        return given

    reference = pair.text_to_image(
        WALK, callback_on_step_end=end_guidance, callback_on_step_end_tensor_inputs=["prompt_embeds"]
    )
    assert float(np.abs(reference - pair.text_to_image(WALK)).mean()) > 0.01
    assert psnr(pair.ours.paint(request)[0].image, reference) >= 60


def test_a_kept_difference_is_exact_for_gaussians() -> None:
    """With data of unit variance around two means, D = (x + sigma^2 m) / (1 + sigma^2), kept is what would be found."""
    means = torch.tensor([3.0, -1.0], dtype=torch.float64)
    savings = Savings(steps=4, cfg=CfgCache(start=0.0, interval=4))

    def predicted(x: float, sigma: float) -> torch.Tensor:
        return (x + sigma**2 * means) / (1 + sigma**2)

    found = predicted(5.0, 8.0)
    savings.keep((found[:1] - found[1:])[None], 1, 8.0)
    for step, sigma, x in ((2, 2.0, 1.5), (3, 0.5, -0.5), (4, 0.01, 0.2)):
        kept, right = savings.difference_at(step, sigma, 1), predicted(x, sigma)
        assert kept is not None
        assert torch.allclose(kept[0], right[:1] - right[1:], rtol=1e-12)


@pytest.mark.parametrize("name", ALL)
def test_each_saving_changes_the_picture_and_replays(pipe: Pipeline, name: str) -> None:
    (painted,) = pipe.paint(QUICK.replace({name: ALL[name]}))
    assert painted.image.tobytes() not in pixels(pipe, QUICK)
    again = Request.from_json(painted.recipe.request.to_json())
    assert getattr(again, name) == getattr(painted.recipe.request, name) is not None
    assert pixels(pipe, again) == [painted.image.tobytes()]
    assert not painted.recipe.notes


def test_the_negative_prompt_is_called_at_every_second_step_only(pipe: Pipeline) -> None:
    def rows(**changes: object) -> list[int]:
        return rows_of_calls(pipe, QUICK.replace(changes))

    assert rows(cfg_cache={"start": 0.0}) == [2, 1, 2, 1]
    assert rows(cfg_cache={"start": 0.0, "interval": 3}) == [2, 1, 1, 2]
    assert rows(cfg_cache={}) == [2, 2, 1, 2]
    # Two calls a step: both of a step are of one kind.
    assert rows(cfg_cache={"start": 0.0}, sampler="heun") == [2, 2, 1, 1, 2, 2, 1]
    assert rows(cfg_cache={"start": 0.0}, pag={}) == [3, 2, 3, 2]
    # A larger second pass begins anew.
    assert rows(cfg_cache={"start": 0.0}, hires={"strength": 0.5}) == [2, 1, 2, 1, 2, 1]


def test_most_steps_leave_out_the_middle(pipe: Pipeline) -> None:
    def steps_in_full(**changes: object) -> int:
        seen: list[int] = []
        handle = pipe.bundle.unet.get_submodule("mid_block").register_forward_hook(lambda *_: seen.append(1))
        try:
            pipe.paint(QUICK.replace({"deep_cache": {}, **changes}))
        finally:
            handle.remove()
        return len(seen)

    assert steps_in_full() == 2
    assert steps_in_full(deep_cache={"interval": 3}) == 2
    assert steps_in_full(deep_cache={"start": 0.5}) == 3
    assert steps_in_full(deep_cache=None) == 4
    assert steps_in_full(hires={"strength": 0.5}) == 2 + 1
    assert steps_in_full(width=64, tiled={"tile": 32, "overlap": 0.0}) == 2 * 2
    # Rows that come and go: a prediction that nothing was kept of is made in full, with those beside it.
    assert steps_in_full(pag={"start": 0.25}) == 3
    # Levels that rise again make what was kept below them worthless.
    assert steps_in_full(sampler="restart") > 4


@pytest.mark.parametrize("saving", TOGETHER, ids=["deep", "block"])
def test_a_picture_of_a_batch_is_the_picture_alone(pipe: Pipeline, saving: dict[str, Any]) -> None:
    request = QUICK.replace({**saving, "count": 3})
    alone = [pixels(pipe, request.replace({"count": 1, "seed": 4 + k}))[0] for k in range(3)]
    assert pixels(pipe, request) == alone
    together = pipe.paint(request.replace({"determinism": "portable"}))
    for one, single in zip(together, alone, strict=True):
        apart = np.asarray(one.image, np.int64) - np.frombuffer(single, np.uint8).reshape(32, 32, 3)
        assert np.abs(apart).max() <= 2, "other kernels round otherwise; another picture's features would show"


@pytest.mark.parametrize("saving", TOGETHER, ids=["deep", "block"])
def test_one_tile_is_the_picture_as_a_whole(pipe: Pipeline, saving: dict[str, Any]) -> None:
    request = QUICK.replace(saving)
    whole, tiled = (
        np.asarray(pipe.paint(one)[0].image, np.int64) for one in (request, request.replace({"tiled": {"tile": 32}}))
    )
    assert np.abs(whole - tiled).max() <= 1


@pytest.mark.parametrize(
    "more",
    [
        {"sampler": "ddim_cfg_pp"},
        {"sampler": "dpmpp_sde"},
        {"apg": {}, "guidance_rescale": 0.5},
        {"mimic": {}, "slg": {"layers": ["down"], "end": 0.5}, "freeu": {}},
        {"prompt": "a cat AND a dog"},
        {"prompt": "a [cat:dog:0.5]", "seamless": "both"},
        {"regions": [{"prompt": "a dog", "box": (0, 0, 0.5, 1)}]},
    ],
)
@pytest.mark.parametrize("saving", TOGETHER, ids=["deep", "block"])
def test_what_else_a_request_asks_for_goes_with_them(
    pipe: Pipeline, more: dict[str, Any], saving: dict[str, Any]
) -> None:
    (painted,) = pipe.paint(QUICK.replace({**saving, **more}))
    assert pixels(pipe, painted.recipe.request) == [painted.image.tobytes()]
    assert painted.image.tobytes() not in pixels(pipe, QUICK.replace(more))


def test_a_threshold_decides_which_steps_are_evaluated_in_full(pipe: Pipeline) -> None:
    def calls_in_full(**changes: object) -> int:
        seen: list[int] = []
        handle = pipe.bundle.unet.get_submodule("mid_block").register_forward_hook(lambda *_: seen.append(1))
        try:
            pipe.paint(QUICK.replace({"block_cache": {"threshold": 1.0}, **changes}))
        finally:
            handle.remove()
        return len(seen)

    assert calls_in_full() == 1
    assert calls_in_full(block_cache={"threshold": 1e-6}) == 4
    assert calls_in_full(block_cache=None) == 4
    assert calls_in_full(block_cache={"threshold": 1.0, "start": 0.5}) == 2
    # A larger second pass begins anew, and so does each tile.
    assert calls_in_full(hires={"strength": 0.5}) == 2
    assert calls_in_full(width=64, tiled={"tile": 32, "overlap": 0.0}) == 2


def test_merged_tokens_are_those_of_the_picture_alone_and_replay(pipe: Pipeline) -> None:
    request = QUICK.replace({"token_merging": 0.5, "count": 2})
    painted = pipe.paint(request)
    alone = [pixels(pipe, request.replace({"count": 1, "seed": 4 + k}))[0] for k in range(2)]
    assert [one.image.tobytes() for one in painted] == alone
    assert alone[0] not in pixels(pipe, QUICK)
    assert not painted[0].recipe.notes
    assert pixels(pipe, QUICK.replace({"token_merging": 0.001})) == pixels(pipe, QUICK), "less than one place"
    more = {"pag": {}, "block_cache": {}, "tiled": {"tile": 32}, "freeu": {}}
    assert pixels(pipe, request.replace(more)) != pixels(pipe, QUICK.replace({**more, "count": 2}))


def test_merging_at_a_coarser_level_is_none_of_a1111s(make_tiny: MakeBundle) -> None:
    """As in SDXL, whose finest level has no attention: tomesd merges at the latents' own size or not at all."""
    bundle = make_tiny()
    config = bundle.unet.config
    assert isinstance(config, UNetConfig)

    def with_attention(*layers: int) -> Pipeline:
        return Pipeline(replace(bundle, unet=UNet(config.model_copy(update={"transformer_layers": layers}))))

    coarse = with_attention(0, 1)
    asked = QUICK.replace({"token_merging": 0.5})
    assert pixels(coarse, asked) != pixels(coarse, QUICK)
    (painted,) = coarse.paint(asked.replace({"procedure": "a1111"}))
    assert painted.image.tobytes() in pixels(coarse, QUICK.replace({"procedure": "a1111"}))
    assert any("token_merging was not used: A1111" in note for note in painted.recipe.notes)
    with pytest.raises(InvalidInput, match=r"token_merging.*self-attention"):
        with_attention(0, 0).resolve(asked)


def test_instruct_models_keep_what_the_network_made(make_tiny: MakeBundle, tmp_path: Any) -> None:
    from PIL import Image

    Image.new("RGB", (32, 32), "red").save(tmp_path / "a.png")
    instruct = Pipeline(make_tiny(draft_channels=4))
    request = QUICK.replace({"init_image": str(tmp_path / "a.png")})
    assert pixels(instruct, request.replace({"deep_cache": {}})) != pixels(instruct, request)
    assert pixels(instruct, request.replace({"block_cache": {"threshold": 1.0}})) != pixels(instruct, request)
    with pytest.raises(InvalidInput, match=r"cfg_cache.*instruct"):
        instruct.resolve(request.replace({"cfg_cache": {}}))


def test_what_cannot_be_is_refused_by_name(pipe: Pipeline) -> None:
    def refused(match: str, **changes: object) -> None:
        with pytest.raises(InvalidInput, match=match):
            pipe.resolve(QUICK.replace(changes))

    refused(r"deep_cache\.branch.*at most 3", deep_cache={"branch": 4})
    refused("deep_cache.*sag", deep_cache={}, sag={})
    refused("block_cache.*sag", block_cache={}, sag={})
    refused("block_cache.*deep_cache.*one or the other", block_cache={}, deep_cache={})
    refused("cfg_cache.*sag", cfg_cache={}, sag={})
    refused("cfg_cache.*perp_neg", cfg_cache={}, perp_neg={})
    for name in ALL:
        refused(f"{name}.*dpm_adaptive", sampler="dpm_adaptive", **{name: {}})
        wrong = "threshold" if name == "block_cache" else "interval"
        with pytest.raises(ConfigError, match=wrong):
            QUICK.replace({name: {wrong: 0}})


def test_a_saving_without_effect_is_noted(pipe: Pipeline) -> None:
    def notes(**changes: object) -> str:
        return " ".join(pipe.paint(QUICK.replace(changes))[0].recipe.notes)

    assert "cfg_cache was not used: guidance is off" in notes(cfg_cache={}, guidance_scale=1.0)
    assert "cfg_cache was not used: parts joined by AND" in notes(cfg_cache={}, prompt="a AND b")
    assert "deep_cache was not used: none of 4 steps" in notes(deep_cache={"end": 0.25})


def test_fast_sets_values_that_the_recipe_holds(pipe: Pipeline) -> None:
    asked = QUICK.replace({"num_inference_steps": 20, "fast": True})
    (painted,) = pipe.paint(asked)
    request = painted.recipe.request
    assert not request.fast
    assert request.deep_cache == DeepCache(interval=3, branch=0)
    (note,) = painted.recipe.notes
    assert note.startswith("fast set deep_cache of interval 3, branch 0 (")
    assert pixels(pipe, request) == [painted.image.tobytes()]
    assert pipe.resolve(asked.replace({"block_cache": {}})).deep_cache is None
    own = DeepCache(interval=2, branch=1)
    assert pipe.resolve(asked.replace({"deep_cache": own})).deep_cache == own


@pytest.mark.parametrize(
    ("changes", "expected", "interval"),
    [
        ({"num_inference_steps": 8}, {"block_cache": BlockCache(threshold=0.1)}, None),
        ({"num_inference_steps": 50, "sampler": "ddim"}, {"block_cache": BlockCache(threshold=0.1)}, None),
        # Every step's noise is new to the first block, so that it never answers as before.
        (
            {"num_inference_steps": 20, "sampler": "euler_ancestral"},
            {"deep_cache": DeepCache(interval=3, branch=2)},
            (0.28, 80.0),
        ),
        (
            {"num_inference_steps": 8, "sampler": "euler_ancestral"},
            {"block_cache": BlockCache(threshold=0.1)},
            None,
        ),
    ],
)
def test_fast_of_the_pocket_family_depends_on_steps_and_sampler(
    make_tiny: MakeBundle,
    changes: dict[str, Any],
    expected: dict[str, object],
    interval: tuple[float, float] | None,
) -> None:
    pocket = Pipeline(make_tiny(family="pocket"))
    resolved = pocket.resolve(QUICK.replace({"fast": True, **changes}))
    found = {name: getattr(resolved, name) for name in ("block_cache", "deep_cache", "cfg_cache")}
    assert {name: one for name, one in found.items() if one is not None} == expected
    assert resolved.guidance_interval == interval


def test_fast_takes_the_first_blocks_rule_where_a_transformer_paints(sd3: Sd3Twins) -> None:
    asked = QUICK.replace({"sampler": None, "schedule": None, "num_inference_steps": 20, "fast": True})
    (painted,) = sd3.ours("3 medium").paint(asked)
    assert painted.recipe.request.block_cache == BlockCache(threshold=0.05)
    assert any("fast set block_cache of threshold 0.05 (the threshold that diff" in one for one in painted.recipe.notes)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"num_inference_steps": 4}, "from 20 steps on"), ({"deep_cache": {}, "guidance_scale": 1.0}, "leaves nothing")],
)
def test_fast_says_where_it_changes_nothing(pipe: Pipeline, changes: dict[str, Any], reason: str) -> None:
    asked = QUICK.replace({"num_inference_steps": 20, **changes})
    (painted,) = pipe.paint(asked.replace({"fast": True}))
    assert any(note.startswith("fast was not used") and reason in note for note in painted.recipe.notes)
    assert pixels(pipe, asked) == [painted.image.tobytes()]
