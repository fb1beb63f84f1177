"""Paints 40 prompts as an evaluation does, here and on the cluster of an address, and says whether they are equal."""

from __future__ import annotations

import sys

import numpy as np
import torch

from gouache.pipeline.pipeline import open_pipeline
from gouache.scale.cluster import connected
from gouache.scale.evaluating import Spreading, painter_on
from gouache.training.evaluation.painting import Setting, painter

if __name__ == "__main__":
    torch.set_num_threads(1)
    pipeline, _ = open_pipeline("untrained")
    prompts, seeds, setting = [f"thing {k}" for k in range(40)], list(range(40)), Setting(steps=2, draft=False)
    here = painter(pipeline)(prompts, seeds, setting)
    with connected(sys.argv[1]) as cluster:
        there = painter_on(cluster, "untrained", Spreading(sys.argv[1]))(pipeline)(prompts, seeds, setting)
    assert np.array_equal(here, there), "the cluster paints other pictures"
