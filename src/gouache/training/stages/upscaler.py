"""Independent of the others: an up-sampling decoder, which enlarges what the autoencoder decodes.

Its input is a picture downscaled by area and passed through the autoencoder, so it learns to undo that blur; its
target is the same crop large: rendered from its source, or cut out of a picture of one's own.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from gouache.checkpoints.formats.safetensors import save_tensors
from gouache.data.large import LargeSet, LargeStickers, OwnLarge, keep_large
from gouache.data.readers import Reading, ReadReport
from gouache.data.subsets.plan import plan_set
from gouache.errors import ConfigError
from gouache.models.configs import UpscalerConfig
from gouache.models.upscalers import Upscaler
from gouache.models.vae import AutoencoderKL
from gouache.pipeline.inputs.tensors import rgba_to_tensor, tensor_to_rgba
from gouache.training.batches.sources import open_stickers
from gouache.training.inputs import RunInputs, initial_weights, last_result, load_network
from gouache.training.losses import edge_loss, psnr
from gouache.training.stage import Batch, BatchNoise, Losses, Preparing, Ready, Stage
from gouache.training.stage_tables import UpscalerStage

VALIDATED, SHOWN = 32, 12
FILTERS = {"lanczos": Image.Resampling.LANCZOS, "bicubic": Image.Resampling.BICUBIC}


class UpscalerTraining(Stage[Upscaler]):
    """Small, blurred crops to large, sharp ones.

    Args:
        config: the stage's table.
        large: pictures at the target size; what they hold out is never trained on.
        vae: the autoencoder whose blur is to be undone.
        seed: of the run.
    """

    name = "upscaler"
    kind = "up-sampling decoder"
    part = "upscaler"
    packs_pictures = False
    config: UpscalerStage

    def __init__(self, config: UpscalerStage, large: LargeSet, vae: AutoencoderKL, seed: int) -> None:
        super().__init__()
        self.config, self.large, self.seed = config, large, seed
        self.data = large.endless(seed)
        self._check(large.size // config.network.scale)
        self.trained = Upscaler(config.network)
        self.vae = vae
        if config.network.image_channels != vae.config.image_channels:
            raise ConfigError(
                "upscaler.network.image_channels",
                given=config.network.image_channels,
                expected=f"the autoencoder's {vae.config.image_channels}",
            )
        self.freeze("vae")

    @classmethod
    def from_run(cls, inputs: RunInputs) -> Iterator[Preparing | Ready]:
        table, data = inputs.table(cls.name, UpscalerStage), inputs.config.data
        size = data.size * table.network.scale
        large: LargeSet
        if (inputs.data / "pictures.npy").is_file():
            inputs.sources()  # refuses first what no stage can learn from
            large = LargeStickers(open_stickers(inputs.data, data), size, inputs.run)
        else:
            large = yield from own_pictures(inputs, size)
        with initial_weights(table.loop.seed):
            vae = inputs.vae()
            stage = cls(table, large, vae, table.loop.seed)
        yield Ready(stage, table)

    @classmethod
    def model_parts(cls, inputs: RunInputs, others: Mapping[str, Any]) -> dict[str, Any]:
        """The up-sampling decoder, if it was trained."""
        del others
        path = last_result(inputs.run, cls.name)
        return {cls.part: load_network(Upscaler, UpscalerConfig, path)} if path.exists() else {}

    def _check(self, small: int) -> None:
        if self.config.crop > small:
            raise ConfigError("upscaler.crop", given=self.config.crop, expected=f"at most the picture's {small}")

    def batch(self, indices: Sequence[int]) -> Batch:
        """Crops of a few pictures: neighbouring numbers share a picture, which costs more than a crop.

        Returns:
            picture [P,C,h,w] small and latent_noise [P,Cl,h',w'] for each picture; place [B,3] (picture, top, left),
            amounts [B,3] (of the autoencoder's picture, of blur, of noise), grain and target for each crop.
        """
        config, crop = self.config, self.config.crop
        numbers = [index // config.crops for index in indices]
        distinct = sorted(set(numbers))
        large = self._tensor([self.data.picture(number) for number in distinct])  # [P,C,H,W]
        small = F.avg_pool2d(large, config.network.scale)  # [P,C,h,w]
        noise, whole = BatchNoise(self.seed, indices), BatchNoise(self.seed, distinct)
        rows = torch.tensor([distinct.index(number) for number in numbers])
        place = torch.stack([rows, *noise.integers("place", small.shape[-1] - crop + 1, (4,)).T], dim=1)  # [B,5]
        place, target = self._busier(large, place)
        latent = self.vae.config.latent_channels, *(side // self.vae.config.downscale for side in small.shape[-2:])
        latent_noise = whole.normal("latents", latent) * whole.uniform("latents' amount", (1, 1, 1))
        return {
            "picture": small,
            "latent_noise": latent_noise * config.latent_noise,
            "place": place,
            "target": target,
            "amounts": self._amounts_of(indices),
            "grain": noise.normal("grain", (config.network.image_channels, crop, crop)),
        }

    def forward(self, batch: Batch) -> Losses:
        config = self.config
        picture = self.trained(self._degraded(batch))
        target = batch["target"]
        # Pictures are clipped to [-1, 1] in the end: going further is no error where that is the target.
        beyond = ((target >= 1) & (picture > 1)) | ((target <= -1) & (picture < -1))
        picture, target = on_both_grounds(torch.where(beyond, target, picture)), on_both_grounds(target)
        losses = {"l1": (picture - target).abs().mean(), "edges": edge_loss(picture, target)}
        return {"loss": config.l1 * losses["l1"] + config.edges * losses["edges"], **losses}

    def validate(self, network: Upscaler) -> dict[str, float]:
        """PSNR in dB of held-out pictures enlarged 4 and 2 times, with and without the autoencoder's blur.

        For comparison, Lanczos and bicubic interpolation of the same small pictures. "score" is the first, negated.
        """
        figures: dict[str, list[Tensor]] = {"psnr": [], "psnr_half": [], "psnr_clean": []}
        for target, decoded, clean in zip(*self._held_out, strict=True):
            picture = network(decoded[None].to(self.device)).clamp(-1, 1).cpu()
            figures["psnr"].append(psnr(picture, target[None]))
            figures["psnr_half"].append(psnr(F.avg_pool2d(picture, 2), F.avg_pool2d(target[None], 2)))
            sharp = network(clean[None].to(self.device)).cpu()
            figures["psnr_clean"].append(psnr(sharp, target[None]))
        means = {name: float(torch.cat(values).mean()) for name, values in figures.items()}
        return {"score": -means["psnr"], **means, **self._interpolated}

    def samples(self, network: Upscaler) -> Tensor:
        """The middles of held-out pictures, three by three: Lanczos, this network, the truth."""
        shown = []
        step = max(1, len(self._held_out[0]) // SHOWN)
        for target, decoded, _ in list(zip(*self._held_out, strict=True))[::step][:SHOWN]:
            lanczos = self._resized(decoded, target.shape[-1], Image.Resampling.LANCZOS)
            picture = network(decoded[None].to(self.device))[0].cpu()
            edge = target.shape[-1] // 4
            shown += [one[:, edge:-edge, edge:-edge] for one in (lanczos, picture, target)]
        return torch.stack(shown)

    def export(self, network: Upscaler, path: Path) -> None:
        """Write the up-sampling decoder."""
        save_tensors(path, network.state_dict(), {"component": self.part, "config": network.config.to_json()})

    def _tensor(self, pictures: list[np.ndarray]) -> Tensor:
        return rgba_to_tensor(np.stack(pictures))[:, : self.config.network.image_channels]

    def _busier(self, large: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
        """Of two places each the one with more to see: place [B,5] -> place [B,3] and target [B,C,scale c,scale c]."""
        scale, chosen, targets = self.config.network.scale, [], []
        for row, *corners in place.tolist():
            options = []
            for top, left in (corners[:2], corners[2:]):
                size = self.config.crop * scale
                target = large[row, :, top * scale : top * scale + size, left * scale : left * scale + size]
                options.append((float(target.std()), (row, top, left), target))
            _, where, target = max(options, key=lambda option: option[0])
            chosen.append(where)
            targets.append(target)
        return torch.tensor(chosen), torch.stack(targets)

    def _amounts_of(self, indices: Sequence[int]) -> Tensor:
        """How much of what is done to each crop. [B,3]"""
        config, draws = self.config, BatchNoise(self.seed, indices).uniform("amounts", (5,))
        wholly, partly = draws[:, 0] < config.decoded, draws[:, 0] >= (1 + config.decoded) / 2
        share = torch.where(wholly, 1.0, torch.where(partly, draws[:, 1], 0.0))
        blur = torch.where(draws[:, 2] < config.degraded, draws[:, 3] * config.blur, 0.0)
        grain = torch.where(draws[:, 2] < config.degraded, draws[:, 4] * config.grain, 0.0)
        return torch.stack([share, blur, grain], dim=1)

    def _degraded(self, batch: Batch) -> Tensor:
        """The small crops, as the decoder and other pictures' makers would have them. [B,C,c,c]"""
        small, crop = batch["picture"], self.config.crop
        decoded = self._decoded(small, batch["latent_noise"].to(small)).to(small)
        places = batch["place"].tolist()
        both = [
            torch.stack([source[row, :, top : top + crop, left : left + crop] for row, top, left in places])
            for source in (small, decoded)
        ]
        share, blur, grain = batch["amounts"].to(small)[..., None, None, None].unbind(1)  # each [B,1,1,1]
        mixed = both[0] + share * (both[1] - both[0])
        blurred = F.avg_pool2d(mixed, 3, stride=1, padding=1, count_include_pad=False)
        return (mixed + blur * (blurred - mixed) + grain * batch["grain"]).clamp(-1, 1)

    @torch.no_grad()
    def _decoded(self, small: Tensor, noise: Tensor | None = None) -> Tensor:
        """Through the autoencoder, with noise on the latents. [P,C,h,w]"""
        latents = self.vae.normalise(self.vae.encode(small).mode())
        picture: Tensor = self.vae.decode(latents if noise is None else latents + noise)
        return picture.clamp(-1, 1)

    @cached_property
    def _held_out(self) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Held-out pictures: large; small after the autoencoder; small and clean. The small ones in 8 bits."""
        large = [self._tensor([picture])[0] for picture in self.large.held_out(VALIDATED)]
        clean = [_in_bytes(F.avg_pool2d(one, self.config.network.scale)) for one in large]
        decoded = [_in_bytes(self._decoded(one[None].to(self.device))[0].cpu()) for one in clean]
        return large, decoded, clean

    @cached_property
    def _interpolated(self) -> dict[str, float]:
        """What plain filters reach on the same pictures."""
        figures: dict[str, list[Tensor]] = {}
        for target, decoded, clean in zip(*self._held_out, strict=True):
            half = F.avg_pool2d(target, 2)
            for name, kind in FILTERS.items():
                cases = (("", decoded, target), ("_half", decoded, half), ("_clean", clean, target))
                for label, small, wanted in cases:
                    picture = self._resized(small, wanted.shape[-1], kind)
                    figures.setdefault(f"{name}{label}", []).append(psnr(picture[None], wanted[None]))
        return {name: float(torch.cat(values).mean()) for name, values in figures.items()}

    def _resized(self, small: Tensor, side: int, kind: Image.Resampling) -> Tensor:
        """By Pillow, from 8 bits to 8 bits. [C,side,side]"""
        picture = Image.fromarray(tensor_to_rgba(_with_alpha(small))).resize((side, side), kind)
        return rgba_to_tensor(np.asarray(picture))[: small.shape[0]]


def own_pictures(inputs: RunInputs, size: int) -> Generator[Preparing, None, OwnLarge]:
    """The large ones of anyone's pictures, kept in the run's folder.

    Raises:
        DataError: none is large enough; or as `read_pictures`.
    """
    # What they show doesn't matter here: one without a caption is as good as any.
    data = inputs.config.data
    reading = Reading(missing=data.missing_caption or "a picture", masks=data.masks)
    plan = plan_set(inputs.data, reading=reading)
    folder = inputs.run / f"large-{size}-{plan.mark}"
    if not folder.is_dir():
        report = ReadReport()
        for _ in keep_large(plan.subsets, folder, size, report):
            pass
        yield Preparing(0, 0, f"{folder}: {report.summary()}")
    return OwnLarge(folder, size)


def on_both_grounds(picture: Tensor) -> Tensor:
    """With transparency, the colours on black next to those on white: a fringe that white hides is an error too.

    Args:
        picture: [B,3,H,W] stays as it is; [B,4,H,W] with colours on white becomes [B,7,H,W]; in [-1,1].
    """
    if picture.shape[1] != 4:
        return picture
    return torch.cat([picture, picture[:, :3] + picture[:, 3:] - 1], dim=1)


def _with_alpha(picture: Tensor) -> Tensor:
    return picture if picture.shape[0] == 4 else torch.cat([picture, torch.ones_like(picture[:1])])


def _in_bytes(picture: Tensor) -> Tensor:
    """The picture [C,H,W] as a file would hold it."""
    return rgba_to_tensor(tensor_to_rgba(_with_alpha(picture)))[: picture.shape[0]]
