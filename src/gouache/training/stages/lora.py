"""Stage `lora`: low-rank changes of a finished model's layers, saved as kohya's trainer does."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor, nn

from gouache import __version__
from gouache.checkpoints.adapters.layer_names import PRIOR, TEXT, LoraLayer
from gouache.checkpoints.adapters.lora import ZERO_TERMINAL_SNR
from gouache.checkpoints.formats.safetensors import save_tensors
from gouache.checkpoints.merging.lora_files import LoraFacts, lora_metadata, lora_tensors, spelled_layers
from gouache.checkpoints.save import bundle_to_write
from gouache.data.packed import PackedRecord
from gouache.errors import ConfigError
from gouache.models.bundle import ModelBundle
from gouache.models.configs import DenoiserConfig
from gouache.models.prior import Prior
from gouache.models.quantizer import Quantizer
from gouache.models.vae import AutoencoderKL
from gouache.pipeline.pipeline import Pipeline
from gouache.training.batches.batch_shapes import batches_of_one_shape, shown
from gouache.training.batches.encoded import drop_captions
from gouache.training.batches.tuning_set import Shown, Texts, TuningSet
from gouache.training.denoising import Denoising, rescaled
from gouache.training.inputs import RunInputs, initial_weights
from gouache.training.low_rank import Attached, Layer, LowRank, LowRankChanges, used_layers
from gouache.training.previewer import PromptPainter, painted
from gouache.training.stage import Batch, BatchNoise, Losses, Preparing, Ready, Stage
from gouache.training.stage_tables import LoraStage
from gouache.training.stages.prior import token_draws, token_nats

SHOWN = 8
PARTS = ("unet", "text", "prior", "quantizer")
FILE_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
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
        self.unet, self.text = bundle.unet, bundle.text
        self.prior, self.quantizer = bundle.prior, bundle.quantizer
        self.freeze(*(part for part in PARTS if getattr(self, part) is not None))
        self.unet.set_gradient_checkpointing(config.gradient_checkpointing)
        drafts = bundle.quantizer if bundle.unet.config.draft_channels else None
        self.denoising = Denoising(config, bundle.denoiser_config, bundle.unet.config, drafts)
        self._of_text: set[str] = set()
        self._of_prior: set[str] = set()
        layers = self._layers()
        self.trained = LowRankChanges({name: self._change(name, layer) for name, layer in layers.items()})
        self.attached = Attached(layers, self.trained)
        size = max(max(shape) for shape in data.shapes)
        painted = replace(bundle, defaults=bundle.defaults.of_a_tuned_prior())
        self.painter = PromptPainter(painted, config.prompts, size) if config.prompts else None

    @classmethod
    def from_run(cls, inputs: RunInputs) -> Iterator[Preparing | Ready]:
        tuning = yield from inputs.tuning(cls.name, LoraStage, _own_schedule)
        table = tuning.table
        bundle = replace(tuning.bundle, denoiser_config=_own_schedule(tuning.bundle, table))
        with initial_weights(table.loop.seed):
            stage = cls(table, bundle, tuning.data, tuning.held_out, tuning.texts())
        # Prompts may change between two sessions of a run.
        yield Ready(stage, table.model_copy(update={"prompts": ()}))

    def _layers(self) -> dict[str, Layer]:
        """The layers that are changed, by the names in the file.

        Raises:
            ConfigError: a pattern fits no layer, or no layer is left.
        """
        wanted, named = self.config.layers, dict(self._nameable())
        for key, patterns in (("layers", wanted), ("ranks", tuple(self.config.ranks))):
            for pattern in patterns:
                if not any(fnmatchcase(name, pattern) for name in named):
                    first = ", ".join(list(named)[:3])
                    raise ConfigError(
                        f"lora.{key}", given=pattern, expected=f"names with *, as {first}, of {len(named)}"
                    )
        if self.config.conv_rank and not any(set(layer.weight.shape[2:]) - {1} for layer in named.values()):
            given, cure = self.config.conv_rank, "Leave it out: this model has no larger convolutions to change."
            raise ConfigError("lora.conv_rank", given=given, expected="0", cure=cure)
        if wanted:
            named = {name: one for name, one in named.items() if any(fnmatchcase(name, each) for each in wanted)}
        named = {name: layer for name, layer in named.items() if self._rank_of(name, layer)}
        if not named:
            raise ConfigError("lora.ranks", given="0 for every layer", expected="some layers to change")
        return named

    def _nameable(self) -> Iterator[tuple[str, Layer]]:
        of_text: dict[str, Layer] = {}
        for place, name in spelled_layers(bundle_to_write(self.bundle)):
            if place.part == TEXT and not self.config.text:
                continue
            layer = self._network(place).get_submodule(place.name)
            assert isinstance(layer, nn.Linear | nn.Conv2d), "no other layers have names"
            if place.part == TEXT:
                of_text[name] = layer
            else:
                if place.part == PRIOR:
                    self._of_prior.add(name)
                yield name, layer
        # Of most CLIP encoders a state before the last is read: the layers behind it do nothing.
        self._of_text = used_layers(of_text, self._text_states) if of_text else set()
        yield from ((name, layer) for name, layer in of_text.items() if name in self._of_text)

    def _text_states(self) -> Tensor:
        states = self.texts.live([""])
        return states.context.sum() + states.pooled.sum()

    def _network(self, place: LoraLayer) -> nn.Module:
        if place.part == TEXT:
            return self.text.encoders[place.index]
        network = self.prior if place.part == PRIOR else self.unet
        assert network is not None, "no layer of a network that isn't there has a name"
        return network

    def _rank_of(self, name: str, layer: Layer) -> int:
        return self.config.rank_of(name, tuple(layer.weight.shape))

    def _change(self, name: str, layer: Layer) -> LowRank:
        config, rank = self.config, self._rank_of(name, layer)
        # A layer of another rank keeps the factor alpha / rank of the others.
        alpha = rank * (config.alpha or config.rank) / config.rank
        return LowRank(layer, rank, alpha, dora=config.dora, dropout=config.dropout)

    @property
    def vae(self) -> AutoencoderKL:
        """The autoencoder, which no step needs: it is no part of the stage, and so stays off the device."""
        return self.bundle.vae

    def batch(self, indices: Sequence[int]) -> Batch:
        return self._batch(self.data, self.data.shown(indices), BatchNoise(self.seed, indices))

    def forward(self, batch: Batch) -> Losses:
        batch = self._with_text(batch)
        weighted, plain = self.denoising.errors(self._predicted, batch)
        losses = {"loss": weighted.mean(), "mse": plain.mean().detach()}
        if self.prior is not None and self.quantizer is not None:
            nats = self._nats(self.prior, self.quantizer, batch).mean(1)
            weighted = nats * batch["loss_weight"] if "loss_weight" in batch else nats
            losses["loss"] = losses["loss"] + PRIOR_WEIGHT * weighted.mean()
            losses["bits_per_token"] = nats.mean().detach() / math.log(2)
        return losses

    def rate_factors(self) -> Mapping[nn.Parameter, float]:
        config, rates = self.config, dict[str, float]()
        if config.text_learning_rate is not None:
            rates |= dict.fromkeys(self._of_text, config.text_learning_rate)
        if config.prior_learning_rate is not None:
            rates |= dict.fromkeys(self._of_prior, config.prior_learning_rate)
        return {
            parameter: rate / config.optimizer.learning_rate
            for name, rate in rates.items()
            if name in self.trained.names
            for parameter in self.trained.of(name).parameters()
        }

    def round_frozen(self, dtype: torch.dtype) -> None:
        for network in (self.unet, self.text):
            network.to(dtype)

    @property
    def _dtype(self) -> torch.dtype:
        """That of the U-Net's weights."""
        return next(self.unet.parameters()).dtype

    def _predicted(self, x: Tensor, timestep: Tensor, context: Tensor, /, **given: Any) -> Tensor:
        """The U-Net's prediction, from inputs in the type of its weights."""
        kind = self._dtype
        given = {
            name: value.to(kind) if isinstance(value, Tensor) and value.is_floating_point() else value
            for name, value in given.items()
        }
        prediction: Tensor = self.unet(x.to(kind), timestep, context.to(kind), **given)
        return prediction

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
                errors.append(self.denoising.errors(self._predicted, batch)[1])
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
        with self._vae_at_hand():
            rows = [self.vae.decode(self.held_out.latents(pictures).to(self.device)).cpu()]
            rows += [self._painted(pictures, used) for used in (None, network)]
        return torch.stack([row[:, :3] for row in rows], dim=1).flatten(0, 1)

    def prompted(self, network: LowRankChanges) -> Tensor | None:
        if self.painter is None:
            return None
        with self.attached.using(network), self._vae_at_hand():
            return self.painter.sheet(self.unet, self.device)

    @contextmanager
    def _vae_at_hand(self) -> Iterator[None]:
        """The autoencoder on the device, for a while."""
        before = next(self.vae.parameters()).device
        self.vae.to(self.device)
        try:
            yield
        finally:
            self.vae.to(before)

    def _painted(self, pictures: Sequence[Shown], changes: LowRankChanges | None) -> Tensor:
        with self.attached.using(changes):
            captions, seeds = [one.caption for one in pictures], [self.seed] * len(pictures)
            return painted(Pipeline(self.bundle), captions, seeds, self.held_out.shapes[0])[:, :3]

    def export(self, network: LowRankChanges, path: Path) -> None:
        """Write the changes as a file that other programs read too, with what they show of it."""
        tensors: dict[str, Tensor] = {}
        for name in network.names:
            change = network.of(name)
            dtype = FILE_DTYPES[self.config.dtype]
            tensors |= lora_tensors(name, change.down, change.up, change.alpha, dtype, change.magnitude)
        metadata = lora_metadata(self._facts(), tensors)
        if self.config.zero_terminal_snr:
            metadata[ZERO_TERMINAL_SNR] = "True"
        save_tensors(path, tensors, metadata)

    def _facts(self) -> LoraFacts:
        config, size = self.config, max(max(shape) for shape in self.data.shapes)
        return LoraFacts(
            family=self.bundle.family,
            name=config.name or f"{config.start.stem}-lora",
            rank=config.rank,
            alpha=config.alpha or config.rank,
            conv_rank=config.conv_rank,
            dora=config.dora,
            prediction=self.bundle.denoiser_config.parameterization,
            comment=f"gouache {__version__}",
            size=size,
            training=self._told() | _facts_of(self.data),
        )

    def _told(self) -> dict[str, object]:
        """The training's settings by kohya's names."""
        config, rate = self.config, self.config.optimizer.learning_rate
        loop, optimizer, a_step = config.loop, config.optimizer, config.loop.batch_size
        size = max(max(shape) for shape in self.data.shapes)
        return {
            "ss_sd_model_name": config.start.name,
            "ss_new_sd_model_hash": self.bundle.sha256 or None,
            "ss_resolution": f"({size}, {size})",
            "ss_learning_rate": rate,
            "ss_unet_lr": rate,
            "ss_text_encoder_lr": (config.text_learning_rate or rate) if config.text else None,
            "ss_optimizer": optimizer.name,
            "ss_lr_scheduler": optimizer.schedule,
            "ss_lr_warmup_steps": optimizer.warmup_images // a_step,
            "ss_max_grad_norm": optimizer.gradient_clip,
            "ss_total_batch_size": a_step,
            "ss_batch_size_per_device": a_step // optimizer.accumulation,
            "ss_gradient_accumulation_steps": optimizer.accumulation,
            "ss_gradient_checkpointing": config.gradient_checkpointing,
            "ss_max_train_steps": -(-loop.images // a_step),
            "ss_num_epochs": -(-loop.images // len(self.data)),
            "ss_steps": self.images_seen // a_step,
            "ss_epoch": self.images_seen // len(self.data),
            "ss_mixed_precision": {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(self._dtype, "no"),
            "ss_seed": loop.seed,
            "ss_network_dropout": config.dropout or None,
            "ss_caption_dropout_rate": config.caption_dropout,
            "ss_noise_offset": config.noise_offset or None,
            "ss_multires_noise_iterations": config.pyramid_levels or None,
            "ss_min_snr_gamma": (config.weight_gamma or 5.0) if config.weight == "min_snr" else None,
            "ss_debiased_estimation": config.weight == "debiased",
            "ss_loss_type": config.loss,
            "ss_prior_loss_weight": config.prior_loss_weight,
            "ss_cache_latents": True,
        }

    def _batch(self, data: TuningSet, pictures: Sequence[Shown], noise: BatchNoise, *, exact: bool = False) -> Batch:
        """Latents, text and noise; `exact` leaves captions, drafts and tokens as they are."""
        batch = data.draws(self.denoising, pictures, noise, exact=exact)
        dropped = noise.uniform("caption") < (0 if exact else self.config.caption_dropout)
        if self.prior is not None:
            share, hidden = (0.0, 0.0) if exact else (self.config.token_noise, self.config.hidden_recall)
            draws = token_draws(self.prior.config, noise, share, hidden)
            batch |= {f"{OF_PRIOR}{name}": value for name, value in draws.items()}
        if self.config.text and not exact:
            return batch | {"place": torch.tensor(list(noise.indices)), "dropped": dropped}
        captions = [one.caption for one in pictures]
        if self.config.text:
            return batch | self.texts.live(captions).batch()  # what is kept of captions was said by other weights
        text = self.texts.states(captions)
        return batch | drop_captions(text, self.texts.states([""]), dropped).batch()


def _own_schedule(bundle: ModelBundle, table: LoraStage) -> DenoiserConfig:
    """The model's settings, as the LoRA has them."""
    return rescaled(bundle.denoiser_config, table, LoraTraining.name)


def _facts_of(data: TuningSet) -> dict[str, object]:
    """What the file says of the pictures it was trained on, by kohya's names: folders with their repeats, pictures an
    epoch, and how often captions have each tag."""
    source = Path(data.pictures.manifest.source.partition(", ")[0]).name  # pictures of a class come behind
    folders: dict[str, list[PackedRecord]] = {}
    records_shown = [data.pictures.records[row] for row in data.rows]
    for record in dict.fromkeys(one for one in records_shown if not one.regularisation):
        folders.setdefault(PurePosixPath(record.key).parent.name or source, []).append(record)
    dirs = {name: {"n_repeats": records[0].repeats, "img_count": len(records)} for name, records in folders.items()}
    tags = {name: _tags(caption for one in records for caption in one.captions) for name, records in folders.items()}
    return {
        "ss_num_train_images": sum(not one.regularisation for one in records_shown),
        "ss_num_reg_images": sum(one.regularisation for one in records_shown),
        "ss_dataset_dirs": json.dumps(dirs, ensure_ascii=False),
        "ss_tag_frequency": json.dumps(tags, ensure_ascii=False),
    }


def _tags(captions: Iterable[str]) -> dict[str, int]:
    """How many captions have each part between commas, in small letters."""
    return dict(Counter(tag for caption in captions for part in caption.split(",") if (tag := part.strip().lower())))
