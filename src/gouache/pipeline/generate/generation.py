"""One request on its way to pictures: drafts, passes of the sampler, decoding, recipes; and the events it yields."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import islice
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor, nn

from gouache.diffusion.rng import ImageNoise, ImageSeed, NoiseMode, seeds_of_batch
from gouache.diffusion.samplers.names import sampler_info
from gouache.diffusion.samplers.step import Denoise, Step
from gouache.errors import InvalidInput
from gouache.models.bundle import ModelBundle
from gouache.pipeline.generate.a1111_procedure import (
    PromptClock,
    entry_scale,
    follows,
    prompt_clock,
    second_walk,
)
from gouache.pipeline.generate.decode import decode, ground_of, preview
from gouache.pipeline.generate.draft import draft, level_unused, list_on_draft, own_draft, parts_of
from gouache.pipeline.generate.enlarge import enlarge_picture, find_upscaler
from gouache.pipeline.generate.guided import (
    IMAGE_GUIDANCE,
    InstructDenoiser,
    NetworkInputs,
    PromptedDenoiser,
    counted_steps,
    denoiser_of,
    levels_of,
    run_sampler,
    size_conditions,
)
from gouache.pipeline.generate.guiders import guidance_of, guiders_of
from gouache.pipeline.generate.passes import Part, Pass, Walk, steering
from gouache.pipeline.generate.refiner import Relay, handed_over, zeros_of
from gouache.pipeline.generate.sampler_settings import scaled_at_the_start, steep_notes
from gouache.pipeline.generate.savings import savings_of
from gouache.pipeline.generate.scheduler_levels import limit_of
from gouache.pipeline.generate.second_pass import enlarged_start
from gouache.pipeline.generate.upscaler_files import LANCZOS
from gouache.pipeline.inputs.images import on_background
from gouache.pipeline.inputs.kept import OutsideKept
from gouache.pipeline.inputs.small_picture import with_noise
from gouache.pipeline.inputs.start import DRAFT, INSTRUCT, StartState, input_kind, steps_to_skip
from gouache.pipeline.output.a1111_text import infotext_of
from gouache.pipeline.output.infotext import format_infotext
from gouache.pipeline.output.metadata import OWN, PARAMETERS, ImageKind, encode_picture
from gouache.pipeline.output.recipe import Recipe, machine_of, model_ref, package_versions, pixels_digest
from gouache.pipeline.prompts.encode import PromptPlan, PromptReader, styled_prompt
from gouache.pipeline.prompts.regions import planned_regions
from gouache.pipeline.remembered import as_drafted
from gouache.pipeline.request import Request
from gouache.pipeline.resolve import second_pass

if TYPE_CHECKING:
    from gouache.pipeline.generate.inversion import Inverter


@dataclass(frozen=True, slots=True)
class Progress:
    """One step is done.

    Attributes:
        picture: index of the picture, or of the first of the pictures that are painted together; from 0.
        pictures: how many pictures there will be.
        step: steps done for this picture, from 1.
        steps: steps this picture takes in all, second passes included.
        sigma: noise level after the step.
        preview: makes a quick look at the picture as it stands; costs nothing until called, valid until the next step.
        partial: decodes the first picture in full as it stands, for whoever stops here; None while there is none.
    """

    picture: int
    pictures: int
    step: int
    steps: int
    sigma: float
    preview: Callable[[], Image.Image]
    partial: Callable[[], Painted] | None = None

    @property
    def fraction(self) -> float:
        """Done, 0..1, over all pictures."""
        return (self.picture + self.step / self.steps) / self.pictures


@dataclass(frozen=True, slots=True)
class Painted:
    """One picture is finished.

    Attributes:
        picture: its index, from 0.
        image: mode RGB or RGBA.
        recipe: how to paint it again.
        seconds: time it took, with its share of what was done together.
    """

    picture: int
    image: Image.Image
    recipe: Recipe
    seconds: float

    @property
    def seed(self) -> int:
        """The picture's own seed."""
        return self.recipe.request.seed or 0

    def texts(self) -> dict[str, str]:
        """The texts that go into its file, by key."""
        return {PARAMETERS: format_infotext(infotext_of(self.recipe)), OWN: self.recipe.to_json()}

    def encode(self, kind: ImageKind = "png", *, quality: int = 95) -> bytes:
        """The picture as a file's bytes with its recipe inside."""
        return encode_picture(self.image, kind, self.texts(), quality=quality)

    def __repr__(self) -> str:
        request, size = self.recipe.request, f"{self.image.width}x{self.image.height}"
        return f"Painted({request.prompt!r}, seed {self.seed}, {size}, {self.recipe.model.name}, {self.seconds:.2f} s)"

    def _repr_png_(self) -> bytes:
        """What a notebook shows."""
        return self.encode("png")


