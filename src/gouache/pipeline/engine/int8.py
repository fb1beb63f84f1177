"""U-Nets in 8-bit integers: NNCF's quantization after training, calibrated on what the network is given while it paints
a handful of prompts. It takes minutes and is done once for a model, and once for each set of LoRA files and weights.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import replace
from hashlib import sha256
from io import StringIO
from typing import TYPE_CHECKING

from torch import Tensor, nn

from gouache.models.bundle import ModelBundle
from gouache.models.unet import UNet
from gouache.pipeline.engine import store
from gouache.pipeline.engine.graph import Signature, cannot_run, weights_of
from gouache.pipeline.engine.names import unreported
from gouache.pipeline.engine.networks import EngineUNet, MakeGraph, Runner, graph_of
from gouache.pipeline.generate.generation import Progress
from gouache.pipeline.request import Request

if TYPE_CHECKING:
    import openvino

PROMPTS = (
    "a photograph of a red fox in the snow",
    "an oil painting of a harbour at night",
    "portrait of an old woman, soft light",
    "three blue cups on a white table",
)
"""Of different subjects and brightness, since ranges of activations are what calibration looks for."""
STEPS = 5
"""Of each prompt: the levels of noise from the first to the last."""
SMALL = 2
"""Pictures of a model for 512 pixels and more are painted at a half of its side: a quarter of the time."""


def int8_graph(bundle: ModelBundle) -> MakeGraph:
    """Makes the graph of a model's U-Net in 8-bit integers: from the disk, or calibrated anew and kept there.

    Args:
        bundle: with the U-Net as torch's, and LoRA files merged.
    """

    def make(
        network: nn.Module, signature: Signature, example: Mapping[str, Tensor], notes: list[str]
    ) -> openvino.Model:
        key = store.key_of(network, signature, f"int8 {PROMPTS} {STEPS} {SMALL} {weights_sha256(network)}")
        graph = store.find(key, notes)
        if graph is None:
            graph = quantized(graph_of(network, signature, example, notes), calibration(bundle, signature))
            store.keep(key, graph, f"int8 {signature.text}", notes)
        return graph

    return make


def weights_sha256(network: nn.Module) -> str:
    """Hash of all numbers of a network."""
    digest = sha256()
    for weight in weights_of(network).values():
        digest.update(weight.detach().contiguous().numpy().data)
    return digest.hexdigest()


class _Recorder(Runner):
    """Notes what a U-Net is given, and lets torch run it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network, lenient=True, notes=[])
        self.given: list[tuple[str, dict[str, Tensor]]] = []

    def __call__(self, signature: Signature, inputs: Mapping[str, Tensor], example: object) -> None:
        del example  # no graph is made
        self.given.append((signature.text, {name: one.clone() for name, one in inputs.items()}))


def calibration(bundle: ModelBundle, signature: Signature) -> list[list[Tensor]]:
    """What the model's U-Net is given while it paints `PROMPTS`, in the order of the signature's inputs; only calls of
    that signature.

    Raises:
        EngineError: it is never called so.
    """
    from gouache.pipeline.pipeline import Pipeline

    assert isinstance(bundle.unet, UNet), "others are refused when the model is loaded"
    recorder = _Recorder(bundle.unet)
    pipeline = Pipeline(replace(bundle, unet=EngineUNet(bundle.unet, recorder), refiner=None))
    width, height = bundle.defaults.width, bundle.defaults.height
    small = {"width": width // SMALL, "height": height // SMALL} if min(width, height) >= 512 else {}
    for seed, prompt in enumerate(PROMPTS):
        request = Request(prompt=prompt, seed=seed, num_inference_steps=STEPS).replace(small)
        for event in pipeline.run(request):
            if isinstance(event, Progress) and event.step == event.steps:
                break  # what follows is the decoder's
    found = [[given[name] for name in signature.inputs] for text, given in recorder.given if text == signature.text]
    if not found:
        raise cannot_run(bundle.unet, f"no call with {', '.join(signature.inputs)} while it is calibrated")
    return found


def sensitive(graph: openvino.Model) -> list[str]:
    """Operations that stay in float32: the first and the last convolution, whose rounding nothing evens out, and matrix
    products of vectors, that is the time embedding and what each block makes of it. They cost next to nothing."""
    operations = graph.get_ordered_ops()
    convolutions = [one for one in operations if one.get_type_name() == "Convolution"]
    vectors = [
        one
        for one in operations
        if one.get_type_name() == "MatMul" and one.get_output_partial_shape(0).rank.get_length() == 2
    ]
    return [one.get_friendly_name() for one in (*convolutions[:1], *convolutions[-1:], *vectors)]


def quantized(graph: openvino.Model, samples: list[list[Tensor]]) -> openvino.Model:
    """A graph with its matrix products and convolutions in 8-bit integers.

    Args:
        graph: in float32, weights inside.
        samples: what it is given, in the order of its inputs.
    """
    with unreported():
        import nncf

    quiet = logging.getLogger("nncf")
    before = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        data = nncf.Dataset([[tensor.contiguous().numpy() for tensor in sample] for sample in samples])
        # Its bars would go to standard output, which is the user's.
        with redirect_stdout(StringIO()):
            return nncf.quantize(
                graph,
                data,
                model_type=nncf.ModelType.TRANSFORMER,
                preset=nncf.QuantizationPreset.MIXED,
                subset_size=len(samples),
                ignored_scope=nncf.IgnoredScope(names=sensitive(graph)),
            )
    finally:
        quiet.setLevel(before)
