"""Upscalers: the up-sampling decoder of a model, ESRGAN files, and with the package spandrel many other kinds.

Weight files are read without unpickling, and told by content.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from gouache.checkpoints.detect import Identity
from gouache.checkpoints.formats.header import open_source
from gouache.checkpoints.formats.safetensors import WeightSource, load_tensors
from gouache.checkpoints.identify import CARD_KEY, identify
from gouache.checkpoints.networks import load_network, open_part
from gouache.errors import IncompatibleCheckpoint, InvalidInput, MissingDependency, UnknownFamily
from gouache.models.configs import UpscalerConfig
from gouache.models.upscalers import RRDBConfig, RRDBNet, Upscaler
from gouache.nn.layers import channels_last
from gouache.pipeline.inputs.tensors import to_image, to_tensor
from gouache.pipeline.request import Seamless

LANCZOS, OWN = "lanczos", "model"
"""Upscalers that are no file: the filter, and the model's own up-sampling decoder."""
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


class PictureUpscaler:
    """Runs a network over a picture in tiles with a margin, so that memory stays bounded and no seam shows.

    Args:
        network: [1,C,h,w] in [-1,1] -> [1,C,scale h,scale w].
        scale: how much larger the result is.
        channels: 3, or 4 for a network that takes transparency.
        margin: pixels around a tile that the network sees too.
        multiple: what width and height of its input must be multiples of.
    """

    def __init__(
        self,
        network: Callable[[Tensor], Tensor],
        scale: int,
        *,
        channels: int = 3,
        margin: int = MARGIN,
        multiple: int = 1,
    ) -> None:
        self.network, self.scale, self.channels = network, scale, channels
        self.margin, self.multiple = -(-margin // multiple) * multiple, multiple

    @torch.no_grad()
    def __call__(self, picture: Image.Image, *, halve: int = 1, seamless: Seamless = "none") -> Image.Image:
        """The picture, `scale` / `halve` times as large.

        Args:
            picture: mode RGB, or RGBA where the network has four channels; the result has the same.
            halve: each pixel of the result is the mean of so many by so many; a divisor of the scale.
            seamless: which edges meet: the network then looks around them.
        """
        scale, margin = self.scale, self.margin
        wide = [-(-side // self.multiple) * self.multiple - side for side in picture.size]
        padded = _padded(picture, margin, (wide[0], wide[1]), seamless)
        pixels = to_tensor(padded, self.channels)[None]  # [1,C,H,W]
        result = Image.new(picture.mode, (picture.width * scale // halve, picture.height * scale // halve))
        for top in range(0, picture.height, TILE):
            for left in range(0, picture.width, TILE):
                part = pixels[..., top : top + TILE + 2 * margin, left : left + TILE + 2 * margin]
                large = self.network(part)[..., margin * scale : -margin * scale, margin * scale : -margin * scale]
                tile = F.avg_pool2d(large, halve) if halve > 1 else large
                # The first three of four channels are the picture on white; a picture without alpha is all there.
                image = to_image(tile[0] if picture.mode == "RGBA" else tile[0, :3])
                result.paste(image, (left * scale // halve, top * scale // halve))
        return result


def _padded(picture: Image.Image, margin: int, wide: tuple[int, int], seamless: Seamless) -> Image.Image:
    """A margin on every side, and `wide` more columns and rows: repeated pixels, or those around the edge."""
    across, down = ("wrap" if seamless in (axis, "both") else "edge" for axis in ("x", "y"))
    pixels = np.pad(np.asarray(picture), ((0, 0), (margin, margin + wide[0]), (0, 0)), mode=across)  # type: ignore[call-overload]
    pixels = np.pad(pixels, ((margin, margin + wide[1]), (0, 0), (0, 0)), mode=down)  # type: ignore[call-overload]
    return Image.fromarray(pixels, picture.mode)


def upscaler_of(network: Upscaler) -> PictureUpscaler:
    """A model's up-sampling decoder, ready for pictures.

    It always computes in float32 on the CPU, wherever the model is: the same pixels then give the same larger picture.
    """
    config = network.config
    ready = channels_last(copy.deepcopy(network).to("cpu", torch.float32).eval())

    def run(pixels: Tensor) -> Tensor:
        large: Tensor = ready(pixels)
        return large.clamp(-1.0, 1.0)

    return PictureUpscaler(run, config.scale, channels=config.image_channels, margin=config.radius)


def load_upscaler(path: Path) -> PictureUpscaler:
    """Load an upscaler.

    Args:
        path: a .safetensors, .pth or .pt file of ESRGAN, Real-ESRGAN or one of their many relatives; what stage
            `upscaler` left, or a model that has such a part; with spandrel installed, any file that it knows.

    Raises:
        ModelNotFound, CheckpointError: no file, or none that can be read.
        MissingDependency: another kind of network, and the package spandrel is not installed.
        UnknownFamily: a network that spandrel doesn't know either.
    """
    if path.is_dir():
        return load_part(path, identify(path))
    source = open_source(path)
    if CARD_KEY in source.header.metadata:
        return load_part(path, identify(path))
    if source.header.metadata.get("component") == "upscaler":
        return _own_file(path, source.header.metadata.get("config", "{}"))
    names = modern_names(source.header.tensors)
    if "conv_first.weight" in names and "conv_last.weight" in names and "conv_body.weight" in names:
        return _esrgan(path, source, names)
    return _by_spandrel(path, source)


def load_part(path: Path, identity: Identity) -> PictureUpscaler:
    """The up-sampling decoder of a whole model.

    Raises:
        InvalidInput: the model has none.
        CheckpointError: its weights are damaged.
    """
    part = identity.parts.get("upscaler")
    if part is None:
        raise InvalidInput(
            str(path),
            given=f"a {identity.family} model without an upscaler",
            expected="a model that brings one",
            cure="Use lanczos or an upscaler's own file.",
        )
    network, _ = load_network(part, open_part(part.header), identity.family, dtype=torch.float32)
    if not isinstance(network, Upscaler):
        raise IncompatibleCheckpoint(str(path), given=type(network).__name__, expected="an up-sampling decoder")
    return upscaler_of(network)


def _own_file(path: Path, config: str) -> PictureUpscaler:
    network = Upscaler(UpscalerConfig.from_json(config, where=str(path)))
    _check_names(path, network.state_dict(), tensors := load_tensors(path))
    network.load_state_dict(tensors)
    return upscaler_of(network)


def _esrgan(path: Path, source: WeightSource, names: Mapping[str, str]) -> PictureUpscaler:
    tensors = {modern: source.read(name).float() for modern, name in names.items()}
    network = RRDBNet(config_of(tensors))
    _check_names(path, network.state_dict(), tensors)
    network.load_state_dict(tensors, assign=True)
    network.eval()
    scale, fold = network.config.scale, network.config.fold
    return PictureUpscaler(lambda pixels: network(pixels / 2 + 0.5) * 2 - 1, scale, multiple=fold)


def _check_names(path: Path, wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    wrong = sorted(set(wanted) ^ set(found)) or [key for key in wanted if wanted[key].shape != found[key].shape]
    if wrong:
        raise IncompatibleCheckpoint(
            str(path), given=f"{len(wrong)} names or shapes that differ: {wrong[:4]}", expected="the network's"
        )


def _by_spandrel(path: Path, source: WeightSource) -> PictureUpscaler:
    """Any architecture that spandrel knows, from tensors that we have read."""
    given = f"{len(source.header.tensors)} tensors of a network that is neither ESRGAN nor gouache's own"
    try:
        from spandrel import ImageModelDescriptor, ModelLoader, UnsupportedModelError
    except ImportError as error:
        raise MissingDependency(
            str(path),
            given=given,
            expected=f"an ESRGAN file, or the package spandrel ({error})",
            cure="Install it with `pip install 'gouache[upscalers]'`, beside your torch's torchvision.",
        ) from error
    try:
        names = _unwrapped(source.header.tensors)
        model = ModelLoader("cpu").load_from_state_dict({bare: source.read(name) for bare, name in names.items()})
    except UnsupportedModelError as error:
        raise UnknownFamily(str(path), given=given, expected="a network that spandrel knows") from error
    if not isinstance(model, ImageModelDescriptor) or (model.input_channels, model.output_channels) != (3, 3):
        raise UnknownFamily(str(path), given=f"a {model.architecture.name} network", expected="one from RGB to RGB")
    model.eval().float()
    return PictureUpscaler(lambda pixels: model(pixels / 2 + 0.5) * 2 - 1, model.scale)


def modern_names(names: Mapping[str, object]) -> dict[str, str]:
    """Real-ESRGAN's name of every tensor -> the name in the file, for either layout and any wrapper."""
    return {_modern(bare): name for bare, name in _unwrapped(names).items()}


def _unwrapped(names: Mapping[str, object]) -> dict[str, str]:
    """The network's name of every tensor -> the name in the file, which may wrap the network's state in others."""
    wrapper = next((w for w in WRAPPERS if any(name.startswith(w) for name in names)), "")
    return {name.removeprefix(wrapper): name for name in names if name.startswith(wrapper)}


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
