"""Tiles: their least size, and what they cost a server.

The kind: a number that is allowed and turns one step of the network into thousands.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from gouache.errors import InvalidInput
from gouache.pipeline.pipeline import Pipeline, untrained_bundle
from gouache.pipeline.request import Request
from gouache.serve.queue.admission import admit

if TYPE_CHECKING:
    from gouache.serve.studio import Studio


@pytest.mark.parametrize(("tile", "fits"), [(8, False), (15, False), (16, True), (64, True), (None, True)])
def test_a_tile_has_an_eighth_of_the_model_s_side(tile: int | None, fits: bool) -> None:
    pipeline = Pipeline(untrained_bundle())  # which paints 128 pixels
    request = Request.from_dict({"prompt": "a", "tiled": {"tile": tile}, "width": 256}, where="request")
    if fits:
        assert pipeline.resolve(request).tiled is not None
        return
    with pytest.raises(InvalidInput, match=r"tiled\.tile: given \d+ pixels, expected at least 16"):
        pipeline.resolve(request)


@pytest.mark.parametrize(
    ("tiled", "fits"),
    [
        (None, True),
        ({}, True),
        ({"tile": 512, "overlap": 0.5}, True),
        ({"tile": 256, "overlap": 0.25}, True),
        ({"tile": 8}, False),
        ({"tile": 64, "overlap": 0.75}, False),
        ({"tile": 512, "overlap": 1.0}, False),
        ({"tile": 256, "overlap": 0.98}, False),
        ({"overlap": 1.0}, False),
    ],
)
def test_a_server_counts_every_tile(studio: Studio, tiled: dict[str, Any] | None, fits: bool) -> None:
    sizes = {"width": 1024, "height": 1024, "num_inference_steps": 50}
    request = Request.from_dict({"prompt": "a", "tiled": tiled, **sizes}, where="request")
    parts = (studio.settings, studio.catalog, studio.file_store.attachment)
    if fits:
        admit(request, *parts)
        return
    with pytest.raises(InvalidInput, match="pixel steps"):
        admit(request, *parts)
