"""Whether this machine's processor multiplies faster in bfloat16 than in float32."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from gouache.nn.torch_private import cpu_capabilities

AMD = "AuthenticAMD"


@dataclass(frozen=True, slots=True)
class Processor:
    """What decides in which number format a processor is fast.

    Attributes:
        vendor: as CPUID tells it, for example "GenuineIntel" or "AuthenticAMD"; empty where the system doesn't say.
        avx512_bf16: it has the vector instruction for products of bfloat16 numbers.
        amx_bf16: it has the matrix unit for them.
        arm_bf16: it is one of ARM's, with instructions for them.
    """

    vendor: str
    avx512_bf16: bool = False
    amx_bf16: bool = False
    arm_bf16: bool = False


def multiplies_faster_in_bf16(processor: Processor) -> bool:
    """Whether products in bfloat16 take less time than in float32.

    The matrix unit AMX has 16 times the rate of the vector units (Intel's optimization manual), ARM's BFMMLA four times
    that of FMLA (Neoverse V1's optimization guide). The vector instruction
    VDPBF16PS multiplies twice as many numbers as one in float32. AMD's cores run as many of them in a cycle, Intel's a
    quarter as many: there it has half the rate of float32 (docs/benchmarks.md), and saves memory alone.
    """
    return processor.amx_bf16 or processor.arm_bf16 or (processor.avx512_bf16 and processor.vendor == AMD)


@cache
def this_processor() -> Processor:
    """This machine's, as far as torch and the system can tell."""
    found = cpu_capabilities()
    return Processor(
        vendor=_vendor(),
        avx512_bf16=bool(found.get("avx512_bf16")),
        amx_bf16=bool(found.get("amx_bf16")),
        arm_bf16=bool(found.get("bf16")),
    )


def _vendor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.is_file() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id"))
    # Windows ends the processor's name with the vendor's.
    return next(named, "") or platform.processor().rpartition(", ")[2]
