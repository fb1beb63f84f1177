"""The engines by name, and which of them is here. Needs no torch."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from gouache.environment import Variable
from gouache.errors import MissingDependency, unknown_name

TORCH, OPENVINO, OPENVINO_INT8, COMPILE, AUTO = "torch", "openvino", "openvino-int8", "compile", "auto"
ENGINES = {
    TORCH: "every network by torch",
    OPENVINO: "the U-Net, ControlNets and the decoder by OpenVINO, in float32",
    OPENVINO_INT8: "as openvino, the U-Net in 8-bit integers: other pictures, in less time; calibrating takes minutes",
    COMPILE: "the U-Net and ControlNets by torch.compile, on a CPU or CUDA; compiling takes minutes",
    AUTO: "openvino where it is installed and the model large enough to repay compiling, else torch",
}
"""What `--engine` and `Pipeline.load` take."""
PACKAGES = {OPENVINO: ("openvino",), OPENVINO_INT8: ("openvino", "nncf")}
"""What an engine needs installed."""
EXTRAS = {OPENVINO: "gouache[cpu]", OPENVINO_INT8: "gouache[int8]"}
"""What installs it."""
COMPILER_CURE = "Install one, such as by apt-get install g++, or name yours in the environment variable CXX"


def check_engine(name: str) -> None:
    """Refuse an engine that there is none of, or that isn't installed.

    Raises:
        UnknownName: no engine is called so.
        MissingDependency: its packages, or the C++ compiler that it calls, aren't here.
    """
    if name not in ENGINES:
        raise unknown_name("engine", name, ENGINES)
    for package in _missing(name):
        raise MissingDependency(
            f"engine {name}",
            given=f"no package {package}",
            expected="it installed",
            cure=f"Run: pip install '{EXTRAS[name]}', or leave out the engine.",
        )
    if name == COMPILE and compiler() is None:
        raise MissingDependency(
            f"engine {name}",
            given=f"no C++ compiler {_compiler_name()}",
            expected="one that can be called",
            cure=f"{COMPILER_CURE}, or leave out the engine.",
        )


@contextmanager
def unreported() -> Iterator[None]:
    """What is imported meanwhile finds no `openvino_telemetry`, by which OpenVINO's and NNCF's tools tell their makers
    of every use, unasked; they do without it."""
    name = "openvino_telemetry"
    there = sys.modules.get(name)
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]
        if there is not None:
            sys.modules[name] = there


def is_installed(name: str) -> bool:
    """Whether everything that an engine needs is here."""
    return not _missing(name) and (name != COMPILE or compiler() is not None)


def compiler() -> str | None:
    """The C++ compiler that torch.compile calls; None where there is none."""
    return shutil.which(_compiler_name())


def _compiler_name() -> str:
    """As torch takes it: by the environment variable CXX, else the system's usual one."""
    return os.environ.get(Variable.CXX) or {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")


def _missing(name: str) -> list[str]:
    return [package for package in PACKAGES.get(name, ()) if find_spec(package) is None]


def version_of(package: str) -> str:
    """The version of an installed package; empty for one that isn't."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