Event = Progress | Painted


SoFar = tuple[ImageSeed, tuple[str, ...], list[str], float]
"""Of a picture under way: seed, digests of its steps, notes, seconds."""


class Generation:
    """Paints all pictures of a resolved request.

    Args:
        bundle: the model.
        request: resolved.
        start_state: where the first pass starts.
        notes: what was noted while preparing.
        attachments: picture named in the request -> sha256 of its bytes.
    """

    def __init__(
        self,
        bundle: ModelBundle,
        request: Request,
        start_state: StartState,
        notes: list[str],
        attachments: Mapping[str, str],
    ) -> None:
        self.bundle, self.request, self.start_state = bundle, request, start_state
        self.attachments = dict(attachments)
        self.model = model_ref(bundle)
        self.refiner = None if bundle.refiner is None else model_ref(bundle.refiner)
        self.seeds = seeds_of_batch(request.seed or 0, request.count, request.subseed or 0, request.subseed_strength)
        self.reader = self._reader(bundle)
        self.on_draft = list_on_draft(request, bundle, start_state)
        self.passes = [self._pass(request, self.on_draft or Walk(start_state.skipped))]
        if request.hires is not None:
            self.passes.append(self._second(second_pass(request, bundle)))
        listed = {level: t for one in self.passes for level, t in one.timesteps.items()}
        if listed:
            self.bundle = replace(bundle, timesteps=listed)
        self.mixed = False
        self.prepared_notes = (
            *notes,
            *steep_notes(request, self.passes[0].sigmas),
            *level_unused(request, bundle, self.on_draft),
        )

    def _second(self, request: Request) -> Pass:
        steps, strength = request.num_inference_steps or 1, request.strength or 0.0
        if not follows(request) or request.sigmas is not None:
            return self._pass(request, Walk(steps_to_skip(steps, strength)))
        total, skipped = second_walk(steps, strength, request.sampler)
        return self._pass(request, Walk(skipped, total), self.passes[0].clock)

    def _pass(self, request: Request, walk: Walk, before: PromptClock | None = None) -> Pass:
        levels, skipped = levels_of(request, self.bundle, walk.total), walk.skipped
        sigmas, clock = walk.of(levels.sigmas), None
        steps, earlier = max(len(sigmas) - 1, 1), 0
        if follows(request):
            clock = prompt_clock(request, request.sampler or "ddim", before.steps if before else 0)
            steps, earlier = clock.steps, clock.earlier
        positive, negative = self._texts(request, self.bundle, steps, earlier)
        beside = steering(self.bundle, request, self.start_state, counted_steps(request, sigmas))
        listed = dict(zip(levels.sigmas.tolist(), levels.timesteps, strict=False))
        # Noise alone starts as the list says; on a picture it lies at the level itself.
        on_picture = walk.level is not None or skipped > 0 or self.start_state.latents is not None or before is not None
        ratio = 1.0 if on_picture else levels.start_ratio
        refined = None
        if self.request.hires is None or request is not self.request:  # the last pass alone, as A1111
            texts = lambda model: self._texts(request, model, steps, earlier)  # noqa: E731
            refined = handed_over(request, self.bundle, levels, skipped, texts)
        plan = lambda text: self.reader.plan(text, steps, earlier=earlier)  # noqa: E731
        regions = planned_regions((self.request, request), self.bundle, self.start_state.areas, plan)
        found = Pass(request, sigmas, skipped, positive, negative, beside, listed, ratio, levels.sigmas, clock, refined)
        return replace(found, regions=regions)

    def _texts(self, request: Request, model: ModelBundle, steps: int, earlier: int) -> tuple[PromptPlan, PromptPlan]:
        """Prompt and negative prompt as a model reads them."""
        reader = self._reader_of(model)
        texts = (styled_prompt(request), request.prompt_2, request.prompt_3)
        others = (request.negative_prompt or "", request.negative_prompt_2, request.negative_prompt_3)
        positive = reader.plan_of(texts, steps, earlier=earlier)
        negative = reader.plan_of(others, steps, earlier=earlier, composed=False)
        if model is not self.bundle:
            return positive, negative.zeroed() if zeros_of(request, model) else negative
        if (request.negative_prompt, others[1]) == (None, None) and model.traits.zero_negative:
            negative = negative.zeroed()
        return positive, negative

    def _reader(self, model: ModelBundle) -> PromptReader:
        request = self.request
        to_the_letter = request.determinism == "a1111" or follows(request)
        rows = request.max_sequence_length
        return PromptReader(model.text, request.emphasis, request.clip_skip, to_the_letter=to_the_letter, t5_rows=rows)

    def _reader_of(self, model: ModelBundle) -> PromptReader:
        """Of this model's texts, or of the refiner's."""
        return self.reader if model is self.bundle else self._reader(model)

    def mix_prompt(self, prompt: str, share: float) -> None:
        """Paint with what lies between the prompt (share 0) and another (share 1).

        Raises:
            InvalidInput: they have different numbers of parts joined by AND.
        """
        self.mixed = True  # what lies between two prompts lays nothing out
        for k, one in enumerate(self.passes):
            steps, earlier = one.prompt_steps
            texts = (prompt, one.request.prompt_2, one.request.prompt_3)
            other = self.reader.plan_of(texts, steps, earlier=earlier)
            refined = one.refined
            if refined is not None:
                theirs = self._reader_of(refined.bundle).plan_of(texts, steps, earlier=earlier)
                refined = replace(refined, positive=refined.positive.mixed(theirs, share))
            self.passes[k] = replace(one, positive=one.positive.mixed(other, share), refined=refined)

    def use_seeds(self, seeds: list[ImageSeed]) -> None:
        """Paint with these seeds instead of the request's."""
        self.seeds = seeds

    def __iter__(self) -> Iterator[Event]:
        """Every picture after the other; together only at the level that allows it."""
        request, seeds = self.request, self.seeds
        # dpm_adaptive chooses every picture's steps by itself.
        alone = request.determinism != "portable" or request.sampler == "dpm_adaptive"
        together = 1 if alone else request.count
        for first in range(0, request.count, together):
            yield from self.group(first, seeds[first : first + together])

    @torch.no_grad()
    def group(self, first: int, seeds: list[ImageSeed]) -> Iterator[Event]:
        """Paint pictures `first`, first + 1, ... together, one network call for all."""
        start = time.perf_counter()
        noise = self._noise(seeds)
        digests: list[list[str]] = [[] for _ in seeds]
        latents = None if self.start_state.latents is None else self.start_state.latents.expand(len(seeds), -1, -1, -1)
        drafted, notes = self._draft(seeds)
        drafted_start = replace(self.start_state, draft=drafted)
        if self.on_draft is not None:
            drafted_start = replace(drafted_start, latents=drafted, added=True)
        inverter = self._inverter(drafted_start)
        done, total = 0, sum(one.steps for one in self.passes)
        if inverter is not None:
            total += inverter.steps
            for step in inverter:
                done += 1
                yield self._progress(first, done, total, step)
            drafted_start = replace(drafted_start, state=inverter.state)
        for k, one in enumerate(self.passes):
            start_state = drafted_start if k == 0 else self._enlarged(latents, drafted, one, notes)
            latents = start_state.latents if k else latents
            if k and follows(one.request):
                noise = self._noise(seeds)
            for step in self._walk(one, start_state, noise):
                latents, done = step.x, done + 1
                for row, digest in zip(step.x, digests, strict=True):
                    digest.append(digest_of(row))
                so_far = (seeds[0], tuple(digests[0]), notes[0], time.perf_counter() - start)
                yield self._progress(first, done, total, step, so_far)
        if latents is None:
            raise InvalidInput("steps", given=0, expected="at least one step, or a starting picture")
        for k, (seed, steps) in enumerate(zip(seeds, digests, strict=True)):
            seconds = (time.perf_counter() - start) / len(seeds)
            yield self._finished(first + k, latents[k : k + 1], seed, tuple(steps), notes[k], seconds)

    def _noise(self, seeds: list[ImageSeed]) -> ImageNoise:
        """The pictures' streams from their beginning."""
        modes: dict[str, NoiseMode] = {"a1111": "a1111", "cpu": "cpu"}
        mode = modes.get(self.request.determinism, "torch")
        return ImageNoise(seeds, mode=mode, eta_seed_delta=self.request.eta_noise_seed_delta)

    def _inverter(self, start_state: StartState) -> Inverter | None:
        """The walk up to the noise that gives the starting picture, if the request asks for one."""
        if self.request.inversion is None or start_state.latents is None:
            return None
        from gouache.pipeline.generate.inversion import inverter_of

        return inverter_of(self.bundle, self.request, self.passes[0].sigmas, start_state, self.reader)

    def _progress(self, first: int, done: int, total: int, step: Step, so_far: SoFar | None = None) -> Progress:
        denoised = step.denoised[:1]
        look = lambda: preview(self.bundle, denoised)  # noqa: E731
        partial = None
        if so_far is not None:
            seed, steps, notes, seconds = so_far
            notes = [*notes, f"interrupted after step {done} of {total}"]
            partial = lambda: self._finished(first, denoised, seed, steps, notes, seconds)  # noqa: E731
        return Progress(first, self.request.count, done, max(done, total), step.sigma_next, look, partial)

    def _walk(self, one: Pass, start_state: StartState, noise: ImageNoise) -> Iterator[Step]:
        if one.steps == 0:
            return
        height, width = self._latent_size(one.request)
        shape, device = (self.bundle.vae.config.latent_channels, height, width), self.bundle.device
        drawn = noise.initial(shape).to(device)
        under = noise.unvaried(shape).to(device) if start_state.noise_under_mask else None
        sigma = float(one.sigmas[0])
        noised_at = sigma if one.noised_at is None else one.noised_at
        x = start_state.start(drawn if one.start_ratio == 1 else drawn * one.start_ratio, noised_at, under)
        if noised_at != sigma:
            x = x * entry_scale(noised_at, sigma)
        if start_state.latents is None and start_state.state is None:
            x = scaled_at_the_start(one.request, x, sigma)
        sampler = one.request.sampler or "ddim"
        own_levels = sampler_info(sampler).own_levels
        limit = limit_of(sampler, one.request.schedule or "", self.bundle)
        for part in one.parts():
            prompted, denoisers = self._denoisers(one, start_state, part, noise)
            kept, unconditional = (OutsideKept(each, start_state, one.sigmas, limit) for each in denoisers)
            for outside in (kept, unconditional):
                outside.reached(float(part.sigmas[0]))
            steps = run_sampler(
                one.request,
                self.bundle,
                kept,
                x,
                part.sigmas,
                noise,
                whole=one.whole,
                unconditional=unconditional,
                limit=None if limit is None else kept.limited,
            )
            for step in islice(steps, part.stop):
                # With levels of its own it goes on within the list's step that holds at the level reached.
                reached = int((one.sigmas >= step.sigma_next).sum()) if own_levels else part.first + step.i + 2
                for each in prompted:
                    each.step = reached
                kept.reached(step.sigma_next)
                unconditional.reached(step.sigma_next)
                x = step.x
                yield step

    def _denoisers(
        self, one: Pass, start_state: StartState, part: Part, noise: ImageNoise
    ) -> tuple[list[PromptedDenoiser | InstructDenoiser], tuple[Denoise, Denoise]]:
        """Who reads the prompt in this part, and D under both prompts and under the negative one alone."""
        base = self._prompted(one, start_state, noise) if part.by_base else None
        refiner = one.refined.denoiser(one.request) if one.refined is not None and part.by_refiner else None
        prompted = [each for each in (base, refiner) if each is not None]
        for each in prompted:
            each.step = part.first + 1
            each.call = None if one.clock is None else 1
        both: PromptedDenoiser | InstructDenoiser | Relay = prompted[0]
        if len(prompted) == 2 and one.refined is not None:
            both = Relay(prompted[0], prompted[1], one.refined.level)
        denoise: Denoise = both
        other: Denoise = both if isinstance(both, InstructDenoiser) else both.unconditional
        if self.request.seamless == "none":
            return prompted, (denoise, other)
        from gouache.pipeline.generate.tiling import wrapped_around

        refining = [] if one.refined is None else [one.refined.bundle.unet]
        networks = nn.ModuleList([self.bundle.unet, *self.bundle.controls.values(), *refining])
        around = [wrapped_around(each, networks, self.request.seamless) for each in (denoise, other)]
        return prompted, (around[0], around[1])

    def _prompted(self, one: Pass, start_state: StartState, noise: ImageNoise) -> PromptedDenoiser | InstructDenoiser:
        request = one.request
        numbers, negative_numbers = size_conditions(self.bundle, request)
        beside = (request.noise_level, one.regions)
        inputs = NetworkInputs(start_state.draft, numbers, negative_numbers, *one.beside, *beside)
        if self.bundle.own_pictures is not None:
            from gouache.pipeline.generate.image_prompts import pooled_picture

            pooled = pooled_picture(self.bundle, request, self.start_state.prompted, noise, one.counted_steps)
            inputs = replace(inputs, pooled=pooled)
        network = denoiser_of(self.bundle, request)
        empty = None if request.perp_neg is None else self.reader.encode("")
        guiders = guiders_of(request, self.bundle, one.counted_steps, empty)
        savings, guidance = savings_of(request, self.bundle, one.counted_steps), guidance_of(request)
        if input_kind(self.bundle) == INSTRUCT and start_state.draft is not None:
            image_scale = request.image_guidance_scale
            return InstructDenoiser(
                self.bundle,
                network,
                one.positive,
                one.negative,
                inputs,
                guidance,
                image_scale=IMAGE_GUIDANCE if image_scale is None else image_scale,
                guiders=guiders,
                savings=savings,
            )
        texts = (one.positive, one.negative)
        return PromptedDenoiser(self.bundle, network, *texts, guidance, inputs, guiders, savings)

    def _draft(self, seeds: list[ImageSeed]) -> tuple[Tensor | None, list[list[str]]]:
        """The drafts [B,Cd,h,w] of a model with a prior, and notes on each; else the start_state's own channels."""
        if input_kind(self.bundle) != DRAFT:
            return with_noise(self.start_state.draft, self.request, self.bundle, seeds), [[] for _ in seeds]
        if self.request.inversion is not None and self.start_state.latents is not None:
            own = own_draft(self.bundle, self.start_state.latents, self._latent_size(self.request))
            return own.expand(len(seeds), -1, -1, -1), [[] for _ in seeds]
        first, start = self.passes[0], self.start_state
        text, empty = first.positive.at(1)[0][1], self.reader.encode("")
        size, drafts, notes = self._latent_size(self.request), [], []
        plain = None if self.mixed else self.reader.encode
        for one in seeds:
            read = as_drafted(self.request, self.bundle, one.seed, text, plain)
            parts = parts_of(self.request, self.bundle, read.prompt, read.encode, start.areas, first.regions)
            made = draft(self.request, self.bundle, read.text, empty, one, size, start.latents, parts)
            drafts.append(made.latents)
            notes.append([*read.notes(), *made.notes(self.request)])
        return torch.cat(drafts), notes

    def _enlarged(
        self, latents: Tensor | None, drafted: Tensor | None, one: Pass, notes: list[list[str]]
    ) -> StartState:
        """The second pass starts from what the first one painted, enlarged."""
        if latents is None or self.request.hires is None:
            raise InvalidInput("hires", given="no first pass", expected="at least one step")
        request, tiled = one.request, one.request.vae_tiling
        picture_of = lambda row: decode(self.bundle, row, tiled=tiled, cut=follows(request))  # noqa: E731
        larger = enlarged_start(
            self.bundle,
            (self.request, request),
            latents,
            drafted,
            # A mask of black and white is put back at the end; grey limits this pass as it did the first.
            self.start_state.grey,
            picture_of,
            notes=notes,
        )
        return replace(larger, skipped=one.skipped, finish=self.start_state.finish)

    def _latent_size(self, request: Request) -> tuple[int, int]:
        factor = self.bundle.vae.config.downscale
        return (request.height or 0) // factor, (request.width or 0) // factor

    def _finished(
        self, picture: int, latents: Tensor, seed: ImageSeed, steps: tuple[str, ...], notes: list[str], seconds: float
    ) -> Painted:
        image, decoding_notes = decode(
            self.bundle,
            latents,
            tiled=self.request.vae_tiling,
            seamless=self.request.seamless,
            cut=follows(self.request),
            around=self.start_state.around,
        )
        image = self._completed(image)
        subseed = seed.subseed if seed.subseed_strength else None
        recipe = Recipe(
            request=self.request.replace({"count": 1, "seed": seed.seed, "subseed": subseed}),
            model=self.model,
            machine=machine_of(self.bundle),
            versions=package_versions(),
            attachments=self.attachments,
            notes=(*self.prepared_notes, *self.reader.notes, *notes, *decoding_notes),
            steps=steps,
            pixels=pixels_digest(image),
            refiner=self.refiner,
        )
        return Painted(picture, image, recipe, seconds)

    def _completed(self, image: Image.Image) -> Image.Image:
        image = self.start_state.finish(on_background(image, ground_of(self.request, self.bundle, mixed=self.mixed)))
        if (upscale := self.request.upscale) is None:
            return image
        upscaler = find_upscaler(upscale.upscaler or LANCZOS, self.bundle)
        return enlarge_picture(image, upscale.factor, upscaler, seamless=self.request.seamless)


def digest_of(x: Tensor) -> str:
    """Eight hex digits of a state, to see where two runs part."""
    values = x.detach().to("cpu", torch.float32).contiguous()
    return blake2b(values.numpy().tobytes(), digest_size=4).hexdigest()
