"""Stage `lora`: low-rank changes of a finished model's layers, saved as kohya's trainer does."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from torch import Tensor, nn

from gouache.checkpoints.adapters.layer_names import PRIOR, TEXT, LoraLayer
from gouache.checkpoints.formats.safetensors import save_tensors
from gouache.checkpoints.merging.loras import kohya_tensors, spelled_layers
from gouache.checkpoints.save import bundle_to_write
from gouache.errors import ConfigError
from gouache.models.bundle import ModelBundle
from gouache.models.prior import Prior
from gouache.models.quantizer import Quantizer
from gouache.pipeline.inputs.tensors import to_tensor
from gouache.pipeline.pipeline import Pipeline
from gouache.pipeline.request import Request
from gouache.training.batches.batch_shapes import batches_of_one_shape, shown
from gouache.training.batches.encoded import drop_captions
from gouache.training.batches.tuning_set import Shown, Texts, TuningSet, tuning_sets
from gouache.training.denoising import Denoising
from gouache.training.inputs import RunInputs, encoders_of, initial_weights, start_model
from gouache.training.low_rank import Attached, Layer, LowRank, LowRankChanges
from gouache.training.stage import Batch, BatchNoise, Losses, Preparing, Ready, Stage
from gouache.training.stage_tables import LoraStage
from gouache.training.stages.prior import token_draws, token_nats

SHOWN = 8
PARTS = ("unet", "text", "vae", "prior", "quantizer")
OF_PRIOR = "prior."
"""What the names of the prior's draws in a batch begin with."""
PRIOR_WEIGHT = 0.1
"""Of the prior's loss beside the denoiser's: nats of a token, a few, beside a squared error below 1."""


