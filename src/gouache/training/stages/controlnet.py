"""Stage `controlnet`: a network that steers a finished model by pictures (Zhang et al. 2023, arXiv:2302.05543)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from gouache.checkpoints.diffusers.write import controlnet_json
from gouache.checkpoints.formats.safetensors import save_tensors, write_json
from gouache.data.packed import PackedPictures
from gouache.errors import ConfigError, DataError
from gouache.models.bundle import ModelBundle
from gouache.models.conditioning.controlnet import ControlNet
from gouache.models.conditioning.sd3_controlnet import JointControlNet, spread
from gouache.models.configs import ControlNetConfig, JointControlNetConfig
from gouache.models.mmdit import MMDiT
from gouache.models.network_configs import NetworkConfig, UNetConfig
from gouache.models.unet import Level, UNet
from gouache.nn.resnet import zero_
from gouache.pipeline.generate.controlnets import control_latents
from gouache.pipeline.inputs.edges import canny
from gouache.pipeline.inputs.images import on_background
from gouache.pipeline.inputs.preprocessors import drawn
from gouache.pipeline.inputs.tensors import to_tensor
from gouache.training.batches.batch_shapes import batches_of_one_shape, shown
from gouache.training.batches.encoded import drop_captions
from gouache.training.batches.tuning_set import Shown, Texts, TuningSet
from gouache.training.denoising import Denoising, refuse_prompts
from gouache.training.inputs import RunInputs, initial_weights
from gouache.training.previewer import Previewer
from gouache.training.stage import Batch, BatchNoise, Losses, Preparing, Ready, Stage
from gouache.training.stage_tables import ControlNetStage

SHOWN = 4
HINT_WIDTHS = (16, 32, 96, 256)
"""Widths of the convolutions from a control picture to latents an eighth its size; a smaller factor has fewer."""
KEPT = 512
"""Control pictures that are kept; one of 512 x 512 takes 0.8 MB."""
WEIGHTS = "diffusion_pytorch_model.safetensors"

Steers = ControlNet | JointControlNet


class Steered:
    """A model's network, steered: what it is called with goes to the ControlNet too.

    Args:
        main: the model's network.
        network: the ControlNet.
        features: what it sees. [B,C,h,w]
    """

    def __init__(self, main: UNet | MMDiT, network: Steers, features: Tensor) -> None:
        self.main, self.network, self.features = main, network, features

    @property
    def config(self) -> NetworkConfig:
        """The network's sizes."""
        return self.main.config

    def __call__(self, x: Tensor, timestep: Tensor, context: Tensor, /, **given: Any) -> Tensor:
        """The prediction [B,C,h,w]; see `Network`."""
        told = {name: given[name] for name in ("context_mask", "pooled")}
        residuals: Any
        if isinstance(self.network, JointControlNet):
            assert isinstance(self.main, MMDiT), "each kind steers its own"
            own = self.network(x, timestep, context, self.features, places=self.main.pos_embed, **told)
            residuals = spread(own, len(self.main.transformer_blocks))
        else:
            residuals = self.network(x, timestep, context, self.features, **told)
        out: Tensor = self.main(x, timestep, context, **given, residuals=residuals)
        return out


class Conditions:
    """Control pictures of a set: its own, or made of its pictures.

    Args:
        config: which.
        pictures: the set.

    Raises:
        DataError: the set has none of its own, and is to have them.
    """

    def __init__(self, config: ControlNetStage, pictures: PackedPictures) -> None:
        self.config, self.pictures = config, pictures
        if config.condition == "set" and not pictures.manifest.conditions:
            raise DataError(
                "controlnet.condition",
                given="a set without conditions",
                expected="a picture conditioning/NAME.png for every NAME.png",
                cure='Add them, or let a preprocessor make them: condition = "canny".',
            )
        self._of = lru_cache(KEPT)(self._made)

    def tensors(self, shown: Sequence[Shown]) -> Tensor:
        """What a ControlNet sees of some pictures. [B,3,H,W] in [0, 1]"""
        return torch.stack([to_tensor(self._of(one.row, one.mirrored), 3) for one in shown]) / 2 + 0.5

    def _made(self, row: int, mirrored: bool) -> Image.Image:
        own = self.pictures.condition(row) if self.config.condition == "set" else self.pictures.picture(row)
        assert own is not None, "a set without conditions is refused before"
        picture = Image.fromarray(np.ascontiguousarray(own[:, ::-1] if mirrored else own), "RGBA")
        if self.config.condition == "canny":
            picture = canny(on_background(picture, "white"), self.config.canny_low, self.config.canny_high)
        elif self.config.condition != "set":
            picture = drawn(self.config.condition, on_background(picture, "white"))
        # Black says nothing in a picture of edges, depth or a pose, so transparency lies on black.
        return on_background(picture, "black").convert("RGB")


