"""One picture, and what each part of the model did for it: words, draft, steps, attention, layers, times.

The picture is painted as always and has the same bytes; its parts are watched, or asked once more.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from PIL import Image
from torch import Tensor, nn

from gouache.models.bundle import ModelBundle
from gouache.models.text.clip import TextEncoder
from gouache.models.text.sentence import SentenceEncoder
from gouache.pipeline.explain.possible import check_explained
from gouache.pipeline.explain.watching import Watched, main_colours, watching
from gouache.pipeline.generate.decode import decode, preview
from gouache.pipeline.generate.draft import draw_of, draw_tokens, parts_of
from gouache.pipeline.generate.generation import Painted, Progress
from gouache.pipeline.inputs.tensors import to_image
from gouache.pipeline.pipeline import Pipeline
from gouache.pipeline.prompts.encode import EncodedPrompt, PromptReader, styled_prompt
from gouache.pipeline.remembered import as_drafted
from gouache.pipeline.request import Prior as PriorOptions
from gouache.pipeline.request import Request

NEAREST = 5
"""Vocabulary entries that are shown beside a token."""


@dataclass(frozen=True, slots=True)
class Token:
    """A piece of the prompt.

    Attributes:
        text: as the tokenizer cut it.
        number: its place in the vocabulary.
        nearest: the vocabulary's entries whose vectors point most nearly the same way, with the cosine.
        attention: where the picture looked at it; None if nothing could be seen. [h,w], 0..1
    """

    text: str
    number: int
    nearest: tuple[tuple[str, float], ...]
    attention: Image.Image | None


@dataclass(frozen=True, slots=True)
class StepSeen:
    """One step of the sampler.

    Attributes:
        sigma: noise level after it.
        shown: the noisy latents that the network was shown.
        denoised: what it took the picture to be.
        seconds: of the network's calls.
    """

    sigma: float
    shown: Image.Image
    denoised: Image.Image
    seconds: float


@dataclass(frozen=True, slots=True)
class Explanation:
    """Everything that was seen.

    Attributes:
        painted: the picture.
        model: its name.
        tokens: of the prompt.
        likeness: cosines of the tokens' vectors behind the text encoder. [L][L]
        scales: the draft, decoded after each scale of its tokens, coarsest first, with the tokens' number; empty if the
            model draws none, or the prompt was drafted thing by thing.
        draft: what the picture began on; None without one.
        steps: of the sampler.
        features: the blocks' outputs at the last step, as colours.
        seconds: by part: text, draft, denoiser, decoder, rest.
    """

    painted: Painted
    model: str
    tokens: tuple[Token, ...]
    likeness: tuple[tuple[float, ...], ...]
    scales: tuple[tuple[int, Image.Image], ...]
    draft: Image.Image | None
    steps: tuple[StepSeen, ...]
    features: tuple[tuple[str, Image.Image], ...]
    seconds: dict[str, float]


@torch.no_grad()
def explain(
    pipeline: Pipeline,
    request: Request,
    attachments: Mapping[str, bytes] | None = None,
    on_step: Callable[[Progress], None] = lambda _progress: None,
) -> Explanation:
    """Paint one picture and say what each part did.

    Args:
        pipeline: with the model.
        request: of one picture, in one pass.
        attachments: as `Pipeline.run`.
        on_step: called after each step; what it raises ends the painting.

    Raises:
        InvalidInput: it paints in several passes, or several pictures.
        GouacheError: as `Pipeline.run`.
    """
    check_explained(request)
    resolved = pipeline.plan(request, attachments)
    bundle, asked = pipeline.adapted(resolved.request).bundle, resolved.request
    reader = PromptReader(bundle.text, asked.emphasis, asked.clip_skip, t5_rows=asked.max_sequence_length)
    seconds: dict[str, float] = {}
    start = time.perf_counter()
    text = reader.encode(styled_prompt(asked))
    seconds["text"] = time.perf_counter() - start
    scales = _scales(bundle, asked, text, reader)
    looks: list[tuple[float, Image.Image]] = []
    calls = [0]
    with watching(bundle.unet, text.context) as seen:
        painted: Painted | None = None
        start = time.perf_counter()
        for event in pipeline.run(resolved, attachments):
            if isinstance(event, Progress):
                on_step(event)
                looks.append((event.sigma, event.preview()))
                calls.append(len(seen.seconds))
            else:
                painted = event
    assert painted is not None, "a request that resolves paints a picture, or raises"
    # What lies between the text and the first call of the network is the draft, also where each thing has its own.
    drafting = 0.0 if seen.draft is None or seen.first is None else seen.first - start - seconds["text"]
    seconds["draft"] = max(0.0, drafting)
    seconds["denoiser"] = sum(seen.seconds)
    steps = _steps(bundle, seen, looks, calls)
    seconds["decoder"] = _decoding(bundle, seen)
    seconds["rest"] = max(0.0, painted.seconds - sum(seconds.values()))
    return Explanation(
        painted=painted,
        model=bundle.name,
        tokens=tuple(_tokens(bundle, styled_prompt(asked), seen)),
        likeness=_likeness(bundle, styled_prompt(asked), text),
        scales=scales,
        draft=None if seen.draft is None else decode(bundle, seen.draft)[0],
        steps=steps,
        features=tuple((name, to_image(main_colours(one) * 2 - 1)) for name, one in seen.features.items()),
        seconds=seconds,
    )


def _scales(
    bundle: ModelBundle, request: Request, text: EncodedPrompt, reader: PromptReader
) -> tuple[tuple[int, Image.Image], ...]:
    prior, quantizer = bundle.prior, bundle.quantizer
    options = request.prior or PriorOptions()
    if prior is None or quantizer is None or not options.enabled or text.pooled is None:
        return ()
    drafted = as_drafted(request, bundle, request.seed or 0, text, reader.encode)
    parts, stream = parts_of(request, bundle, drafted.prompt, drafted.encode), "prior"
    if parts is not None:
        if parts.layout.alone is None:
            return ()  # each thing has a draft of its own; what they make together is the draft
        text, stream = parts.encode(parts.layout.alone.words), "prior/0"
    else:
        text = drafted.text
    if request.subseed_strength > 0:
        return ()  # parts of a variation's tokens are another draw's
    draw, seeds = draw_of(options, bundle.defaults), [request.seed or 0]
    tokens = draw_tokens(bundle, text, reader.encode(""), draw, seeds, stream=stream).tokens
    sums = quantizer.features(tokens)[1:]
    return tuple(
        (side * side, decode(bundle, quantizer.draft(total))[0])
        for side, total in zip(quantizer.config.scales, sums, strict=True)
    )


def _steps(
    bundle: ModelBundle, seen: Watched, looks: list[tuple[float, Image.Image]], calls: list[int]
) -> tuple[StepSeen, ...]:
    found = []
    for (first, last), (sigma, denoised) in zip(pairwise(calls), looks, strict=True):
        shown = seen.shown[min(first, len(seen.shown) - 1)][:, : bundle.vae.config.latent_channels]
        noisy = preview(bundle, shown.to(bundle.device, bundle.dtype))
        found.append(StepSeen(sigma, noisy, denoised, sum(seen.seconds[first:last])))
    return tuple(found)


def _decoding(bundle: ModelBundle, seen: Watched) -> float:
    """Seconds that decoding takes, measured on the last latents once more."""
    if not seen.shown:
        return 0.0  # A starting picture that is kept as it is: no step was made.
    latents = seen.shown[-1][:, : bundle.vae.config.latent_channels].to(bundle.device, bundle.dtype)
    start = time.perf_counter()
    decode(bundle, latents)
    return time.perf_counter() - start


def _table(encoder: nn.Module) -> Tensor:
    """The vectors of a vocabulary's entries. [V,D]"""
    if isinstance(encoder, SentenceEncoder):
        return encoder.embeddings.word_embeddings.weight.detach()
    assert isinstance(encoder, TextEncoder), "a stack holds no other encoders"
    return encoder.embeddings.token_embedding.weight.detach()


