"""Stage `instruct`: a model that changes pictures as it is told (Brooks et al. 2022, arXiv:2211.09800).

The network gets channels for the latents of the picture before, whose weights begin as zero (section 3.2).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gouache.checkpoints.detect import config_kind
from gouache.checkpoints.formats.header import read_header
from gouache.checkpoints.formats.safetensors import save_tensors
from gouache.checkpoints.networks import build
from gouache.errors import ConfigError, DataError
from gouache.models.bundle import ModelBundle
from gouache.models.network_configs import NetworkConfig
from gouache.models.unet import UNet
from gouache.training.batches.batch_shapes import batches_of_one_shape, shown
from gouache.training.batches.conditions import ConditionStore, condition_image, encoded_conditions
from gouache.training.batches.encoded import drop_captions
from gouache.training.batches.tuning_set import Shown, Texts, TuningSet
from gouache.training.config import TrainConfig
from gouache.training.denoising import Denoising, refuse_prompts
from gouache.training.inputs import RunInputs, initial_weights, load_network, result_of
from gouache.training.previewer import Previewer
from gouache.training.stage import Batch, BatchNoise, Losses, Preparing, Ready, Stage
from gouache.training.stage_tables import InstructStage

SHOWN = 4


class Told:
    """A network that changes pictures, with the pictures that it changes.

    Args:
        network: it.
        before: their latents, as the autoencoder gives them. [B,C,h,w]
    """

    def __init__(self, network: UNet, before: Tensor) -> None:
        self.network, self.before = network, before

    @property
    def config(self) -> NetworkConfig:
        """Its sizes, as whoever calls this sees them: without channels beside the latents."""
        return self.network.config.model_copy(update={"draft_channels": 0})

    def __call__(self, x: Tensor, timestep: Tensor, context: Tensor, /, **given: Any) -> Tensor:
        """The prediction [B,C,h,w]; see `Network`."""
        out: Tensor = self.network(x, timestep, context, **given, draft=self.before.to(x))
        return out


class InstructTraining(Stage[UNet]):
    """Minimise the denoiser's loss given the picture before and the instruction."""

    name = "instruct"
    kind = "U-Net"
    config: InstructStage

    def __init__(
        self,
        config: InstructStage,
        bundle: ModelBundle,
        data: TuningSet,
        held_out: TuningSet,
        texts: Texts,
        before: tuple[ConditionStore, ConditionStore],
    ) -> None:
        super().__init__()
        self.config, self.data, self.held_out, self.texts, self.seed = config, data, held_out, texts, config.loop.seed
        self.before, self.before_held_out = before
        self.bundle, self.vae = bundle, bundle.vae
        self.trained = widened(unet_to_teach(bundle, config))
        self.trained.set_gradient_checkpointing(config.gradient_checkpointing)
        self.freeze("vae")
        plain = self.trained.config.model_copy(update={"draft_channels": 0})
        self.denoising = Denoising(config, bundle.denoiser_config, plain, None)

    @classmethod
    def from_run(cls, inputs: RunInputs) -> Iterator[Preparing | Ready]:
        refuse_prompts(inputs.table(cls.name, InstructStage), cls.name)
        tuning = yield from inputs.tuning(cls.name, InstructStage, unet_to_teach)
        if not tuning.data.pictures.manifest.conditions:
            raise DataError(
                "stage instruct",
                given="pictures without what they were before",
                expected="before/NAME.png for every after/NAME.png, with the instruction in after/NAME.txt",
            )
        own = yield from encoded_conditions(inputs.run, tuning.data, tuning.encoders)
        held_out = yield from encoded_conditions(inputs.run, tuning.held_out, tuning.encoders)
        with initial_weights(tuning.table.loop.seed):
            parts = (tuning.bundle, tuning.data, tuning.held_out, tuning.texts())
            stage = cls(tuning.table, *parts, (own, held_out))
        yield Ready(stage, tuning.table)

    @classmethod
    def base_model(cls, config: TrainConfig) -> Path | None:
        return config.instruct.start if config.instruct is not None else None

    @classmethod
    def model_parts(cls, inputs: RunInputs, others: Mapping[str, Any]) -> dict[str, Any]:
        del others
        if inputs.config.instruct is None:
            return {}
        path = result_of(inputs.run, cls.name)
        return {"unet": load_network(build, config_kind("unet", read_header(path).metadata["config"]), path)}

    def batch(self, indices: Sequence[int]) -> Batch:
        return self._batch(self.data, self.data.shown(indices), BatchNoise(self.seed, indices))

    def forward(self, batch: Batch) -> Losses:
        weighted, plain = self.denoising.errors(self._told(self.trained, batch), batch)
        return {"loss": weighted.mean(), "mse": plain.mean().detach()}

    def validate(self, network: UNet) -> dict[str, float]:
        """Errors on the held-out pairs at fixed noise."""
        errors = []
        for numbers in batches_of_one_shape(self.held_out, len(self.held_out), self.config.loop.batch_size):
            noise = BatchNoise(self.seed, numbers)
            batch = self._batch(self.held_out, self.held_out.plain(numbers), noise, exact=True)
            batch = {name: value.to(self.device) for name, value in batch.items()}
            errors.append(self.denoising.errors(self._told(network, batch), batch)[1])
        mse = float(torch.cat(errors).mean())
        return {"score": mse, "mse": mse}

    def samples(self, network: UNet) -> Tensor | None:
        """For held-out pairs: the picture before, the one after, and what the network makes of the first."""
        numbers = shown(self.held_out, len(self.held_out), SHOWN)
        pictures = self.held_out.plain(numbers)
        batch = self._batch(self.held_out, pictures, BatchNoise(self.seed, numbers), exact=True)
        batch = {name: value.to(self.device) for name, value in batch.items()}
        told, empty = self._told(network, batch), self.texts.states([""])
        preview = Previewer(told, self.bundle.denoiser_config, self.denoising.schedule, empty)
        found = preview.latents(self.texts.states([one.caption for one in pictures]), batch["eps"], None)
        before = [condition_image(self.held_out.pictures, one.row, one.mirrored, self.vae) for one in pictures]
        rows = [torch.stack(before).to(self.device), *(self.vae.decode(one) for one in (batch["x0"], found))]
        return torch.stack([row[:, :3] for row in rows], dim=1).flatten(0, 1)

    def export(self, network: UNet, path: Path) -> None:
        """Write the U-Net; `gouache pack` puts it into its model."""
        save_tensors(path, network.state_dict(), {"component": "unet", "config": network.config.to_json()})

    def _told(self, network: UNet, batch: Batch) -> Told:
        return Told(network, batch["before"] * batch["keep_before"].view(-1, 1, 1, 1))

    def _batch(self, data: TuningSet, pictures: Sequence[Shown], noise: BatchNoise, *, exact: bool = False) -> Batch:
        """Latents, instructions, pictures before and noise; `exact` drops nothing."""
        latents, config = data.latents(pictures), self.config
        batch = self.denoising.draws(latents, noise, exact=exact)
        batch |= data.marks(pictures, latents.shape[2:], config.prior_loss_weight)
        # One number decides both: the text alone is dropped, then the picture alone, then both (section 3.2.1).
        drawn = noise.uniform("conditions") + float(exact)
        text, picture = config.caption_dropout, config.picture_dropout
        both = text + picture + config.both_dropout
        batch["keep_before"] = ((drawn < text) | (drawn >= both)).float()
        batch["before"] = (self.before if data is self.data else self.before_held_out).latents(pictures)
        states = self.texts.states([one.caption for one in pictures])
        dropped = (drawn < text) | ((drawn >= text + picture) & (drawn < both))
        return batch | drop_captions(states, self.texts.states([""]), dropped).batch()


def unet_to_teach(bundle: ModelBundle, config: InstructStage) -> UNet:
    """The model's U-Net.

    Raises:
        ConfigError: it has another network, or one that takes something beside the latents.
    """
    if not isinstance(bundle.unet, UNet) or bundle.unet.config.draft_channels:
        given = "whose network is a transformer" if not isinstance(bundle.unet, UNet) else "which begins with drafts"
        raise ConfigError(
            "instruct.start", given=f"{config.start}, {given}", expected="a model of Stable Diffusion 1, 2 or XL"
        )
    return bundle.unet


@torch.no_grad()
def widened(unet: UNet) -> UNet:
    """The same network with channels for a second picture's latents, to which it is blind at first."""
    channels = unet.config.in_channels
    network = UNet(unet.config.model_copy(update={"draft_channels": channels}))
    weights = unet.state_dict()
    own = weights["conv_in.weight"]
    blind = own.new_zeros(own.shape[0], channels, *own.shape[2:])
    # Behind the latents, and before the grid of a pooled vector, if there is one.
    weights["conv_in.weight"] = torch.cat([own[:, :channels], blind, own[:, channels:]], dim=1)
    network.load_state_dict(weights)
    return network
