"""Stage 4: the autoregressive transformer over the tokens, given text."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gouache.checkpoints.formats.safetensors import save_tensors
from gouache.errors import ConfigError
from gouache.models.configs import PriorConfig
from gouache.models.memory.recall import Recall
from gouache.models.prior import Draw, Prior, prior_inputs
from gouache.models.quantizer import Quantizer
from gouache.models.vae import AutoencoderKL
from gouache.training.batches.batch_shapes import check_square
from gouache.training.batches.encoded import Encoded, Shuffled, drop_captions
from gouache.training.batches.loss_marks import marks_of
from gouache.training.batches.sources import Sources
from gouache.training.config import TrainConfig
from gouache.training.inputs import (
    RunInputs,
    initial_weights,
    last_result,
    load_network,
    result_of,
    stage_run,
)
from gouache.training.stage import Batch, BatchNoise, Losses, Preparing, Ready, Stage, batched
from gouache.training.stage_tables import PriorStage

SHOWN = 16


class PriorTraining(Stage[Prior]):
    """Minimise the negative log-likelihood of tokens given text (Tian et al. 2024, equation 4)."""

    name = "prior"
    kind = "prior"
    part = "prior"
    measured = ("memory", "residuals")
    free = ("dropout",)
    config: PriorStage
    weights: Tensor

    def __init__(
        self,
        config: PriorStage,
        data: Encoded,
        held_out: Encoded,
        quantizer: Quantizer,
        vae: AutoencoderKL | None,
        seed: int,
        *,
        remembered: Encoded | None = None,
        start: Prior | None = None,
    ) -> None:
        super().__init__()
        self.config, self.data, self.held_out, self.seed = config, data, held_out, seed
        for part in (data, held_out):
            check_square(part, self.name)
        self.order = Shuffled(len(data), seed)
        self.quantizer, self.vae = quantizer, vae
        self.trained = self._network(remembered) if start is None else extended(start, remembered, quantizer)
        weights = token_weights(config.sizes.groups, config.group_weights)
        self.register_buffer("weights", weights, persistent=False)
        self.freeze("quantizer", *(["vae"] if vae else []))

    def _network(self, remembered: Encoded | None) -> Prior:
        """A prior with random weights, whose memory is filled."""
        grown = {}
        if remembered is not None:
            kept = 0 if self.quantizer.residual is None else self.quantizer.config.latent_size**2
            grown = {"memory": len(remembered), "residuals": kept}
        prior = Prior(self.config.sizes.model_copy(update=grown))
        if remembered is not None and prior.recall is not None:
            remember(prior.recall, remembered, self.quantizer)
        return prior

    @classmethod
    def from_run(cls, inputs: RunInputs) -> Iterator[Preparing | Ready]:
        table, sources = inputs.table(cls.name, PriorStage), inputs.sources()
        if table.start is not None:
            yield from cls._fine_tuning(inputs, table, table.start, sources)
            return
        vae = inputs.vae()
        encoders = inputs.encoders(vae)
        stores = yield from inputs.encoded(sources, encoders)
        remembered = None
        if table.sizes.neighbours and not table.sizes.memory:  # a packed prior brings its own memory
            remembered = yield from inputs.store(sources.plain, encoders, len(sources.plain))
        with initial_weights(table.loop.seed):
            stage = cls(table, *stores, inputs.quantizer(), vae, table.loop.seed, remembered=remembered)
        yield Ready(stage, table)

    @classmethod
    def _fine_tuning(
        cls, inputs: RunInputs, table: PriorStage, start: Path, sources: Sources
    ) -> Iterator[Preparing | Ready]:
        """On a packed model, whose other parts stay as they are."""
        bundle, encoders = inputs.started(cls.name, start)
        quantizer = inputs.drafting(bundle)
        if bundle.prior is None or quantizer is None:
            cure = "Train its denoiser alone: leave out [prior]."
            raise ConfigError("prior.start", given=f"{start}, without a prior", expected="a model with one", cure=cure)
        stores = yield from inputs.encoded(sources, encoders)
        remembered = None
        if bundle.prior.recall is not None:
            remembered = yield from inputs.store(sources.plain, encoders, len(sources.plain))
        # Its memory grows by the pictures; which ones, the data set says and not the config.
        ready = table.model_copy(update={"network": bundle.prior.config, "start": None})
        stage = cls(
            ready,
            *stores,
            quantizer,
            bundle.vae,
            table.loop.seed,
            remembered=remembered,
            start=bundle.prior.requires_grad_(True),
        )
        yield Ready(stage, ready)

    @classmethod
    def base_model(cls, config: TrainConfig) -> Path | None:
        """The model whose prior is trained further."""
        return config.prior.start if config.prior is not None else None

    @classmethod
    def model_parts(cls, inputs: RunInputs, others: Mapping[str, Any]) -> dict[str, Any]:
        """The prior with the best held-out likelihood, which is not the last one: it goes on to memorise.

        A U-Net without draft channels has no use for it, and one with them also works without.
        """
        tuned = inputs.config.prior is not None and inputs.config.prior.start is not None
        if not last_result(inputs.run, cls.name).exists() or not (tuned or others["unet"].config.draft_channels):
            return {}
        best = stage_run(inputs.run, cls.name) / "best.safetensors"
        path = best if best.exists() else result_of(inputs.run, cls.name)
        return {cls.part: load_network(Prior, PriorConfig, path)}

    def batch(self, indices: Sequence[int]) -> Batch:
        numbers, noise, network = self.order.numbers(indices), BatchNoise(self.seed, indices), self.config.sizes
        dropped = noise.uniform("caption") < self.config.caption_dropout
        text = drop_captions(self.data.text(numbers), self.data.empty, dropped)
        draws = token_draws(network, noise, self.config.token_noise, self.config.hidden_recall)
        latents = self.data.latents(numbers)
        marks = marks_of(self.data, numbers, latents.shape[2:], 1.0)
        masked = {name: mask for name, mask in marks.items() if name == "loss_mask"}
        return {"latents": latents, **draws, **masked, **text.batch()}

    def forward(self, batch: Batch) -> Losses:
        nats = token_nats(self.trained, self.quantizer, batch)
        return {"loss": (nats * self.weights).mean(), "bits_per_token": nats.detach().mean() / math.log(2)}

    def validate(self, network: Prior) -> dict[str, float]:
        """Bits a token of held-out pictures, all and by group; "without_text" is given the empty caption."""
        with_text, without = self._bits(network, True), self._bits(network, False)
        figures = {"score": float(with_text.mean()), "bits_per_token": float(with_text.mean())}
        for i, part in enumerate(torch.split(with_text, list(self.config.sizes.groups), dim=1)):
            if len(self.config.sizes.groups) <= 8:
                figures[f"bits_per_token_group_{i}"] = float(part.mean())
        return figures | {"bits_per_token_without_text": float(without.mean())}

    def samples(self, network: Prior) -> Tensor | None:
        """For held-out captions: the true draft, then one drawn from the prior."""
        if self.vae is None:
            return None
        numbers = range(min(SHOWN, len(self.held_out)))
        text = self.held_out.text(numbers)
        uniform = BatchNoise(self.seed, numbers).uniform("samples", (self.config.sizes.length,)).to(self.device)
        *_, tokens = network.sample(
            self.quantizer,
            text.context.to(self.device),
            text.pooled.to(self.device),
            uniform,
            context_mask=text.mask.to(self.device),
            draw=Draw(top_p=0.95),
        )
        true = self.quantizer.encode(self.held_out.latents(numbers).to(self.device))
        pictures = [self.vae.decode(self.quantizer.decode(t)) for t in (true, tokens)]
        return torch.stack(pictures, dim=1).flatten(0, 1)

    def export(self, network: Prior, path: Path) -> None:
        """Write the prior."""
        config = network.config.to_json()
        save_tensors(path, network.state_dict(), {"component": self.part, "config": config})

    def _bits(self, prior: Prior, with_text: bool) -> Tensor:
        """Bits of every token of every held-out picture [N,S]."""
        parts = []
        for numbers in batched(len(self.held_out)):
            text = self.held_out.text(numbers)
            if not with_text:
                text = drop_captions(text, self.held_out.empty, torch.ones(len(numbers), dtype=torch.bool))
            tokens = self.quantizer.encode(self.held_out.latents(numbers).to(self.device))
            context, pooled, mask = (t.to(self.device) for t in (text.context, text.pooled, text.mask))
            parts.append(-prior.log_likelihood(self.quantizer, tokens, context, pooled, mask) / math.log(2))
        return torch.cat(parts)


def token_draws(sizes: PriorConfig, noise: BatchNoise, token_noise: float, hidden_recall: float) -> Batch:
    """What is drawn for a prior's loss: which tokens it is shown wrong, and whether the nearest memory is hidden."""
    share = noise.uniform("share") * token_noise
    return {
        "wrong": noise.uniform("wrong", (sizes.length,)) < share[:, None],
        "random": noise.integers("random", sizes.vocabulary, (sizes.length,)),
        "hide": noise.uniform("recall") < hidden_recall,
    }


