"""What this machine and installation have, for people who look for a fault."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from gouache.checkpoints.hub import model_folders
from gouache.environment import Variable
from gouache.nn.processor import this_processor
from gouache.pipeline.engine.compiling import compiled_folder, compiler_version
from gouache.pipeline.engine.dtypes import automatic_in_words
from gouache.pipeline.engine.names import COMPILE, COMPILER_CURE, ENGINES, EXTRAS, OPENVINO, is_installed
from gouache.pipeline.engine.store import graphs_folder, summary
from gouache.pipeline.output.recipe import processor_name
from gouache.pipeline.pipeline import shipped_model

PACKAGES = (
    "gouache",
    "torch",
    "numpy",
    "safetensors",
    "tokenizers",
    "huggingface_hub",
    "pillow",
    "pydantic",
    "typer",
    "rich",
    "imageio",
    "vtracer",
    "spandrel",
    "openvino",
    "nncf",
)
FactTable = dict[str, str]


def checkup() -> dict[str, FactTable]:
    """Versions, processor, devices, memory, engines and model folders; every value as text."""
    return {
        "versions": _versions(),
        "processor": _processor(),
        "devices": _devices(),
        "memory": _memory(),
        "engines": _engines(),
        "models": _models(),
    }


def _versions() -> FactTable:
    found = {"python": platform.python_version(), "system": platform.platform()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def _processor() -> FactTable:
    return {
        "name": processor_name(),
        "cores": str(os.cpu_count()),
        "threads torch uses": str(torch.get_num_threads()),
        "threads that wait": "sleep" if os.environ.get(Variable.OMP_WAIT_POLICY, "").lower() == "passive" else "spin",
        "instructions torch uses": torch.backends.cpu.get_cpu_capability(),
        "bfloat16 in hardware": "yes" if _has_flag("avx512_bf16", "amx_bf16") else "no",
        "--dtype auto": automatic_in_words(this_processor()),
    }


def _has_flag(*names: str) -> bool:
    flags = next((line.split() for line in _proc_lines("cpuinfo") if line.startswith("flags")), [])
    return any(name in flags for name in names)


def _proc_lines(name: str) -> list[str]:
    path = Path("/proc") / name
    return path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []


def _devices() -> FactTable:
    found = {"cpu": "yes"}
    for k in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(k)
        found[f"cuda:{k}"] = f"{gpu.name}, {gpu.total_memory / 2**30:.1f} GiB"
    if torch.cuda.device_count() == 0:
        built = torch.version.cuda
        found["cuda"] = "no GPU found" if built else "this torch is built without it"
    found["mps"] = "yes" if torch.backends.mps.is_available() else "no"
    return found


def _engines() -> FactTable:
    """Which engines `--engine` takes here, and what is kept for them."""
    missing = {name: f"not installed: pip install '{extra}'" for name, extra in EXTRAS.items()}
    missing[COMPILE] = f"no C++ compiler: {COMPILER_CURE}"
    found = {name: what if is_installed(name) else missing[name] for name, what in ENGINES.items()}
    if is_installed(COMPILE):
        found["C++ compiler"] = compiler_version()
        found["compiled programs"] = f"{compiled_folder()}; the folder may be deleted"
    if is_installed(OPENVINO):
        count, size = summary()
        found["kept graphs"] = f"{count} in {graphs_folder()}, {size / 2**20:.1f} MiB; the folder may be deleted"
    return found


def _memory() -> FactTable:
    lines = {line.partition(":")[0]: line.partition(":")[2].split() for line in _proc_lines("meminfo")}
    found = {
        name: f"{int(lines[key][0]) / 2**20:.1f} GiB"
        for name, key in (("total", "MemTotal"), ("free", "MemAvailable"))
        if key in lines
    }
    found["free disk here"] = f"{shutil.disk_usage(Path.cwd()).free / 2**30:.1f} GiB"
    return found


def _models() -> FactTable:
    shipped = shipped_model()
    found = {"shipped": str(shipped) if shipped else "none in this build"}
    for folder in model_folders():
        found[str(folder)] = f"{len(list(folder.iterdir()))} entries" if folder.is_dir() else "not there yet"
    found["python"] = sys.executable
    return found
