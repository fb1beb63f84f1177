"""Loads networks strictly: every tensor of the network is in the file, in its shape, and nothing is left over.

Networks are built on the meta device, without memory; tensors come from the file's own pages where type and layout
allow, else one at a time, so that loading takes little more memory than the weights themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite, isnan

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gouache.checkpoints.detect import Part, left_out_reason
from gouache.checkpoints.formats.gguf import check_readable
from gouache.checkpoints.formats.header import Header, TensorInfo, few, open_source
from gouache.checkpoints.formats.safetensors import TORCH_DTYPES, Int8Source, WeightSource
from gouache.checkpoints.shapes import POINTWISE, THIRDS, ShapeChange, Speller, Spelling
from gouache.config import Config
from gouache.errors import CorruptCheckpoint, IncompatibleCheckpoint, InvalidInput
from gouache.models.conditioning.controlnet import ControlNet
from gouache.models.conditioning.controlnet_union import ControlNetUnion
from gouache.models.conditioning.image_encoder import ImageEncoder
from gouache.models.conditioning.ip_adapter import IPAdapter
from gouache.models.conditioning.sd3_controlnet import JointControlNet
from gouache.models.conditioning.t2i_adapter import T2IAdapter
from gouache.models.configs import (
    ControlNetConfig,
    ImageEncoderConfig,
    IPAdapterConfig,
    JointControlNetConfig,
    MMDiTConfig,
    PriorConfig,
    QuantizerConfig,
    SentenceEncoderConfig,
    T2IAdapterConfig,
    T5Config,
    TextEncoderConfig,
    UNetConfig,
    UpscalerConfig,
    VAEConfig,
)
from gouache.models.family import family_named
from gouache.models.mmdit import MMDiT
from gouache.models.prior import Prior
from gouache.models.quantizer import Quantizer
from gouache.models.text.clip import TextEncoder
from gouache.models.text.sentence import SentenceEncoder
from gouache.models.text.t5 import T5Encoder
from gouache.models.unet import UNet
from gouache.models.upscalers import Upscaler
from gouache.models.vae import AutoencoderKL


@dataclass(slots=True)
class LoadReport:
    """How a network's tensors and a file's fit together.

    Attributes:
        missing: names (the file's) that the network needs and the file lacks.
        unexpected: names that the file has and nothing needs.
        misshaped: name -> (found shape, needed shape).
        left_out: reason -> how many tensors of the file were knowingly not loaded.
    """

    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    misshaped: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)

    def check(self, where: str, part: str) -> None:
        """Raise `IncompatibleCheckpoint`, which lists the names, unless all fit."""
        lists = (
            ("missing", self.missing),
            ("unexpected", self.unexpected),
            ("of another shape", [f"{name} {list(a)} for {list(b)}" for name, (a, b) in self.misshaped.items()]),
        )
        misfits = [f"{len(names)} {what}: {few(names)}" for what, names in lists if names]
        if misfits:
            raise IncompatibleCheckpoint(
                where,
                given=f"tensors that do not fit the {part}: {'; '.join(misfits)}",
                expected="every tensor of the network once, and no other",
                cure="The file is incomplete, or of a model that gouache doesn't know.",
            )


def build(config: Config) -> nn.Module:
    """The network of a config, on the current default device.

    Raises:
        InvalidInput: no network has such a config.
    """
    if isinstance(config, UNetConfig):
        return UNet(config)
    if isinstance(config, MMDiTConfig):
        return MMDiT(config)
    if isinstance(config, VAEConfig):
        return AutoencoderKL(config)
    if isinstance(config, TextEncoderConfig):
        return TextEncoder(config)
    if isinstance(config, T5Config):
        return T5Encoder(config)
    if isinstance(config, SentenceEncoderConfig):
        return SentenceEncoder(config)
    if isinstance(config, PriorConfig):
        return Prior(config)
    if isinstance(config, QuantizerConfig):
        return Quantizer(config)
    if isinstance(config, UpscalerConfig):
        return Upscaler(config)
    if isinstance(config, ControlNetConfig):
        return ControlNetUnion(config) if config.union_types else ControlNet(config)
    if isinstance(config, JointControlNetConfig):
        return JointControlNet(config)
    if isinstance(config, T2IAdapterConfig):
        return T2IAdapter(config)
    if isinstance(config, ImageEncoderConfig):
        return ImageEncoder(config)
    if isinstance(config, IPAdapterConfig):
        return IPAdapter(config)
    raise InvalidInput("config", given=type(config).__name__, expected="the config of a network")


class _WithoutInitialValues(TorchFunctionMode):
    """Leaves out torch.nn.init: tensors without memory take no values, and torch would import its compiler to find
    that out: 800 modules, more than a second."""

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        given = kwargs or {}
        if getattr(func, "__module__", None) == nn.init.__name__:
            return args[0] if args else given["tensor"]
        return func(*args, **given)


def build_on_meta(config: Config) -> nn.Module:
    """The network without memory for its tensors: names, shapes and nothing else."""
    with torch.device("meta"), _WithoutInitialValues():
        return build(config)


@dataclass(frozen=True, slots=True)
class Plan:
    """Where each tensor of a network comes from.

    Attributes:
        part: the part it is planned for.
        spellings: our name -> what the file calls it, with the part's prefix.
        shapes: our name -> shape.
        report: what does not fit.
    """

    part: Part
    spellings: Mapping[str, Spelling]
    shapes: Mapping[str, tuple[int, ...]]
    report: LoadReport


def plan(part: Part, network: nn.Module, family: str) -> Plan:
    """Match a network's tensors with a part's, by name and shape; nothing is read."""
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    spell = _prefixed(_speller(part), part.prefix)
    spellings = {name: spell(name) for name in shapes}
    report = LoadReport()
    found = part.header.tensors
    if _lacks_identity(part, shapes, spellings, family):
        spellings[PROJECTION] = Spelling(spellings[BESIDE_PROJECTION].name, ShapeChange.IDENTITY)
    for name, shape in shapes.items():
        spelling = spellings[name]
        if spelling.name not in found:
            report.missing.append(spelling.name)
        elif not _fits(found[spelling.name], shape, spelling.change):
            report.misshaped[spelling.name] = (found[spelling.name].shape, shape)
    used = {spelling.name for spelling in spellings.values()}
    for name in found:
        if name.startswith(part.prefix) and name not in used:
            reason = left_out_reason(name, {part.name: part}, family)
            if reason:
                report.left_out[reason] = report.left_out.get(reason, 0) + 1
            else:
                report.unexpected.append(name)
    return Plan(part, spellings, shapes, report)


PROJECTION, BESIDE_PROJECTION = "text_projection.weight", "final_layer_norm.weight"


def _lacks_identity(
    part: Part, shapes: Mapping[str, tuple[int, ...]], spellings: Mapping[str, Spelling], family: str
) -> bool:
    """Whether a CLIP of Stable Diffusion 3 comes without its projection: the first one's is the identity, which folders
    hold and single files don't."""
    if not family_named(family).text_rows or not isinstance(part.config, TextEncoderConfig):
        return False
    absent = PROJECTION in shapes and spellings[PROJECTION].name not in part.header.tensors
    return absent and len(set(shapes[PROJECTION])) == 1


def _speller(part: Part) -> Speller:
    """What the part's file calls our tensors."""
    if part.naming != "ours":
        from gouache.checkpoints.keymaps import speller

        return speller(part.config, part.naming)
    if isinstance(part.config, VAEConfig):
        return lambda name: Spelling(name, ShapeChange.POINTWISE if POINTWISE.match(name) else ShapeChange.NONE)
    return Spelling


def _prefixed(spell: Speller, prefix: str) -> Speller:
    def spell_with_prefix(name: str) -> Spelling:
        spelling = spell(name)
        return Spelling(prefix + spelling.name, spelling.change)

    return spell_with_prefix


def _fits(info: TensorInfo, shape: tuple[int, ...], change: ShapeChange) -> bool:
    if change is ShapeChange.IDENTITY:
        return True
    if change is ShapeChange.POINTWISE:
        return info.shape in (shape, (*shape, 1, 1))
    if change is ShapeChange.TRANSPOSED:
        return info.shape == shape[::-1]
    if change in THIRDS:
        return info.shape == (3 * shape[0], *shape[1:])
    return info.shape == shape


def changed(tensor: Tensor, change: ShapeChange, shape: tuple[int, ...]) -> Tensor:
    """A file's tensor as our network holds it: a view of all of it where that is possible."""
    if change is ShapeChange.POINTWISE:
        return tensor.reshape(shape)
    if change is ShapeChange.TRANSPOSED:
        return tensor.T.contiguous()
    if change is ShapeChange.IDENTITY:
        return torch.eye(shape[0], dtype=tensor.dtype)
    if change is ShapeChange.HALVES_SWAPPED:
        return torch.cat(tensor.chunk(2)[::-1])
    if change in THIRDS:
        return tensor[THIRDS.index(change) * shape[0] :][: shape[0]].clone()
    return tensor


def plan_network(part: Part, family: str) -> tuple[nn.Module, Plan]:
    """A part's network without memory, and where its tensors come from; nothing is read.

    Raises:
        IncompatibleCheckpoint: tensors are missing, unexpected or of another shape (all are listed), or stored in a
            type of ggml that can't be dequantized.
    """
    network = build_on_meta(part.config)
    planned = plan(part, network, family)
    planned.report.check(str(part.header.path), part.name)
    check_readable(part.header, [spelling.name for spelling in planned.spellings.values()])
    return network, planned


def load_network(
    part: Part,
    source: WeightSource,
    family: str,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> tuple[nn.Module, LoadReport]:
    """Build a part's network and fill it, strictly.

    Args:
        part: which.
        source: the opened file, or shards, that hold it.
        family: of the model; it decides which tensors are knowingly left out.
        device: where the network goes.
        dtype: the type of its numbers; None keeps the file's.

    Raises:
        IncompatibleCheckpoint: tensors are missing, unexpected or of another shape; all are listed.
        CorruptCheckpoint: a tensor holds NaN or infinity, or the file is damaged.
    """
    network, planned = plan_network(part, family)
    fill(network, planned, source, device=device, dtype=dtype)
    return network.eval(), planned.report


def fill(
    network: nn.Module,
    planned: Plan,
    source: WeightSource,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    channels_last: bool = False,
) -> None:
    """Give a network without memory its tensors; arguments and errors as in `load_network`.

    `channels_last` lays convolutions out as `nn.layers.channels_last` does: later it would leave holes in memory.
    """
    state = {
        name: read_planned(source, planned, name, dtype, channels_last=channels_last).to(device=device)
        for name in sorted(planned.shapes, key=_file_order(planned))
    }
    # Assigned, not copied: what needs no conversion stays a view of the file's own pages.
    network.load_state_dict(state, assign=True)


def _file_order(planned: Plan) -> Callable[[str], int]:
    """Read in the order in which the bytes lie."""
    order = {name: i for i, name in enumerate(planned.part.header.tensors)}
    return lambda name: order[planned.spellings[name].name]


def read_planned(
    source: WeightSource,
    planned: Plan,
    name: str,
    dtype: torch.dtype | None,
    *,
    mapped: bool = True,
    channels_last: bool = False,
) -> Tensor:
    """Read one of our tensors as it was planned, in `dtype` (None: the file's), and see that it is finite.

    Whole numbers, as the tokens that a prior remembers, keep their type: bfloat16 would round them. `mapped` as
    `WeightSource.read`, `channels_last` as `fill`.

    Raises:
        CorruptCheckpoint: it holds NaN or infinity, or the file is damaged.
    """
    spelling, shape = planned.spellings[name], planned.shapes[name]
    stored = _torch_dtype(source, spelling.name)
    converts = dtype is not None and stored.is_floating_point and stored != dtype
    relaid = channels_last and len(shape) == 4
    layout = torch.channels_last if relaid else torch.contiguous_format
    moves = converts or relaid
    # Pages that were looked at count as memory, so a tensor that is converted is read into memory that is given back;
    # the result's own memory is taken first, so that what is given back lies behind it in one piece.
    kind = dtype if converts else stored
    moved = torch.empty(shape, dtype=kind, memory_format=layout) if moves else None
    tensor = changed(source.read(spelling.name, mapped=mapped and not moves), spelling.change, shape)
    if moved is not None:
        tensor = moved.copy_(tensor)
    in_order = tensor.permute(0, 2, 3, 1) if relaid else tensor
    _check_finite(in_order, spelling.name, str(source.header.path), dtype if converts else None)
    return tensor


def _torch_dtype(source: WeightSource, name: str) -> torch.dtype:
    return TORCH_DTYPES[source.header.tensors[name].dtype]


def _check_finite(tensor: Tensor, name: str, where: str, dtype: torch.dtype | None) -> None:
    """NaN and infinity would paint black: better to hear of it here. Minimum and maximum find both in one pass."""
    if not tensor.numel() or not tensor.is_floating_point():
        return
    numbers = tensor.float() if tensor.dtype.itemsize == 1 else tensor
    low, high = (float(bound) for bound in torch.aminmax(numbers))
    if not (isfinite(low) and isfinite(high)):
        kind = "NaN" if isnan(low) else "infinity"
        raise CorruptCheckpoint(
            where,
            given=f"{kind} in tensor {name!r}" + (f" as {dtype}" if dtype else ""),
            expected="finite numbers",
            cure="Load it in float32."
            if dtype and kind == "infinity"
            else "The file is damaged or badly trained; get it again.",
        )


def open_part(header: Header) -> WeightSource:
    """Open the file, or all shards, that a header describes, as one source."""
    sources = [open_source(file) for file in header.files or (header.path,)]
    source = sources[0] if len(sources) == 1 else _Shards(header, sources)
    return Int8Source(source, header) if "I8" in header.stored.values() else source


class _Shards:
    """Several files as one source."""

    def __init__(self, header: Header, sources: list[WeightSource]) -> None:
        self.header = header
        self._home = {name: source for source in sources for name in source.header.tensors}

    def read(self, name: str, *, mapped: bool = True) -> Tensor:
        return self._home[name].read(name, mapped=mapped)
