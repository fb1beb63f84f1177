"""Residual codes in training: chosen by the quantizer's stage, kept by the prior's memory, hidden from the denoiser."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import torch
from tests.training.conftest import PRIOR, QUANTIZER, STAGE, UNET, Latents, with_weights

from gouache.models.quantizer import Quantizer
from gouache.models.quantizer import QuantizerConfig as Sizes
from gouache.pipeline.pipeline import open_pipeline
from gouache.training.inputs import load_quantizer
from gouache.training.stage_tables import DenoiserStage, PriorStage, TokensStage
from gouache.training.stages.denoiser import DenoiserTraining
from gouache.training.stages.prior import PriorTraining, extended
from gouache.training.stages.tokens import TokensTraining

CODED = {**QUANTIZER, "residual_codes": 16}


def trained(tmp_path: Path) -> Quantizer:
    """A quantizer as its stage writes it."""
    data = Latents()
    stage = with_weights(
        1, lambda: TokensTraining(TokensStage.from_dict({"network": CODED, **STAGE}), data, data, None, 0)
    )
    stage.export(stage.trained, tmp_path / "last.safetensors")
    return load_quantizer(tmp_path / "last.safetensors")


@torch.no_grad()
def test_the_stage_writes_codes_that_fit_what_its_drafts_leave(tmp_path: Path) -> None:
    quantizer, latents = trained(tmp_path), Latents().latents(range(8))
    assert quantizer.residual is not None
    assert len({tuple(code) for code in quantizer.residual.codes.tolist()}) == 16
    plain = quantizer.decode(quantizer.encode(latents))
    error, before = ((draft - latents).square().mean() for draft in (quantizer.draft_of(latents), plain))
    assert error < 0.35 * before  # sixteen vectors for four channels: two bits a place and channel at best
    assert torch.equal(trained(tmp_path).residual.codes, quantizer.residual.codes)  # type: ignore[union-attr]


@torch.no_grad()
def test_a_memory_keeps_the_residuals_of_its_pictures_old_and_new(tmp_path: Path) -> None:
    quantizer, every, more = trained(tmp_path), Latents(16), Latents(5)
    table = PriorStage.from_dict({"network": {**PRIOR, "neighbours": 3}, **STAGE})
    stage = with_weights(1, lambda: PriorTraining(table, every, every, quantizer, None, 0, remembered=every))
    prior = stage.trained
    assert (prior.config.memory, prior.config.residuals) == (16, 64)
    expected = quantizer.residuals(every.latents(range(16)), quantizer.encode(every.latents(range(16))))
    assert expected is not None
    assert torch.equal(prior.recall.residuals, expected)
    grown = extended(prior, more, quantizer)
    assert grown.recall is not None
    assert grown.recall.residuals.shape == (21, 64)
    assert torch.equal(grown.recall.residuals[:16], expected)
    plain = with_weights(
        1,
        lambda: PriorTraining(
            table, every, every, Quantizer(Sizes.from_dict(QUANTIZER)).eval(), None, 0, remembered=every
        ),
    )
    assert plain.trained.config.residuals == 0
    assert "recall.residuals" not in plain.trained.state_dict()


@torch.no_grad()
def test_the_denoiser_sees_drafts_with_their_residuals_and_without(tmp_path: Path) -> None:
    quantizer, data = trained(tmp_path), Latents()

    def drafts(dropout: float, *, exact: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        table = DenoiserStage.from_dict(
            {"network": UNET, **STAGE, "residual_dropout": dropout, "draft_noise": 0.0, "draft_dropout": 0.0}
        )
        stage = with_weights(1, lambda: DenoiserTraining(table, data, data, quantizer, None, 0))
        batch = stage._batch(data, list(range(8)), list(range(8)), exact=exact)
        draft = stage.denoising.draft(batch)
        assert draft is not None
        return draft, batch["x0"]

    (with_them, x0), (without, _), (some, _) = drafts(0.0), drafts(1.0), drafts(0.5)
    own, plain = quantizer.draft_of(x0), quantizer.decode(quantizer.encode(x0))
    torch.testing.assert_close(with_them, own)
    torch.testing.assert_close(without, plain)
    refined = (some - own).flatten(1).abs().amax(1) < 1e-5
    assert 0 < int(refined.sum()) < 8
    torch.testing.assert_close(some[~refined], plain[~refined])
    torch.testing.assert_close(drafts(1.0, exact=True)[0], own)  # a judged draft is as painting begins


def test_a_quantizer_trained_further_leaves_the_memory_its_tokens_alone() -> None:
    """The stored residuals are those of the old decoder's drafts: added to new ones they would be noise."""
    bundle = open_pipeline(None)[0].bundle
    assert bundle.prior is not None
    assert bundle.prior.recall is not None
    kept, tokens = bundle.prior.recall.residuals.clone(), bundle.prior.recall.tokens.clone()
    assert kept.any()
    bundle.with_tuned({"unet": deepcopy(bundle.unet)})
    assert torch.equal(bundle.prior.recall.residuals, kept)
    tuned = bundle.with_tuned({"quantizer": deepcopy(bundle.quantizer)})
    assert tuned.prior is not None
    assert tuned.prior.recall is not None
    assert not tuned.prior.recall.residuals.any()
    assert torch.equal(tuned.prior.recall.tokens, tokens)
    assert torch.equal(bundle.prior.recall.residuals, kept)  # the model itself is as it was
