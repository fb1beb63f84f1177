"""From a request to pictures: one model, loaded, and the generator that paints with it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from gouache.diffusion.rng import ImageNoise, ImageSeed, seeds_of_batch
from gouache.diffusion.step import Denoise
from gouache.errors import InvalidInput
from gouache.models.bundle import ModelBundle
from gouache.pipeline.canvas import Canvas, keep_outside
from gouache.pipeline.conditioning import PromptPlan, PromptReader
from gouache.pipeline.decoding import decode, preview
from gouache.pipeline.events import Event, Painted, Progress
from gouache.pipeline.instruct import IMAGE_GUIDANCE, InstructDenoiser
from gouache.pipeline.machine import check_device, machine_of, model_ref
from gouache.pipeline.pixels import on_background
from gouache.pipeline.plan import resolve_request, size_notes
from gouache.pipeline.prepare import INSTRUCT, input_kind, prepare
from gouache.pipeline.recipe import Recipe, package_versions, pixels_digest
from gouache.pipeline.references import References
from gouache.pipeline.request import Request
from gouache.pipeline.sampling import Beside, PromptedDenoiser, digest_of, guidance_of, run_sampler, sigmas_of


class Pipeline:
    """One loaded model that paints requests.

    Args:
        bundle: the model; it is put into inference mode.
    """

    def __init__(self, bundle: ModelBundle) -> None:
        self.bundle = bundle.eval()

    @classmethod
    def load(cls, path: Path | str, *, device: str | None = None, dtype: torch.dtype | None = None) -> Self:
        """Load a model from disk.

        Args:
            path: a file or folder in any format that `gouache inspect` knows.
            device: "cpu", "cuda", "mps"; None takes a card if there is one.
            dtype: number format of the networks; None takes float32 on the CPU and float16 elsewhere.

        Raises:
            ModelNotFound, CheckpointError: nothing there, or nothing that can be loaded.
            DeviceUnavailable: no such device on this machine.
        """
        from gouache.checkpoints.load import load_bundle

        where = check_device(device)
        kind = dtype or (torch.float32 if where.type == "cpu" else torch.float16)
        return cls(load_bundle(Path(path), device=where, dtype=kind))

    def to(self, device: str | torch.device, dtype: torch.dtype | None = None) -> Self:
        """Move the model; gives itself back.

        Raises:
            DeviceUnavailable: no such device on this machine.
        """
        self.bundle.to(check_device(str(device)), dtype)
        return self

    def resolve(self, request: Request) -> Request:
        """The request with every gap filled from the model's defaults; see `plan.resolve_request`."""
        return resolve_request(request, self.bundle)

    def paint(self, request: Request, attachments: Mapping[str, bytes] | None = None) -> list[Painted]:
        """Paint all pictures of a request; arguments and errors as `run`."""
        return [event for event in self.run(request, attachments) if isinstance(event, Painted)]

    def run(self, request: Request, attachments: Mapping[str, bytes] | None = None) -> Iterator[Event]:
        """Paint, step by step. The request is checked before anything is returned; close the iterator to stop.

        Args:
            request: what to paint.
            attachments: bytes of the pictures that the request names; one that is missing here is read from its path.

        Returns:
            An iterator of `Progress` after each step and `Painted` for each picture.

        Raises:
            GouacheError: the request can't be painted by this model.
        """
        references = References(attachments)
        start = None if request.init_image is None else references.picture(request.init_image).size
        resolved = resolve_request(request, self.bundle, start)
        prepared = prepare(resolved, self.bundle, references)
        notes = [*size_notes(request, resolved, start), *prepared.notes]
        return self._run(resolved, prepared.canvas, notes, references.digests())

    def _run(
        self, request: Request, canvas: Canvas, notes: list[str], attachments: Mapping[str, str]
    ) -> Iterator[Event]:
        reader = PromptReader(self.bundle.text, request.emphasis, request.clip_skip)
        steps = len(canvas.tail(sigmas_of(request, self.bundle))) - 1
        positive = reader.plan(_with_style(request), max(steps, 1))
        negative = self._negative(request, reader, max(steps, 1))
        seeds = seeds_of_batch(request.seed or 0, request.count, request.subseed or 0, request.subseed_strength)
        together = request.count if request.determinism == "portable" else 1
        run = _Run(self.bundle, request, canvas, positive, negative, (*notes, *reader.notes), attachments)
        for first in range(0, request.count, together):
            yield from run.group(first, seeds[first : first + together])

    def _negative(self, request: Request, reader: PromptReader, steps: int) -> PromptPlan:
        plan = reader.plan(request.negative_prompt, steps)
        # SDXL's base model was trained to see zeros, not the encoding of an empty text.
        if request.negative_prompt == "" and self.bundle.family.startswith("sdxl") and self.bundle.size_numbers == 6:
            return plan.zeroed()
        return plan