def _tokens(bundle: ModelBundle, prompt: str, seen: Watched) -> list[Token]:
    stack = bundle.text
    ids = stack.tokenize(prompt)[: stack.chunk_length]
    table = nn.functional.normalize(_table(stack.encoders[0]).float(), dim=1)
    maps = seen.maps
    found = []
    for place, number in enumerate(ids):
        cosines = table @ table[number]
        order = [int(i) for i in cosines.topk(min(NEAREST * 4, len(table))).indices if int(i) != number]
        words = [(stack.decode_tokens([i]).strip(), float(cosines[i])) for i in order]
        nearest = [(word, value) for word, value in words if word and not word.startswith("[")][:NEAREST]
        attention = None
        if maps is not None and place + 1 < len(maps):  # a start token stands before the first
            one = maps[place + 1]
            scaled = (one - one.min()) / (one.max() - one.min()).clamp(min=1e-9)
            attention = to_image((scaled * 2 - 1)[None].expand(3, -1, -1))
        found.append(Token(stack.decode_tokens([number]).strip(), number, tuple(nearest), attention))
    return found


def _likeness(bundle: ModelBundle, prompt: str, text: EncodedPrompt) -> tuple[tuple[float, ...], ...]:
    count = len(bundle.text.tokenize(prompt)[: bundle.text.chunk_length])
    rows = nn.functional.normalize(text.context[0, 1 : 1 + count].float(), dim=1)
    return tuple(tuple(row) for row in (rows @ rows.T).tolist())