class ControlNetTraining(Stage[Steers]):
    """Minimise the denoiser's loss over a copy of its way down, which sees a control picture."""

    name = "controlnet"
    kind = "ControlNet"
    config: ControlNetStage

    def __init__(
        self,
        config: ControlNetStage,
        bundle: ModelBundle,
        data: TuningSet,
        held_out: TuningSet,
        texts: Texts,
    ) -> None:
        super().__init__()
        self.config, self.data, self.held_out, self.texts, self.seed = config, data, held_out, texts, config.loop.seed
        self.bundle, self.conditions = bundle, Conditions(config, data.pictures)
        self.trained = new_controlnet(bundle, config)
        self.unet, self.vae, self.quantizer = bundle.unet, bundle.vae, bundle.quantizer
        self.freeze(*(part for part in ("unet", "vae", "quantizer") if getattr(self, part) is not None))
        self.unet.set_gradient_checkpointing(config.gradient_checkpointing)
        for part in self.trained.modules():
            if isinstance(part, Level):
                part.gradient_checkpointing = config.gradient_checkpointing
        drafts = bundle.quantizer if bundle.unet.config.draft_channels else None
        self.denoising = Denoising(config, bundle.denoiser_config, bundle.unet.config, drafts)

    @classmethod
    def from_run(cls, inputs: RunInputs) -> Iterator[Preparing | Ready]:
        refuse_prompts(inputs.table(cls.name, ControlNetStage), cls.name)
        tuning = yield from inputs.tuning(cls.name, ControlNetStage, config_of)
        with initial_weights(tuning.table.loop.seed):
            stage = cls(tuning.table, tuning.bundle, tuning.data, tuning.held_out, tuning.texts())
        yield Ready(stage, tuning.table)

    def batch(self, indices: Sequence[int]) -> Batch:
        return self._batch(self.data, self.data.shown(indices), BatchNoise(self.seed, indices))

    def forward(self, batch: Batch) -> Losses:
        weighted, plain = self.denoising.errors(self._steered(self.trained, batch["hint"]), batch)
        return {"loss": weighted.mean(), "mse": plain.mean().detach()}

    def validate(self, network: Steers) -> dict[str, float]:
        """Errors on the held-out pictures at fixed noise, steered and as the model makes them alone."""
        errors, alone = [], []
        for numbers in batches_of_one_shape(self.held_out, len(self.held_out), self.config.loop.batch_size):
            pictures, noise = self.held_out.plain(numbers), BatchNoise(self.seed, numbers)
            batch = self._batch(self.held_out, pictures, noise, exact=True)
            batch = {name: value.to(self.device) for name, value in batch.items()}
            errors.append(self.denoising.errors(self._steered(network, batch["hint"]), batch)[1])
            alone.append(self.denoising.errors(self.unet, batch)[1])
        mse = float(torch.cat(errors).mean())
        return {"score": mse, "mse": mse, "mse_alone": float(torch.cat(alone).mean())}

    def samples(self, network: Steers) -> Tensor | None:
        """For held-out captions: the control picture, the picture, and what the steered model paints."""
        numbers = shown(self.held_out, len(self.held_out), SHOWN)
        pictures = self.held_out.plain(numbers)
        latents = self.held_out.latents(pictures).to(self.device)
        hint = self.conditions.tensors(pictures).to(self.device)
        steered, empty = self._steered(network, hint), self.texts.states([""])
        preview = Previewer(steered, self.bundle.denoiser_config, self.denoising.schedule, empty)
        noise = BatchNoise(self.seed, numbers).normal("samples", latents.shape[1:]).to(self.device)
        draft = None
        if self.quantizer is not None and self.unet.config.draft_channels:
            draft = self.quantizer.draft_of(latents)
        found = preview.latents(self.texts.states([one.caption for one in pictures]), noise, draft)
        rows = [hint * 2 - 1, self.vae.decode(latents)[:, :3], self.vae.decode(found)[:, :3]]
        return torch.stack(rows, dim=1).flatten(0, 1)

    def export(self, network: Steers, path: Path) -> None:
        """Write the ControlNet as one file and, in a folder of the same name without suffix, as diffusers does."""
        tensors = {name: value.half() for name, value in network.state_dict().items()}
        save_tensors(path, tensors, {"component": "controlnet", "config": network.config.to_json()})
        folder = path.with_suffix("")
        folder.mkdir(exist_ok=True)
        write_json(folder / "config.json", controlnet_json(network.config, str(folder)))
        save_tensors(folder / WEIGHTS, tensors)

    def _steered(self, network: Steers, hint: Tensor) -> Steered:
        if isinstance(network, JointControlNet):
            return Steered(self.unet, network, control_latents(network, self.bundle, hint, tiled=False))
        return Steered(self.unet, network, network.embed(hint))

    def _batch(self, data: TuningSet, pictures: Sequence[Shown], noise: BatchNoise, *, exact: bool = False) -> Batch:
        """Latents, text, control pictures and noise; `exact` leaves captions and drafts as they are."""
        batch = data.draws(self.denoising, pictures, noise, exact=exact)
        batch["hint"] = self.conditions.tensors(pictures)
        dropped = noise.uniform("caption") < (0 if exact else self.config.caption_dropout)
        text = self.texts.states([one.caption for one in pictures])
        return batch | drop_captions(text, self.texts.states([""]), dropped).batch()


