"""Every stage of training, in the order in which they build on one another. A new stage is one more line here."""

from __future__ import annotations

from typing import Any

from gouache.training.stage import Stage
from gouache.training.stages.clip import ClipTraining
from gouache.training.stages.controlnet import ControlNetTraining
from gouache.training.stages.denoiser import DenoiserTraining
from gouache.training.stages.instruct import InstructTraining
from gouache.training.stages.inversion import InversionTraining
from gouache.training.stages.lora import LoraTraining
from gouache.training.stages.prior import PriorTraining
from gouache.training.stages.tokens import TokensTraining
from gouache.training.stages.upscaler import UpscalerTraining
from gouache.training.stages.vae import VaeTraining

STAGES: dict[str, type[Stage[Any]]] = {
    "vae": VaeTraining,
    "clip": ClipTraining,
    "tokens": TokensTraining,
    "prior": PriorTraining,
    "denoiser": DenoiserTraining,
    "lora": LoraTraining,
    "inversion": InversionTraining,
    "controlnet": ControlNetTraining,
    "instruct": InstructTraining,
    "upscaler": UpscalerTraining,
}