class LoraTraining(Stage[LowRankChanges]):
    """Minimise the denoiser's loss, and the prior's where the model has one, over low-rank changes alone."""

    name = "lora"
    kind = "LoRA"
    config: LoraStage

    def __init__(
        self, config: LoraStage, bundle: ModelBundle, data: TuningSet, held_out: TuningSet, texts: Texts
    ) -> None:
        super().__init__()
        self.config, self.data, self.held_out, self.texts, self.seed = config, data, held_out, texts, config.loop.seed
        self.bundle = bundle
        self.unet, self.text, self.vae = bundle.unet, bundle.text, bundle.vae
        self.prior, self.quantizer = bundle.prior, bundle.quantizer
        self.freeze(
            *(part for part in ("unet", "text", "vae", "prior", "quantizer") if getattr(self, part) is not None)
        )
        self.unet.set_gradient_checkpointing(config.gradient_checkpointing)
        drafts = bundle.quantizer if bundle.unet.config.draft_channels else None
        self.denoising = Denoising(config, bundle.denoiser_config, bundle.unet.config, drafts)
        layers = self._layers()
        self.trained = LowRankChanges({name: self._change(layer) for name, layer in layers.items()})
        self.attached = Attached(layers, self.trained)

    @classmethod
    def from_run(cls, inputs: RunInputs) -> Iterator[Preparing | Ready]:
        table, size = inputs.table(cls.name, LoraStage), inputs.config.data.size
        bundle = start_model(table.start, size, cls.name)
        encoders = encoders_of(bundle, table.start, size)
        sets = yield from tuning_sets(inputs.data, inputs.run, encoders, inputs.config.data, table.loop.batch_size)
        with initial_weights(table.loop.seed):
            stage = cls(table, bundle, *sets, Texts(bundle.text, encoders.pooled))
        yield Ready(stage, table)

    def _layers(self) -> dict[str, Layer]:
        """The layers that are changed, by the names in the file.

        Raises:
            ConfigError: a pattern fits no layer.
        """
        wanted, named = self.config.layers, dict(self._nameable())
        for pattern in wanted:
            if not any(fnmatchcase(name, pattern) for name in named):
                given, first = pattern, ", ".join(list(named)[:3])
                raise ConfigError("lora.layers", given=given, expected=f"names with *, as {first}, of {len(named)}")
        if wanted:
            named = {name: one for name, one in named.items() if any(fnmatchcase(name, each) for each in wanted)}
        return {name: layer for name, layer in named.items() if self.config.rank_of(tuple(layer.weight.shape))}

    def _nameable(self) -> Iterator[tuple[str, Layer]]:
        for place, name in spelled_layers(bundle_to_write(self.bundle)):
            if place.part == TEXT and not self.config.text:
                continue
            layer = self._network(place).get_submodule(place.name)
            assert isinstance(layer, nn.Linear | nn.Conv2d), "no other layers have names"
            yield name, layer

    def _network(self, place: LoraLayer) -> nn.Module:
        if place.part == TEXT:
            return self.text.encoders[place.index]
        network = self.prior if place.part == PRIOR else self.unet
        assert network is not None, "no layer of a network that isn't there has a name"
        return network

    def _change(self, layer: Layer) -> LowRank:
        config, rank = self.config, self.config.rank_of(tuple(layer.weight.shape))
        # A layer that is too small for the whole rank keeps the factor alpha / rank of the others.
        alpha = rank * (config.alpha or config.rank) / config.rank
        return LowRank(layer, rank, alpha, dora=config.dora, dropout=config.dropout)

    def batch(self, indices: Sequence[int]) -> Batch:
        return self._batch(self.data, self.data.shown(indices), BatchNoise(self.seed, indices))

    def forward(self, batch: Batch) -> Losses:
        weighted, plain = self.denoising.errors(self.unet, self._with_text(batch))
        losses = {"loss": weighted.mean(), "mse": plain.mean().detach()}
        if self.prior is not None and self.quantizer is not None:
            nats = self._nats(self.prior, self.quantizer, batch).mean(1)
            weighted = nats * batch["loss_weight"] if "loss_weight" in batch else nats
            losses["loss"] = losses["loss"] + PRIOR_WEIGHT * weighted.mean()
            losses["bits_per_token"] = nats.mean().detach() / math.log(2)
        return losses

    def _nats(self, prior: Prior, quantizer: Quantizer, batch: Batch) -> Tensor:
        draws = {name.removeprefix(OF_PRIOR): value for name, value in batch.items() if name.startswith(OF_PRIOR)}
        return token_nats(prior, quantizer, batch | draws | {"latents": batch["x0"]})

    def _with_text(self, batch: Batch) -> Batch:
        """The batch with states of its captions, made now where the text encoders are changed."""
        if "place" not in batch:
            return batch
        captions = [one.caption for one in self.data.shown(batch["place"].tolist())]
        dropped = batch["dropped"].tolist()
        said = ["" if drop else caption for caption, drop in zip(captions, dropped, strict=True)]
        return batch | self.texts.live(said).batch()

    def validate(self, network: LowRankChanges) -> dict[str, float]:
        """Errors on the held-out pictures at fixed noise, and bits a token where the model has a prior."""
        errors, bits = [], []
        with self.attached.using(network):
            for numbers in batches_of_one_shape(self.held_out, len(self.held_out), self.config.loop.batch_size):
                noise = BatchNoise(self.seed, numbers)
                batch = self._batch(self.held_out, self.held_out.plain(numbers), noise, exact=True)
                batch = {name: value.to(self.device) for name, value in batch.items()}
                errors.append(self.denoising.errors(self.unet, batch)[1])
                if self.prior is not None and self.quantizer is not None:
                    bits.append(self._nats(self.prior, self.quantizer, batch).mean(1))
        figures = {"mse": float(torch.cat(errors).mean())}
        score = figures["mse"]
        if bits:
            nats = float(torch.cat(bits).mean())
            figures["bits_per_token"] = nats / math.log(2)
            score += PRIOR_WEIGHT * nats
        return {"score": score, **figures}

    def samples(self, network: LowRankChanges) -> Tensor | None:
        """For held-out captions: the picture, what the model painted before, and what it paints now."""
        numbers = shown(self.held_out, len(self.held_out), SHOWN)
        pictures = self.held_out.plain(numbers)
        rows = [self.vae.decode(self.held_out.latents(pictures).to(self.device)).cpu()]
        rows += [self._painted(pictures, used) for used in (None, network)]
        return torch.stack([row[:, :3] for row in rows], dim=1).flatten(0, 1)

    def _painted(self, pictures: Sequence[Shown], changes: LowRankChanges | None) -> Tensor:
        height, width = self.held_out.shapes[0]
        pipeline = Pipeline(self.bundle)
        with self.attached.using(changes):
            images = [
                pipeline.paint(Request(prompt=one.caption, seed=self.seed, width=width, height=height))[0].image
                for one in pictures
            ]
        return torch.cat([to_tensor(image, 3)[None] for image in images])

    def export(self, network: LowRankChanges, path: Path) -> None:
        """Write the changes in kohya's layout."""
        tensors: dict[str, Tensor] = {}
        for name in network.changes:
            change = network.of(name)
            tensors |= kohya_tensors(name, change.down, change.up, change.alpha, torch.float16)
            if change.magnitude is not None:
                tensors[f"{name}.dora_scale"] = change.magnitude.view(-1, *[1] * (change.down.ndim - 1)).half()
        rank, alpha = self.config.rank, self.config.alpha or self.config.rank
        metadata = {
            "ss_network_module": "networks.lora",
            "ss_network_dim": str(rank),
            "ss_network_alpha": str(float(alpha)),
            "ss_base_model_version": {"sd1": "sd_v1", "sd2": "sd_v2", "sdxl": "sdxl_base_v1-0"}.get(
                self.bundle.family, self.bundle.family
            ),
        }
        save_tensors(path, tensors, metadata)

    def _batch(self, data: TuningSet, pictures: Sequence[Shown], noise: BatchNoise, *, exact: bool = False) -> Batch:
        """Latents, text and noise; `exact` leaves captions, drafts and tokens as they are."""
        latents = data.latents(pictures)
        batch = self.denoising.draws(latents, noise, exact=exact)
        batch |= data.marks(pictures, latents.shape[2:], self.config.prior_loss_weight)
        if exact:
            batch["keep_draft"] = torch.ones_like(batch["keep_draft"])
        dropped = noise.uniform("caption") < (0 if exact else self.config.caption_dropout)
        if self.prior is not None:
            share, hidden = (0.0, 0.0) if exact else (self.config.token_noise, self.config.hidden_recall)
            draws = token_draws(self.prior.config, noise, share, hidden)
            batch |= {f"{OF_PRIOR}{name}": value for name, value in draws.items()}
        if self.config.text and not exact:
            return batch | {"place": torch.tensor(list(noise.indices)), "dropped": dropped}
        text = self.texts.states([one.caption for one in pictures])
        return batch | drop_captions(text, self.texts.states([""]), dropped).batch()
