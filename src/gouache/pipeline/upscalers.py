"""ESRGAN-class upscalers from a weight file: both published layouts of names, read without unpickling."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from gouache.checkpoints.opening import open_source
from gouache.errors import IncompatibleCheckpoint, UnknownFamily
from gouache.models.rrdb import RRDBConfig, RRDBNet
from gouache.pipeline.pixels import extend, to_image, to_tensor

WRAPPERS = ("params_ema.", "params.", "state_dict.", "model_state_dict.")
TILE, MARGIN = 192, 16
_OLD = {
    "model.0.": "conv_first.",
    "model.3.": "conv_up1.",
    "model.6.": "conv_up2.",
    "model.8.": "conv_hr.",
    "model.10.": "conv_last.",
}
_OLD_DENSE = re.compile(r"model\.1\.sub\.(\d+)\.RDB([123])\.conv([1-5])\.0\.(weight|bias)")
_OLD_TRUNK = re.compile(r"model\.1\.sub\.(\d+)\.(weight|bias)")


def load_upscaler(path: Path) -> Callable[[Image.Image], Image.Image]:
    """Load an upscaler.

    Args:
        path: a .safetensors, .pth or .pt file of ESRGAN, Real-ESRGAN or one of their many relatives; told by content.

    Returns:
        A function from an RGB picture to a larger one.

    Raises:
        ModelNotFound, CheckpointError: no file, or none that can be read.
        UnknownFamily: the tensors belong to another kind of network.
    """
    source = open_source(path)
    names = modern_names(source.header.tensors)
    if "conv_first.weight" not in names or "conv_last.weight" not in names:
        raise UnknownFamily(
            str(path), given=f"{len(names)} tensors of another network", expected="an ESRGAN (RRDB) file",
            cure="Use an ESRGAN or Real-ESRGAN file; compact and transformer upscalers are not read.",
        )  # fmt: skip
    tensors = {modern: source.read(name).float() for modern, name in names.items()}
    network = RRDBNet(config_of(tensors))
    wanted = network.state_dict()
    wrong = sorted(set(wanted) ^ set(tensors)) or [key for key in wanted if wanted[key].shape != tensors[key].shape]
    if wrong:
        raise IncompatibleCheckpoint(str(path), given=f"{len(wrong)} names that differ: {wrong[:4]}", expected="RRDB's")
    network.load_state_dict(tensors, assign=True)
    return Upscaler(network.eval())


def modern_names(names: Mapping[str, object]) -> dict[str, str]:
    """Real-ESRGAN's name of every tensor -> the name in the file, for either layout and any wrapper."""
    wrapper = next((w for w in WRAPPERS if any(name.startswith(w) for name in names)), "")
    return {_modern(name.removeprefix(wrapper)): name for name in names if name.startswith(wrapper)}


def _modern(name: str) -> str:
    dense, trunk = _OLD_DENSE.fullmatch(name), _OLD_TRUNK.fullmatch(name)
    if dense:
        return f"body.{dense[1]}.rdb{dense[2]}.conv{dense[3]}.{dense[4]}"
    if trunk:
        return f"conv_body.{trunk[2]}"
    for old, new in _OLD.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def config_of(tensors: Mapping[str, Tensor]) -> RRDBConfig:
    """The network's sizes, from its tensors' shapes."""
    first = tensors["conv_first.weight"]
    colours = tensors["conv_last.weight"].shape[0]
    fold = round((first.shape[1] / colours) ** 0.5)
    blocks = 1 + max((int(name.split(".")[1]) for name in tensors if name.startswith("body.")), default=0)
    growth = tensors["body.0.rdb1.conv1.weight"].shape[0] if "body.0.rdb1.conv1.weight" in tensors else 32
    return RRDBConfig(
        scale=max(1, 4 // fold), channels=first.shape[0], growth=growth, blocks=blocks, image_channels=colours
    )


class Upscaler:
    """Runs an RRDB network over a picture in tiles with a margin, so that memory stays bounded.

    Args:
        network: in inference mode.
    """

    def __init__(self, network: RRDBNet) -> None:
        self.network = network

    @torch.no_grad()
    def __call__(self, picture: Image.Image) -> Image.Image:
        """An RGB picture, `scale` times as large."""
        scale, fold = self.network.config.scale, self.network.config.fold
        wide = [-(-side // fold) * fold - side for side in picture.size]
        padded = extend(picture, MARGIN, MARGIN, MARGIN + wide[0], MARGIN + wide[1])
        pixels = to_tensor(padded, 3)[None] / 2 + 0.5  # [1,3,H,W]
        out = torch.empty(1, 3, (picture.height + wide[1]) * scale, (picture.width + wide[0]) * scale)
        for top in range(0, picture.height, TILE):
            for left in range(0, picture.width, TILE):
                part = pixels[..., top : top + TILE + 2 * MARGIN, left : left + TILE + 2 * MARGIN]
                large = self.network(part)[..., MARGIN * scale : -MARGIN * scale, MARGIN * scale : -MARGIN * scale]
                rows, columns = large.shape[-2:]
                out[..., top * scale : top * scale + rows, left * scale : left * scale + columns] = large
        return to_image(out[0] * 2 - 1).crop((0, 0, picture.width * scale, picture.height * scale))
