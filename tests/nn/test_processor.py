"""Which processors are faster in bfloat16, as measured on some and published of the others."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from gouache.nn.processor import Processor, multiplies_faster_in_bf16, this_processor

INTEL, AMD = "GenuineIntel", "AuthenticAMD"


@pytest.mark.parametrize(
    ("processor", "faster"),
    [
        (Processor(INTEL), False),
        (Processor(INTEL, avx512_bf16=True), False),  # measured: 85 GFLOP/s against 171 in float32
        (Processor(INTEL, avx512_bf16=True, amx_bf16=True), True),
        (Processor("", arm_bf16=True), True),
        (Processor(AMD), False),
        (Processor(AMD, avx512_bf16=True), True),  # measured: docs/log.md
        (Processor("", avx512_bf16=True), False),  # nobody knows whose it is
    ],
)
def test_the_instructions_and_their_maker_decide(processor: Processor, faster: bool) -> None:
    assert multiplies_faster_in_bf16(processor) is faster


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lists the flags")
def test_this_machine_is_what_its_system_says() -> None:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    found = this_processor()
    assert (found.avx512_bf16, found.amx_bf16) == ("avx512_bf16" in flags, "amx_bf16" in flags)
    assert found.vendor in next((line for line in lines if line.startswith("vendor_id")), "")