class _Run:
    """One request on its way: what all its pictures share."""

    def __init__(
        self,
        bundle: ModelBundle,
        request: Request,
        canvas: Canvas,
        positive: PromptPlan,
        negative: PromptPlan,
        notes: tuple[str, ...],
        attachments: Mapping[str, str],
    ) -> None:
        self.bundle, self.request, self.canvas, self.notes = bundle, request, canvas, notes
        self.attachments = dict(attachments)
        self.positive, self.negative = positive, negative
        self.sigmas = canvas.tail(sigmas_of(request, bundle))

    @torch.no_grad()
    def group(self, first: int, seeds: list[ImageSeed]) -> Iterator[Event]:
        """Paint pictures `first`, first + 1, ... together, one network call for all."""
        start = time.perf_counter()
        noise = ImageNoise(seeds, mode="a1111" if self.request.determinism == "a1111" else "torch")
        digests: list[list[str]] = [[] for _ in seeds]
        latents = self.canvas.latents
        if latents is not None:
            latents = latents.expand(len(seeds), -1, -1, -1)
        for step, x, denoised, sigma in self._steps(noise):
            latents = x
            for k, row in enumerate(x):
                digests[k].append(digest_of(row))
            yield Progress(
                first, self.request.count, step, len(self.sigmas) - 1, sigma,
                lambda estimate=denoised: preview(self.bundle, estimate[:1]),  # type: ignore[misc]
            )  # fmt: skip
        if latents is None:
            raise InvalidInput("steps", given=0, expected="at least one step, or a starting picture")
        for k, (seed, steps) in enumerate(zip(seeds, digests, strict=True)):
            seconds = (time.perf_counter() - start) / len(seeds)
            yield self._finished(first + k, latents[k : k + 1], seed, tuple(steps), seconds)

    def _steps(self, noise: ImageNoise) -> Iterator[tuple[int, Tensor, Tensor, float]]:
        """(steps done, x, denoised, sigma) after each step."""
        if len(self.sigmas) < 2:
            return
        device = self.bundle.device
        down = self.bundle.vae.config.downscale
        height, width = (self.request.height or 0) // down, (self.request.width or 0) // down
        drawn = noise.initial((self.bundle.vae.config.latent_channels, height, width)).to(device)  # [B,C,h,w]
        x = self.canvas.start(drawn, float(self.sigmas[0]))
        prompted = self._prompted()
        denoise: Denoise = keep_outside(prompted, self.canvas)
        total = self.request.num_inference_steps or 1
        walk = run_sampler(self.request, denoise, x, self.sigmas, noise, steps=total)
        for step in walk:
            prompted.step = step.i + 2
            yield step.i + 1, step.x, step.denoised, step.sigma_next

    def _prompted(self) -> PromptedDenoiser | InstructDenoiser:
        if input_kind(self.bundle) == INSTRUCT and self.canvas.draft is not None:
            image_scale = self.request.image_guidance_scale
            return InstructDenoiser(
                self.bundle, self.positive, self.negative, self.canvas.draft,
                text_scale=self.request.guidance_scale or 0.0,
                image_scale=IMAGE_GUIDANCE if image_scale is None else image_scale,
            )  # fmt: skip
        numbers, negative_numbers = _size_numbers(self.bundle, self.request)
        beside = Beside(self.canvas.draft, numbers, negative_numbers)
        return PromptedDenoiser(self.bundle, self.positive, self.negative, guidance_of(self.request), beside)

    def _finished(
        self, picture: int, latents: Tensor, seed: ImageSeed, steps: tuple[str, ...], seconds: float
    ) -> Painted:
        image, notes = decode(self.bundle, latents, tiled=self.request.vae_tiling)
        image = self.canvas.finish(on_background(image, self.request.background or "white"))
        subseed = seed.subseed if seed.subseed_strength else None
        recipe = Recipe(
            request=self.request.replace(count=1, seed=seed.seed, subseed=subseed),
            model=model_ref(self.bundle),
            machine=machine_of(self.bundle),
            versions=package_versions(),
            attachments=self.attachments,
            notes=(*self.notes, *notes),
            steps=steps,
            pixels=pixels_digest(image),
        )
        return Painted(picture, image, recipe, seconds)


def _with_style(request: Request) -> str:
    if request.style is None:
        return request.prompt
    return f"{request.prompt}, {request.style} style" if request.prompt else f"{request.style} style"


def _size_numbers(bundle: ModelBundle, request: Request) -> tuple[Tensor | None, Tensor | None]:
    """What SDXL is told of the size: original height and width, crop, target; its refiner a beauty score instead."""
    width, height = request.width or 0, request.height or 0
    if bundle.size_numbers == 6:
        return torch.tensor([[height, width, 0, 0, height, width]], dtype=torch.float32), None
    if bundle.size_numbers == 5:
        good, bad = 6.0, 2.5
        rows = [torch.tensor([[height, width, 0, 0, score]], dtype=torch.float32) for score in (good, bad)]
        return rows[0], rows[1]
    return None, None
