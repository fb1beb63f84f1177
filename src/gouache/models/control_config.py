"""The config of a ControlNet, apart from the network: reading a file's header needs no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from gouache.config import Config
from gouache.models.configs import UNetConfig


class ControlNetConfig(Config):
    """Everything that decides a ControlNet's tensors. The defaults belong to Stable Diffusion 1.x."""

    unet: UNetConfig = UNetConfig()
    """The network it steers, of which it has the way down and the middle; depths of transformers may be its own."""
    hint_channels: int = Field(default=3, gt=0)
    """Channels of the control picture."""
    hint_widths: tuple[int, ...] = Field(default=(16, 32, 96, 256), min_length=1)
    """Widths of the convolutions that bring the control picture to the latents' size; each after the first halves."""
    hint_order: Literal["rgb", "bgr"] = "rgb"
    """Order of the control picture's channels."""
    pooled_residuals: bool = False
    """Whether only the means of its residuals over all pixels are added: the picture's content, not its structure."""

    @property
    def downscale(self) -> int:
        """How many pixels of the control picture one latent pixel covers along an edge."""
        return int(2 ** (len(self.hint_widths) - 1))
