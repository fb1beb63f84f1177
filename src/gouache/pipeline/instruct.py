"""Instruct models: guided by a text and by the picture they change, each with its own weight."""

from __future__ import annotations

from torch import Tensor, zeros_like

from gouache.models.bundle import ModelBundle
from gouache.models.denoiser import Condition, stack
from gouache.pipeline.conditioning import Encoded, PromptPlan

IMAGE_GUIDANCE = 1.5


class InstructDenoiser:
    """D(x, sigma) = uncond + s_i (picture - uncond) + s_t (text and picture - picture)
    (Brooks et al. 2023, arXiv:2211.09800, equation 3).

    Args:
        bundle: the model.
        positive, negative: the encoded prompts.
        draft: the picture's latents as the network takes them. [1,C,h,w]
        text_scale, image_scale: the two weights.
    """

    def __init__(
        self,
        bundle: ModelBundle,
        positive: PromptPlan,
        negative: PromptPlan,
        draft: Tensor,
        *,
        text_scale: float,
        image_scale: float,
    ) -> None:
        self.bundle, self.positive, self.negative, self.draft = bundle, positive, negative, draft
        self.text_scale, self.image_scale = text_scale, image_scale
        self.step = 1

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """x [B,C,h,w], sigma [] -> denoised [B,C,h,w]."""
        text = self.positive.at(self.step)[0][1]
        other = self.negative.at(self.step)[0][1]
        blank = zeros_like(self.draft)
        conditions = [self._condition(text, self.draft), self._condition(other, self.draft)]
        conditions.append(self._condition(other, blank))
        if text.context.shape == other.context.shape:
            rows = stack([condition.expand(len(x)) for condition in conditions])
            full, picture, neither = self.bundle.denoiser(x.repeat(3, 1, 1, 1), sigma, rows).chunk(3)
        else:
            full, picture, neither = (self.bundle.denoiser(x, sigma, condition) for condition in conditions)
        return neither + self.image_scale * (picture - neither) + self.text_scale * (full - picture)

    def _condition(self, text: Encoded, draft: Tensor) -> Condition:
        return Condition(context=text.context, mask=text.mask, pooled=text.pooled, draft=draft)
