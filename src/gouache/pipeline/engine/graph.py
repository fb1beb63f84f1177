"""From a network of ours to a graph that OpenVINO runs: torch.export, OpenVINO's translation, and the numbers put in.

A graph is made without numbers: every weight is one of its inputs. So it depends on the network's class and shapes
alone, takes half a megabyte on the disk, and serves every model of those shapes and every LoRA merged into one. When it
is compiled, the weights' inputs become constants that share the network's memory.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from gouache.errors import EngineError
from gouache.pipeline.engine.names import OPENVINO, unreported

if TYPE_CHECKING:
    import openvino

LARGEST_DIFFERENCE = 1e-3
"""Of a graph's output in float32 from the network's, as a share of the largest number there."""
Call = Callable[[Callable[..., object], Mapping[str, Tensor]], tuple[Tensor, ...]]
"""Calls a network with inputs by name."""


@dataclass(frozen=True, slots=True)
class Signature:
    """One way to call a network: its graph depends on it.

    Attributes:
        network: name of the network's class.
        inputs: names of the tensors, in their order.
        call: how they become arguments.
        settings: whatever else is built into the graph.
    """

    network: str
    inputs: tuple[str, ...]
    call: Call
    settings: str = ""

    @property
    def text(self) -> str:
        """As a part of a key."""
        return f"{self.network} {' '.join(self.inputs)} {self.settings}"


class _WeightsAsInputs(nn.Module):
    """A network whose weights follow its inputs. It isn't a submodule: torch.export would take its weights along."""

    def __init__(self, network: nn.Module, names: Sequence[str], signature: Signature) -> None:
        super().__init__()
        self.__dict__["network"], self.names, self.signature = network, tuple(names), signature

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(self.signature.inputs, tensors, strict=False))
        network: nn.Module = self.__dict__["network"]
        weights = dict(zip(self.names, tensors[len(given) :], strict=True))

        def _called(*arguments: object, **options: object) -> object:
            return torch.func.functional_call(network, weights, arguments, options)

        return self.signature.call(_called, given)


def weights_of(network: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer of a network by its name, in a fixed order."""
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}


def translated(network: nn.Module, signature: Signature, example: Mapping[str, Tensor]) -> openvino.Model:
    """The graph of a network, with its weights as inputs behind those of the signature; every size but that of
    channels is open.

    Args:
        network: in inference mode.
        signature: how it is called.
        example: inputs whose open sizes are all different, and none 1: torch takes equal ones for one size.

    Raises:
        EngineError: torch can't export it, or OpenVINO can't translate it.
    """
    with unreported():
        import openvino
        import openvino.tools.ovc  # what `convert_model` is in

    weights = weights_of(network)
    tensors = [example[name] for name in signature.inputs]
    sizes = tuple(_open_sizes(tensor) for tensor in tensors) + tuple({} for _ in weights)
    module = _WeightsAsInputs(network, list(weights), signature)
    try:
        with torch.no_grad(), _quiet():
            program = torch.export.export(module, (*tensors, *weights.values()), dynamic_shapes=(sizes,), strict=False)
            graph = openvino.convert_model(program)
    # Whatever goes wrong in there is of dozens of classes, most of them private.
    except Exception as error:
        raise cannot_run(network, str(error) or type(error).__name__) from error
    if len(graph.get_parameters()) != len(tensors) + len(weights):
        raise cannot_run(network, f"a graph of {len(graph.get_parameters())} inputs out of {len(tensors)}")
    return graph


def _open_sizes(tensor: Tensor) -> dict[int, object]:
    """Rows of the batch, places and tokens; not channels, which are fixed."""
    axes = {4: (0, 2, 3), 3: (0, 1), 2: (0, 1), 1: (0,)}[tensor.ndim]
    return dict.fromkeys(axes, torch.export.Dim.AUTO)


def with_weights(graph: openvino.Model, network: nn.Module) -> openvino.Model:
    """Put a network's numbers into its graph, in place; the tensors share its memory where they lie in rows.

    Raises:
        EngineError: the graph is of another network.
    """
    from openvino import PartialShape, opset13

    weights = weights_of(network)
    places = graph.get_parameters()[-len(weights) :]
    for place, (name, weight) in zip(places, weights.items(), strict=True):
        shape = place.get_output_partial_shape(0)
        if not shape.compatible(PartialShape(list(weight.shape))):
            raise cannot_run(network, f"a graph with {shape} for {name}")
        numbers = weight.detach().contiguous().numpy()
        place.output(0).replace(opset13.constant(numbers, shared_memory=True).output(0))
        graph.remove_parameter(place)
    return graph


def compiled(graph: openvino.Model) -> openvino.CompiledModel:
    """A graph made ready for this processor, for as many threads as torch uses."""
    import openvino

    settings = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,
    }
    return openvino.compile_model(graph, "CPU", settings)


def check(graph: openvino.Model, network: nn.Module, signature: Signature, example: Mapping[str, Tensor]) -> None:
    """Compare a graph, weights inside, with the network itself: a translation may be wrong without a word.

    Raises:
        EngineError: they differ by more than rounding.
    """
    tensors = [example[name] for name in signature.inputs]
    found = run(compiled(graph).create_infer_request(), tensors)
    with torch.no_grad():
        expected = signature.call(network, example)
    for one, other in zip(found, expected, strict=True):
        wrong = one.shape != other.shape
        if wrong or not bool((one - other).abs().max() <= LARGEST_DIFFERENCE * other.abs().max()):
            raise cannot_run(network, "a graph that gives other numbers than the network")


def run(request: openvino.InferRequest, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """One evaluation: inputs in the graph's order -> its outputs."""
    arrays = [tensor.detach().contiguous().numpy() for tensor in tensors]
    request.infer(arrays, share_inputs=True)
    return tuple(torch.from_numpy(tensor.data.copy()) for tensor in request.output_tensors)


def cannot_run(network: object, why: str) -> EngineError:
    """The error of a network that the engine can't take."""
    short = " ".join(why.split())
    return EngineError(
        f"engine {OPENVINO}",
        given=f"{type(network).__name__}: {short[:200]}",
        expected="a network that it can translate",
        cure="Use --engine torch, or auto, which then takes torch by itself.",
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings of torch about itself, which are nobody's business here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
