"""Models and LoRA files that were distilled to few steps, and the settings that their publishers paint them with.

Weights rarely show a distillation: names and shapes are those of the teacher, but for networks that are told their
guidance scale. Else what tells it is a scheduler's file, the file's own metadata, or its name, in falling order of
trust: the first two set the defaults of a request, a name is only worth a note. No torch: headers are read without it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from gouache.models.family import SD2, SD3

Source = Literal["scheduler", "network", "metadata", "name"]

TITLES = ("modelspec.title", "modelspec.architecture", "ss_output_name")
"""Keys of a file's metadata in which trainers and publishers name it."""
COUNTED = re.compile(r"(?<![\d.])(\d{1,2})[-_ ]?steps?(?![a-z])")
MOST_COUNTED = 16
"""Above this many steps a name's number speaks of something else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FewSteps:
    """How a distilled model is painted.

    Attributes:
        method: the distillation, as people call it.
        sampler, schedule: our names.
        steps: as many as it was distilled to, where its name says so.
        guidance_scale: 1 = none.
        most_guidance: what still fits.
        eta: the sampler's own; None leaves it.
        predicts: what its network's output means, if not noise.
        source: what told it.
        told: that, in words: the key and its value, or the name.
    """

    method: str
    sampler: str
    schedule: str
    steps: int
    guidance_scale: float = 1.0
    most_guidance: float = 2.0
    eta: float | None = None
    predicts: Literal["", "x0"] = ""
    source: Source = "name"
    told: str = ""

    @property
    def sets_defaults(self) -> bool:
        """Whether a request that leaves sampler, schedule, steps and guidance open gets these."""
        return self.source in ("network", "metadata")

    @property
    def settings(self) -> str:
        """The settings in words."""
        steps = f"{self.steps} step{'s' * (self.steps > 1)}"
        eta = "" if self.eta is None else f", eta {self.eta:g}"
        return f"{self.sampler}, schedule {self.schedule}, {steps}, guidance {self.guidance_scale:g}{eta}"

    @property
    def summary(self) -> str:
        """A few words for lists: what it is, what told it, and the settings, which are the defaults or only fit."""
        held = "painted with" if self.source != "name" else "fitting:"
        return f"{self.method} by {self.told}, {held} {self.settings}"

    def advice(self, what: str) -> str:
        """A note for people: what something is taken to be, and what it is painted with."""
        x0 = f"; its network predicts {self.predicts}" if self.predicts else ""
        return f"{what} is {self.method} by {self.told}, which is painted with {self.settings}{x0}"

    def fits(self, sampler: str, steps: int, guidance_scale: float) -> bool:
        """Whether settings are near enough that there is nothing to say."""
        consistent = self.sampler not in _CONSISTENCY or sampler in _CONSISTENCY
        return consistent and steps <= max(8, 2 * self.steps) and guidance_scale <= self.most_guidance


_CONSISTENCY = ("lcm", "tcd")
"""Samplers that go to the end at every step; a consistency model learnt nothing else."""
TOLD_SCALE = 8.5
"""What latent consistency models that are told a guidance scale are told without a word, as by diffusers' pipeline."""
TOLD_CONSISTENCY = FewSteps(
    method="LCM",
    sampler="lcm",
    schedule="lcm",
    steps=4,
    guidance_scale=TOLD_SCALE,
    most_guidance=14.0,
    source="network",
    told="its U-Net, which is told the guidance scale",
)
"""Of such a model whose files name no scheduler."""


def few_steps_of(names: Mapping[str, str], metadata: Mapping[str, str], *, family: str = "") -> FewSteps | None:
    """What a file's metadata, else its names, say of a distillation; None if they say nothing.

    The methods: LCM (Luo et al. 2023, arXiv:2310.04378, and its LoRA files, arXiv:2311.05556), TCD (Zheng et al. 2024,
    arXiv:2402.19159), SDXL-Turbo (Sauer et al. 2023, arXiv:2311.17042), SD 3.5 Large Turbo, SDXL-Lightning (Lin et al.
    2024, arXiv:2402.13929), Hyper-SD (Ren et al. 2024, arXiv:2404.13686), DMD2 (Yin et al. 2024, arXiv:2405.14867);
    settings as on their model cards.

    Args:
        names: name -> what it is in words, as ``"the file's name"``.
        metadata: of the file.
        family: of the model; SD-Turbo steps without noise.
    """
    for key in TITLES:
        text = metadata.get(key, "")
        found = method_of(text, family=family) if text else None
        if found is not None:
            return replace(found, source="metadata", told=f"its metadata ({key} = {text[:60]!r})")
    for name, what in names.items():
        found = method_of(name, family=family)
        if found is not None:
            return replace(found, source="name", told=f"{what} ({name[:60]!r})")
    return None


def method_of(text: str, *, family: str = "") -> FewSteps | None:
    """The distillation that a text names, with the steps that it names (methods and sources: `few_steps_of`, 2026)."""
    # One case, and a blank wherever a word may end: sd_xl_turbo, DreamShaperXL_Lightning, realVis-v40Lightning.
    words = re.sub(r"[^a-z0-9.]+", " ", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", text).lower())
    number = COUNTED.search(words)
    counted = int(number[1]) if number is not None and 0 < int(number[1]) <= MOST_COUNTED else 0
    if family == SD3.name:  # its networks are those of a flow: of the methods below none is meant
        turbo = re.search(r"\bturbo\b", words) is not None
        return FewSteps(method="Turbo", sampler="euler", schedule="model", steps=counted or 4) if turbo else None
    if re.search(r"\bhyper ?(sd|sdxl|sd15|xl)\b", words):
        return _hyper(words, counted)
    if re.search(r"\blightning\b", words) and (counted or re.search(r"xl|sd", words)):
        made = FewSteps(method="SDXL-Lightning", sampler="euler", schedule="trailing", steps=counted or 4)
        return replace(made, predicts="x0" if counted == 1 else "")
    if re.search(r"\bdmd ?2?\b", words):
        return FewSteps(method="DMD2", sampler="lcm", schedule="trailing", steps=counted or 4)
    if re.search(r"\btcd\b", words):
        return FewSteps(method="TCD", sampler="tcd", schedule="lcm", steps=counted or 4, eta=0.3)
    if re.search(r"\blcm\b|\blatent consistency\b", words):
        return FewSteps(method="LCM", sampler="lcm", schedule="lcm", steps=counted or 4)
    if re.search(r"\bturbo\b", words) and re.search(r"xl|sd", words):
        # Merges with a Turbo model want a few steps more than the published one.
        published = re.search(r"\b(sd ?xl|sdxl|sd) turbo\b", words) is not None
        sampler = "euler" if family == SD2.name else "euler_ancestral"
        return FewSteps(method="Turbo", sampler=sampler, schedule="trailing", steps=counted or (1 if published else 4))
    return None


def _hyper(words: str, counted: int) -> FewSteps:
    """Hyper-SD: one step by TCD, more by DDIM from the top; the files named CFG keep their guidance."""
    if counted == 1:
        return FewSteps(method="Hyper-SD", sampler="tcd", schedule="lcm", steps=1, eta=1.0)
    plain = FewSteps(method="Hyper-SD", sampler="ddim", schedule="trailing", steps=counted or 8)
    return replace(plain, guidance_scale=5.0, most_guidance=8.0) if re.search(r"\bcfg\b", words) else plain
