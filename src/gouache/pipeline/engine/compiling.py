"""Networks compiled by torch itself: torch.compile, whose Inductor writes C++ for a CPU and Triton for CUDA.

Every way and every size that a network is called in is compiled for itself. One program for all sizes would be made
by the first of them, and a picture would then depend on what was painted before it.
"""

from __future__ import annotations

import os
import subprocess
import types
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile

import torch
from torch import Tensor, nn

from gouache.environment import Variable
from gouache.errors import EngineError
from gouache.pipeline.engine.graph import Call, Signature
from gouache.pipeline.engine.names import COMPILE, compiler
from gouache.pipeline.output.recipe import cache_file

KEPT = 8
"""Programs of a network that stay in memory, such as those of both passes of an enlarged picture."""
CACHE = Variable.TORCHINDUCTOR_CACHE_DIR
CURE = "Use --engine torch."


def compiled_folder() -> Path:
    """Where compiled programs are kept: torch's variable, else `compiled` in the user's cache folder of gouache.

    Torch's own default lies in the folder for temporary files, where others may put programs that we would run.
    """
    named = os.environ.get(CACHE)
    return Path(named) if named else cache_file().parent / "compiled"


def compiler_version() -> str:
    """The first line of what the C++ compiler says of itself; the bits of a picture depend on it."""
    there = compiler()
    if there is None:
        return ""
    told = subprocess.run(
        [there, "--version"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    return told.stdout.partition("\n")[0].strip()


@dataclass
class Compiled:
    """Runs one network as torch compiles it: when it is first called in some way and at some size.

    On a CPU the weights become a part of the program, in the order that oneDNN multiplies them in; so other weights, as
    those of a model with a LoRA, are another network and another program.

    Attributes:
        network: torch's, in inference mode.
        notes: what users are told.
        failed: never; a network that can't be compiled is an error.
    """

    network: nn.Module
    notes: list[str]
    failed: bool = False
    _programs: dict[str, Callable[[Mapping[str, Tensor]], tuple[Tensor, ...]]] = field(default_factory=dict, repr=False)

    def __call__(self, signature: Signature, inputs: Mapping[str, Tensor], example: object) -> tuple[Tensor, ...]:
        """The outputs.

        Args:
            signature: how the network is called.
            inputs: by the signature's names.
            example: of no use here: the inputs themselves are compiled for.

        Raises:
            EngineError: it can't be compiled.
        """
        del example
        sizes = [f"{name} {tuple(one.shape)} {one.dtype} {one.device}" for name, one in inputs.items()]
        key = "\n".join([signature.text, str(torch.get_num_threads()), *sizes])
        if (program := self._programs.pop(key, None)) is not None:
            self._programs[key] = program
            return program(inputs)
        _choose_folder()
        program = program_of(self.network, signature.call, number=len(self._programs))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch about itself
            try:
                outputs = program(inputs)
            # Whatever goes wrong in there is of dozens of classes, most of them private.
            except Exception as error:
                raise cannot_compile(self.network, error) from error
        self._programs[key] = program
        while len(self._programs) > KEPT:
            del self._programs[next(iter(self._programs))]
        return outputs


def program_of(
    network: nn.Module, call: Call, *, number: int = 0
) -> Callable[[Mapping[str, Tensor]], tuple[Tensor, ...]]:
    """What will be compiled when it is first called, for that size alone.

    Args:
        network: in inference mode.
        call: how it is called.
        number: goes into the program's name.
    """

    def evaluate(inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        return call(network, inputs)

    # Torch counts what it compiled by the code of the function, and gives up, without an error, after eight programs.
    own = evaluate.__code__.replace(co_name=f"evaluate_{number}")
    alone = types.FunctionType(own, evaluate.__globals__, own.co_name, closure=evaluate.__closure__)
    on_cpu = all(weight.device.type == "cpu" for weight in network.parameters())
    options: dict[str, str | int | bool | Callable[..., object]] = {"freezing": True} if on_cpu else {}
    return torch.compile(alone, fullgraph=True, dynamic=False, options=options)


def _choose_folder() -> None:
    """Tell torch where to keep what it compiles, as torch tells the processes that compile for it: by the environment.

    Raises:
        EngineError: the folder can't be made or written.
    """
    folder = compiled_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise EngineError(
            f"engine {COMPILE}",
            given=f"the folder {folder}: {error.strerror}",
            expected="a folder where compiled programs can be written",
            cure=f"Make it writable, name another by {CACHE}, or use --engine torch.",
        ) from error
    os.environ[CACHE] = str(folder)


def cannot_compile(network: nn.Module, error: Exception) -> EngineError:
    """The error of a network that torch can't compile; what the C++ compiler complains of stands first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if ": error:" in line or "fatal error" in line] or lines or [type(error).__name__]
    full = isinstance(error, OSError) or any("No space left" in line for line in lines)
    return EngineError(
        f"engine {COMPILE}",
        given=f"{type(network).__name__}: {told[0][:200]}",
        expected="a network that torch.compile can compile here",
        cure=f"Make room in {compiled_folder()}, or use --engine torch." if full else CURE,
    )