def token_nats(prior: Prior, quantizer: Quantizer, batch: Batch) -> Tensor:
    """Negative log-likelihood of every true token of `latents`, given the text and the tokens before it. [B,S]

    With `loss_mask` [B,1,h,w] in 0..1, each is multiplied by the mask's mean over the token's cell.
    """
    with torch.no_grad():
        tokens = quantizer.encode(batch["latents"])
        inputs = prior_inputs(prior.config, quantizer, torch.where(batch["wrong"], batch["random"], tokens))
    logits = prior(inputs, batch["context"], batch["pooled"], batch["mask"], hide=batch["hide"])
    rows = logits.to(batch["latents"].dtype).flatten(0, 1)  # [B*S,V]
    nats = nn.functional.cross_entropy(rows, tokens.flatten(), reduction="none").view_as(tokens)
    if "loss_mask" not in batch:
        return nats
    cells = [nn.functional.adaptive_avg_pool2d(batch["loss_mask"], side) for side in quantizer.config.scales]
    return nats * torch.cat([one.flatten(1) for one in cells], dim=1)


@torch.no_grad()
def extended(start: Prior, remembered: Encoded | None, quantizer: Quantizer) -> Prior:
    """A prior with its weights and its memory, which now holds some more pictures with their captions."""
    if remembered is None or start.recall is None:
        return start
    prior = Prior(start.config.model_copy(update={"memory": start.config.memory + len(remembered)}))
    captions, tokens, residuals = remembered_rows(remembered, quantizer)
    weights = start.state_dict()
    weights["recall.captions"] = torch.cat([start.recall.captions, nn.functional.normalize(captions, dim=1)])
    weights["recall.tokens"] = torch.cat([start.recall.tokens, tokens.to(start.recall.tokens.dtype)])
    if start.config.residuals and residuals is not None:
        weights["recall.residuals"] = torch.cat([start.recall.residuals, residuals])
    prior.load_state_dict(weights)
    return prior