def config_of(bundle: ModelBundle, table: ControlNetStage) -> ControlNetConfig | JointControlNetConfig:
    """Sizes of a ControlNet for a model.

    Raises:
        ConfigError: the model's network has something that no ControlNet has.
    """
    sizes = bundle.unet.config
    if not isinstance(sizes, UNetConfig):
        layers = min(table.layers, sizes.layers - 1)
        dual = tuple(layer for layer in sizes.dual_layers if layer < layers)
        return JointControlNetConfig(transformer=sizes.model_copy(update={"layers": layers, "dual_layers": dual}))
    downscale = bundle.vae.config.downscale
    widths = HINT_WIDTHS[: downscale.bit_length()]
    config = ControlNetConfig(unet=sizes.model_copy(update={"draft_channels": 0}), hint_widths=widths)
    odd = sizes.pooled_grid_channels or sizes.picture_width or sizes.noise_levels or sizes.guidance_width
    if odd or not sizes.middle_layers or config.downscale != downscale:
        raise ConfigError(
            "controlnet.start",
            given=f"{table.start}, whose U-Net has a conditioning, a middle or a scale of its own",
            expected="a model in the shapes of Stable Diffusion 1, 2, XL or 3",
        )
    return config


@torch.no_grad()
def new_controlnet(bundle: ModelBundle, table: ControlNetStage) -> Steers:
    """A ControlNet that begins as a copy of the model's network and adds nothing: what it gives goes through layers
    that are zero (section 3.1).

    Raises:
        ConfigError: as `config_of`.
    """
    config, main = config_of(bundle, table), bundle.unet
    network: Steers = ControlNet(config) if isinstance(config, ControlNetConfig) else JointControlNet(config)
    given, own = main.state_dict(), network.state_dict()
    if isinstance(main, UNet):
        # A draft's channels stand behind those of the latents.
        given["conv_in.weight"] = given["conv_in.weight"][:, : main.config.in_channels]
    shared = {name: given[name] for name in own if name in given}
    network.load_state_dict({**own, **shared})
    if isinstance(network, ControlNet):
        ends: list[nn.Module] = [*network.controlnet_down_blocks, network.controlnet_mid_block]
        ends.append(network.controlnet_cond_embedding.conv_out)
    else:
        ends = [*network.controlnet_blocks, network.pos_embed_input.proj]
    for end in ends:
        zero_(end)
    return network
