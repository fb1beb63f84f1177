"""Stage 3: the quantizer over a coarse grid of the latent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from gouache.checkpoints.formats.safetensors import save_tensors
from gouache.errors import ConfigError
from gouache.models.quantizer import Quantizer
from gouache.models.vae import AutoencoderKL
from gouache.training.batches.batch_shapes import check_square
from gouache.training.batches.encoded import Encoded, Shuffled
from gouache.training.batches.sources import Sources
from gouache.training.config import TrainConfig
from gouache.training.inputs import (
    RunInputs,
    initial_weights,
    is_result,
    last_result,
    load_quantizer,
)
from gouache.training.stage import Batch, BatchNoise, Losses, Preparing, Ready, Stage, batched, freeze_parameters
from gouache.training.stage_tables import TOKENS_STAY, TokensStage

SHOWN = 16
FITTED = 1024
"""Pictures whose residuals the codes are fitted to: with 16x16 places a thousand for every one of 256 codes."""


class TokensTraining(Stage[Quantizer]):
    """Reconstruct latents through a few tokens; finite scalars need no code book loss (Mentzer et al. 2024)."""

    name = "tokens"
    kind = "quantizer"
    part = "quantizer"
    grown: ClassVar[Mapping[str, str]] = {"decoder_blocks": "decoder_depth"}
    redrafts: ClassVar[bool] = True
    config: TokensStage

    def __init__(
        self,
        config: TokensStage,
        data: Encoded,
        held_out: Encoded,
        vae: AutoencoderKL | None,
        seed: int,
        *,
        start: Quantizer | None = None,
    ) -> None:
        super().__init__()
        self.config, self.data, self.held_out, self.seed = config, data, held_out, seed
        for part in (data, held_out):
            check_square(part, self.name)
        self.order = Shuffled(len(data), seed)
        self.trained = Quantizer(config.sizes) if start is None else start
        freeze_parameters(self.trained, config.freeze, "tokens.freeze")
        self.vae = vae
        self.freeze(*(["vae"] if vae else []))

    @classmethod
    def from_run(cls, inputs: RunInputs) -> Iterator[Preparing | Ready]:
        table, sources = inputs.table(cls.name, TokensStage), inputs.sources()
        if table.start is not None and not is_result(table.start, cls.part):
            yield from cls._fine_tuning(inputs, table, table.start, sources)
            return
        start = None if table.start is None else load_quantizer(table.start).train().requires_grad_(True)
        if start is not None:
            table = table.model_copy(update={"network": start.config, "start": None})
        vae = inputs.vae()
        stores = yield from inputs.encoded(sources, inputs.encoders(vae))
        with initial_weights(table.loop.seed):
            stage = cls(table, *stores, vae, table.loop.seed, start=start)
        yield Ready(stage, table)

    @classmethod
    def _fine_tuning(
        cls, inputs: RunInputs, table: TokensStage, start: Path, sources: Sources
    ) -> Iterator[Preparing | Ready]:
        """On a packed model, whose other parts stay as they are."""
        bundle, encoders = inputs.started(cls.name, start)
        if bundle.quantizer is None:
            cure = "Leave out [tokens]: this model paints without drafts."
            raise ConfigError(
                "tokens.start", given=f"{start}, without a quantizer", expected="a model with one", cure=cure
            )
        if bundle.prior is not None and not set(TOKENS_STAY) <= set(table.freeze):
            raise ConfigError(
                "tokens.freeze",
                given=list(table.freeze),
                expected=f"{list(TOKENS_STAY)} among them: the prior of {start} draws the tokens as they are",
                cure="Leave freeze out; or train quantizer and prior of a run from nothing, with [tokens.network].",
            )
        stores = yield from inputs.encoded(sources, encoders)
        ready = table.model_copy(update={"network": bundle.quantizer.config, "start": None})
        quantizer = bundle.quantizer.train().requires_grad_(True)
        yield Ready(cls(ready, *stores, bundle.vae, table.loop.seed, start=quantizer), ready)

    @classmethod
    def base_model(cls, config: TrainConfig) -> Path | None:
        """The model whose quantizer is trained further."""
        start = config.tokens.start if config.tokens is not None else None
        return None if start is None or is_result(start, cls.part) else start

    @classmethod
    def model_parts(cls, inputs: RunInputs, others: Mapping[str, Any]) -> dict[str, Any]:
        """The quantizer, trained further; of a run from nothing only beside a prior, which alone draws tokens."""
        tuned = cls.base_model(inputs.config) is not None and last_result(inputs.run, cls.name).exists()
        return {cls.part: inputs.quantizer()} if tuned or "prior" in others else {}

    def start_from(self, network: Quantizer) -> None:
        self.trained.take(network)

    def batch(self, indices: Sequence[int]) -> Batch:
        noise = BatchNoise(self.seed, indices)
        total = len(self.config.sizes.scales)
        cut = noise.integers("scales", total) + 1
        kept = torch.where(noise.uniform("cut") < self.config.scale_dropout, cut, total)
        return {"latents": self.data.latents(self.order.numbers(indices)), "scales": kept}

    def forward(self, batch: Batch) -> Losses:
        draft = self.trained.reconstruct(batch["latents"], scales=batch["scales"])
        error = (draft - batch["latents"]).square().mean()
        return {"loss": error}

    def validate(self, network: Quantizer) -> dict[str, float]:
        """Mean squared error of held-out drafts (latents have variance 1), and how evenly the codes are used."""
        errors, counts = [], torch.zeros(network.config.vocabulary)
        for numbers in batched(len(self.held_out)):
            latents = self.held_out.latents(numbers).to(self.device)
            tokens = network.encode(latents)
            errors.append((network.decode(tokens) - latents).square().flatten(1).mean(1))
            counts += torch.bincount(tokens.flatten().cpu(), minlength=len(counts))
        share = counts / counts.sum()
        entropy = float(-(share * share.clamp_min(1e-12).log2()).sum())
        error = float(torch.cat(errors).mean())
        return {"score": error, "mse": error, "code_entropy_bits": entropy, "codes_used": float((counts > 0).sum())}

    def samples(self, network: Quantizer) -> Tensor | None:
        """Held-out pictures decoded from their latents, each followed by its draft."""
        if self.vae is None:
            return None
        latents = self.held_out.latents(range(min(SHOWN, len(self.held_out)))).to(self.device)
        draft = network.decode(network.encode(latents))
        return torch.stack([self.vae.decode(latents), self.vae.decode(draft)], dim=1).flatten(0, 1)

    def export(self, network: Quantizer, path: Path) -> None:
        """Write the quantizer."""
        self._fit_residuals(network)
        config = network.config.to_json()
        save_tensors(path, network.state_dict(), {"component": self.part, "config": config})

    @torch.no_grad()
    def _fit_residuals(self, network: Quantizer) -> None:
        """Choose the residual codes for what the drafts leave of some training pictures."""
        if network.residual is None:
            return
        vectors = []
        for numbers in batched(min(FITTED, len(self.data))):
            latents = self.data.latents(numbers).to(self.device)
            left = latents - network.decode(network.encode(latents))
            vectors.append(left.flatten(2).mT.flatten(0, 1).cpu())
        network.residual.fit(torch.cat(vectors), torch.Generator().manual_seed(self.seed))