def remembered_rows(pictures: Encoded, quantizer: Quantizer) -> tuple[Tensor, Tensor, Tensor | None]:
    """Vectors of the captions [M,P], tokens of the pictures [M,S] and what these leave [M,h*w], if there are codes."""
    captions, tokens, residuals = [], [], []
    for numbers in batched(len(pictures)):
        latents = pictures.latents(numbers)
        captions.append(pictures.text(numbers).pooled)
        tokens.append(quantizer.encode(latents))
        if (left := quantizer.residuals(latents, tokens[-1])) is not None:
            residuals.append(left)
    return torch.cat(captions), torch.cat(tokens), torch.cat(residuals) if residuals else None


@torch.no_grad()
def remember(recall: Recall, pictures: Encoded, quantizer: Quantizer) -> None:
    """Fill the prior's memory with pictures and their captions.

    Raises:
        ConfigError: fewer pictures than the prior recalls for one prompt.
    """
    if len(pictures) <= recall.neighbours:
        raise ConfigError(
            "prior.network.neighbours",
            given=f"{recall.neighbours} of {len(pictures)} pictures",
            expected="fewer than there are pictures",
        )
    recall.remember(*remembered_rows(pictures, quantizer))


def token_weights(groups: Sequence[int], weights: Sequence[float]) -> Tensor:
    """Weight of every token [S], mean 1, from the weight of a token of each group; no weights weigh all alike."""
    each = torch.tensor(weights or [1.0] * len(groups)).repeat_interleave(torch.tensor(groups))
    return each / each.mean()
