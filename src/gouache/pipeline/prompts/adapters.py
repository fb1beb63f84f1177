"""Applies the adapters that a prompt names: a copy of the model with changed layers, beside the untouched one.

The copy shares every tensor that no adapter changes. So the loaded weights are never written to, there is nothing to
restore, and runs with different adapters can take turns.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gouache.checkpoints.adapters.controlnet_library import KIND as CONTROL
from gouache.checkpoints.adapters.controlnet_library import find_control
from gouache.checkpoints.adapters.deltas import LayerDelta
from gouache.checkpoints.adapters.embedding import Embedding, read_embedding
from gouache.checkpoints.adapters.embedding_names import bundled_names
from gouache.checkpoints.adapters.ip_adapter_library import KIND as IP_ADAPTER
from gouache.checkpoints.adapters.ip_adapter_library import TOWER, find_ip_adapter, towers
from gouache.checkpoints.adapters.layer_names import BIAS, PRIOR, TEXT, UNET, LayerNames, LoraLayer
from gouache.checkpoints.adapters.library import EMBEDDING, LORA, AdapterFile, AdapterFolder
from gouache.checkpoints.adapters.lora import Lora, read_lora
from gouache.checkpoints.adapters.naming import WordFinder, folded
from gouache.checkpoints.adapters.peft_config import CONFIG_FILE
from gouache.checkpoints.adapters.preprocessor_library import DRAWN, MASK, find_preprocessor
from gouache.checkpoints.adapters.preprocessor_library import KIND as PREPROCESSOR
from gouache.checkpoints.formats.header import open_header, read_header
from gouache.errors import CorruptCheckpoint, InvalidInput, ModelNotFound
from gouache.models.bundle import ModelBundle
from gouache.models.text.clip import TextEncoder
from gouache.models.text.stack import TextStack
from gouache.models.text.tokenizers import ClipTokenizer
from gouache.models.turns import turns_of
from gouache.pipeline.output.recipe import AdapterRef, model_sha256
from gouache.pipeline.prompts.chunks import TokenizerWithWords
from gouache.pipeline.prompts.syntax import AdapterTag, adapter_tags
from gouache.pipeline.request import Request

if TYPE_CHECKING:
    from gouache.pipeline.generate.controlnets import Controls
    from gouache.pipeline.generate.image_prompts import IPAdapters

SHORT = 12
FOLDERS = {CONTROL: "controlnet", PREPROCESSOR: "preprocessors", IP_ADAPTER: "ipadapter", TOWER: "clip_vision"}
AdaptedNetwork = TypeVar("AdaptedNetwork", bound=nn.Module)


@dataclass(frozen=True, slots=True)
class Adapted:
    """A model as a prompt wants it.

    Attributes:
        bundle: with its adapters; the plain one if the prompt names none.
        refs: which took part, for the recipe.
        notes: what of them this model can't use, and what was read beside them.
    """

    bundle: ModelBundle
    refs: tuple[AdapterRef, ...] = ()
    notes: tuple[str, ...] = ()


class Adapters:
    """Finds and applies the adapters of a model's requests; the last combination is kept.

    Args:
        bundle: the model; never changed.
        folder: where the adapters are; None takes the models folder.
    """

    def __init__(self, bundle: ModelBundle, folder: AdapterFolder | None = None) -> None:
        self.bundle, self.folder = bundle, folder or AdapterFolder()
        self._only: frozenset[str] | None = None
        self._last: tuple[object, Adapted] | None = None

    @cached_property
    def controls(self) -> Controls:
        """The ControlNets of the model's requests."""
        from gouache.pipeline.generate.controlnets import Controls

        return Controls(self.bundle)

    @cached_property
    def ip_adapters(self) -> IPAdapters:
        """The IP-Adapters of the model's requests, with their vision towers."""
        from gouache.pipeline.generate.image_prompts import IPAdapters

        return IPAdapters(self.bundle)

    def expect(self, refs: Sequence[AdapterRef]) -> None:
        """Use these and no other from now on, so that a replay doesn't meet words that were none at its time.

        Raises:
            ModelNotFound: one is missing, or its file is another; it is named with its sha256.
        """
        self._only = frozenset(ref.name for ref in refs)
        for ref in refs:
            found = self._find(ref)
            if found is None or model_sha256(found) != ref.sha256:
                raise ModelNotFound(
                    f"adapter {ref.name!r}",
                    given="no such file" if found is None else f"another file, {found}",
                    expected=f"the {ref.kind} with sha256 {ref.sha256}",
                    cure=f"Put it into the folder {FOLDERS.get(ref.kind, 'adapters')} beside the models.",
                )

    def apply(self, request: Request) -> Adapted:
        """The model with everything that the request and its prompts name.

        Raises:
            ModelNotFound: no such adapter.
            CheckpointError: its file can't be used with this model.
            InvalidInput: a tag that can't be read.
        """
        adapted = self._with_controls(request, self._apply_to_prompt(request))
        if request.mask is not None and request.mask.text is not None:
            network = ref_of(MASK, PREPROCESSOR, find_preprocessor(MASK))
            adapted = replace(adapted, refs=(*adapted.refs, network))
        if any(one.adapter is None for one in request.image_prompts):
            own, tower = self.ip_adapters.own(self.folder.folder)
            # A tower in the model's own file is named with the model.
            named = () if tower == self.bundle.path else (ref_of(tower.stem, TOWER, tower),)
            bundle = replace(adapted.bundle, own_pictures=own)
            adapted = replace(adapted, bundle=bundle, refs=(*adapted.refs, *named))
        if all(one.adapter is None for one in request.image_prompts):
            return adapted
        found = self.ip_adapters.load(request, self.folder.folder)
        refs = [ref_of(name, IP_ADAPTER, one.path) for name, one in found.items()]
        refs += [ref_of(one.tower.stem, TOWER, one.tower) for one in found.values()]
        bundle = replace(
            adapted.bundle,
            ip_adapters={name: one.adapter for name, one in found.items()},
            picture_encoders={name: one.encoder for name, one in found.items()},
        )
        return replace(adapted, bundle=bundle, refs=tuple(dict.fromkeys((*adapted.refs, *refs))))

    def _with_controls(self, request: Request, adapted: Adapted) -> Adapted:
        if not request.control:
            return adapted
        steering = self.controls.load(request, self.folder.folder)
        refs = [ref_of(name, CONTROL, one.path) for name, one in steering.items()]
        kinds = dict.fromkeys(one.preprocessor for one in request.control if one.preprocessor in DRAWN)
        refs += [ref_of(kind, PREPROCESSOR, find_preprocessor(kind)) for kind in kinds]
        networks = {name: one.network for name, one in steering.items()}
        return replace(adapted, bundle=replace(adapted.bundle, controls=networks), refs=(*adapted.refs, *refs))

    def _apply_to_prompt(self, request: Request) -> Adapted:
        tags = [(self.folder.lora(tag.name), tag) for tag in adapter_tags(request.prompt)]
        words = self._words(request, _bundled(file for file, _ in tags))
        if not tags and not words:
            return Adapted(self.bundle)
        if turns_of(self.bundle.unet) is not None:
            raise InvalidInput(
                "prompt",
                given="an adapter for a model whose networks take turns in memory",
                expected="a model that is loaded whole, into which it is merged",
                cure="Leave out --sequential, or the adapter's name.",
            )
        files = [*(file for file, _ in tags), *words.values()]
        key = (tuple(tag for _, tag in tags), tuple(words), tuple((file.path, _stamps(file.path)) for file in files))
        if self._last is None or self._last[0] != key:
            self._last = None  # give its memory back before the next one takes as much
            self._last = (key, self._adapted(tags, words))
        adapted = self._last[1]
        advice = _few_steps_notes(request, [file for file, _ in tags])
        return replace(adapted, notes=(*adapted.notes, *advice)) if advice else adapted

    def _find(self, ref: AdapterRef) -> Path | None:
        if ref.kind == EMBEDDING:
            found = self.folder.embedding(ref.name)
            return None if found is None else found.path
        try:
            if ref.kind == PREPROCESSOR:
                return find_preprocessor(ref.name)
            if ref.kind == CONTROL:
                return find_control(ref.name, self.folder.folder).path
            if ref.kind == IP_ADAPTER:
                return find_ip_adapter(ref.name, self.folder.folder).path
            if ref.kind == TOWER:
                return self._find_tower(ref)
            return self.folder.lora(ref.name).path
        except ModelNotFound:
            return None

    def _find_tower(self, ref: AdapterRef) -> Path | None:
        """The tower of this name and hash, else one of this name."""
        named = [path for path in towers(None, self.bundle.path, self.folder.folder) if path.stem == ref.name]
        return next((path for path in named if model_sha256(path) == ref.sha256), named[0] if named else None)

    def _words(self, request: Request, bundled: Mapping[str, AdapterFile]) -> dict[str, AdapterFile]:
        """Textual inversions that the texts of a request name, by the word; those in a LoRA's file come first."""
        texts = [request.prompt, request.negative_prompt or ""]
        texts += [request.prompt_2 or "", request.negative_prompt_2 or ""]
        texts += [request.inversion.source_prompt] if request.inversion else []
        texts += [request.interpolation.prompt or ""] if request.interpolation else []
        texts += [region.prompt for region in request.regions]
        known = {**self.folder.embeddings(), **bundled}
        if not known:
            return {}
        finder = WordFinder(list(known))
        found: dict[str, AdapterFile] = {}
        for text in texts:
            for one in finder.find(text):
                written = text[one.start : one.end]
                file = bundled.get(folded(written)) or self.folder.embedding(written, self._only)
                if file is not None:
                    found.setdefault(one.word, file)
        return found

    def _adapted(self, tags: list[tuple[AdapterFile, AdapterTag]], words: dict[str, AdapterFile]) -> Adapted:
        encoders = [encoder for encoder in self.bundle.text.encoders if isinstance(encoder, TextEncoder)]
        widths = tuple(encoder.config.width for encoder in encoders)
        loras = self._loras(tags) if tags else []
        inside = {folded(word): one for lora, _ in loras for word, one in lora.embeddings.items()}
        embeddings = {word: inside.get(word) or read_embedding(file.path, word) for word, file in words.items()}
        usable = {word: one for word, one in embeddings.items() if one.widths == widths}
        notes = [note for lora, _ in loras for note in lora.notes]
        notes += [
            f"textual inversion {word!r} was read as words: it belongs to text encoders of width {list(one.widths)}"
            for word, one in embeddings.items()
            if word not in usable
        ]
        notes += [
            f"textual inversion {word!r}: {', '.join(one.left_out[:5])} belong to no CLIP text encoder's input"
            for word, one in usable.items()
            if one.left_out
        ]
        bundle = with_loras(self.bundle, loras) if loras else self.bundle
        rescaled = [tag.name for lora, tag in loras if lora.zero_terminal_snr]
        if rescaled and not bundle.denoiser_config.schedule.zero_terminal_snr:
            config = bundle.denoiser_config.with_zero_terminal_snr()
            bundle = bundle if config is None else replace(bundle, denoiser_config=config)
            done = "which this model can't have" if config is None else "which it paints with"
            notes.append(f"LoRA {rescaled[0]!r} was trained on a noise schedule with zero terminal SNR, {done}")
        if usable:
            bundle = with_embeddings(bundle, usable)
        refs = [ref_of(tag.name, LORA, file.path) for file, tag in tags]
        refs += [ref_of(words[word].name, EMBEDDING, words[word].path) for word in usable if word not in inside]
        return Adapted(bundle, tuple(dict.fromkeys(refs)), tuple(dict.fromkeys(notes)))

    def _loras(self, tags: list[tuple[AdapterFile, AdapterTag]]) -> list[tuple[Lora, AdapterTag]]:
        names = LayerNames(self.bundle.unet, self.bundle.text, self.bundle.prior)
        return [(read_lora(file.path, names, self.bundle.family), tag) for file, tag in tags]


def _few_steps_notes(request: Request, files: Sequence[AdapterFile]) -> list[str]:
    """What to tell of LoRA files that were distilled to few steps, where the resolved request paints otherwise."""
    asked = request.sampler or "", request.num_inference_steps or 1, request.guidance_scale or 0.0
    return [
        f"{file.few_steps.advice(f'LoRA {file.name!r}')}; this was {asked[0]}, {asked[1]} steps, guidance {asked[2]:g}"
        for file in files
        if file.few_steps is not None and not file.few_steps.fits(*asked)
    ]


def _bundled(files: Iterable[AdapterFile]) -> dict[str, AdapterFile]:
    """Textual inversions in LoRA files, by the word, `folded`."""
    found = {}
    for file in files:
        header = open_header(file.path)
        found.update({folded(word): file for word in bundled_names(header.tensors, header.metadata)})
    return found


def _stamps(path: Path) -> tuple[int, ...]:
    """When an adapter, and what may lie beside it, was written."""
    both = (path, path.parent / CONFIG_FILE)
    return tuple(one.stat().st_mtime_ns for one in both if one.is_file())


def with_loras(bundle: ModelBundle, loras: Sequence[tuple[Lora, AdapterTag]]) -> ModelBundle:
    """A copy of a model with LoRA files and their relatives merged in: W + sum of weight * difference, for LoRA
    (alpha / rank) * up @ down.

    The sum is made in fp32 and rounded once to the model's own type.

    Raises:
        CorruptCheckpoint: a changed weight is over what its type can hold.
    """
    changes: dict[LoraLayer, list[tuple[float, LayerDelta]]] = {}
    for lora, tag in loras:
        for layer, change in lora.changes.items():
            weight = tag.text_weight if layer.part == TEXT else tag.unet_weight
            if weight:
                changes.setdefault(layer, []).append((weight, change))
    unet = sharing_copy(bundle.unet)
    encoders = [sharing_copy(encoder) for encoder in bundle.text.encoders]
    prior = None if bundle.prior is None else sharing_copy(bundle.prior)
    for layer, terms in changes.items():
        network = _network_of(layer, unet, encoders, prior)
        module = network.get_submodule(layer.name)
        merged = nn.Parameter(_merged(_parameter(bundle, layer), terms, layer.name), requires_grad=False)
        module.register_parameter(layer.parameter, merged)
    return replace(bundle, unet=unet, text=_stack_of(bundle.text, encoders), prior=prior)


def _network_of(layer: LoraLayer, unet: nn.Module, encoders: Sequence[nn.Module], prior: nn.Module | None) -> nn.Module:
    """The network that a layer is in."""
    if layer.part == PRIOR:
        assert prior is not None, "no layer of a network that isn't there has a name"
        return prior
    return unet if layer.part == UNET else encoders[layer.index]


def with_embeddings(bundle: ModelBundle, embeddings: Mapping[str, Embedding]) -> ModelBundle:
    """A copy of a model whose prompts know further words."""
    encoders = [sharing_copy(encoder) for encoder in bundle.text.encoders if isinstance(encoder, TextEncoder)]
    words = {word: one.vectors for word, one in embeddings.items()}
    return replace(bundle, text=with_words(bundle.text, encoders, words))


def sharing_copy(network: AdaptedNetwork) -> AdaptedNetwork:
    """The same modules anew around the same tensors."""
    tensors = chain(network.parameters(), network.buffers())
    return copy.deepcopy(network, {id(tensor): tensor for tensor in tensors})


def ref_of(name: str, kind: str, path: Path) -> AdapterRef:
    """An adapter as a recipe names it."""
    whole = model_sha256(path)
    return AdapterRef.from_dict(
        {"name": name, "kind": kind, "sha256": whole, "short_hash": _short_hash(path, whole)}, where=str(path)
    )


def _short_hash(path: Path, whole: str) -> str:
    """A1111's hash of an adapter: of what stands behind the header in safetensors, else of the whole file."""
    if path.suffix.lower() != ".safetensors" or not path.is_file():
        return whole[:SHORT]
    header = read_header(path)
    told = header.metadata.get("sshs_model_hash", "")
    if len(told) == 64 and not set(told) - set("0123456789abcdef"):
        return told[:SHORT]
    with path.open("rb") as file:
        file.seek(header.data_start)
        digest = sha256()
        while data := file.read(1 << 20):
            digest.update(data)
    return digest.hexdigest()[:SHORT]


def _parameter(bundle: ModelBundle, layer: LoraLayer) -> Tensor:
    """A parameter as the model has it; zeros for a bias that it doesn't have."""
    network = _network_of(layer, bundle.unet, list(bundle.text.encoders), bundle.prior)
    module = network.get_submodule(layer.name)
    if layer.parameter == BIAS and module._parameters.get(BIAS) is None:
        return torch.zeros_like(module.get_parameter("weight").detach().flatten(1)[:, 0])
    return module.get_parameter(layer.parameter).detach()


@torch.no_grad()
def _merged(weight: Tensor, terms: list[tuple[float, LayerDelta]], name: str) -> Tensor:
    total = weight.float()
    for factor, change in terms:
        total = total + factor * change.difference(weight).to(weight.device)
    merged = torch.empty_like(weight).copy_(total)  # keeps the order in memory that makes convolutions fast
    if not bool(torch.isfinite(merged).all()):
        raise CorruptCheckpoint(
            name,
            given=f"infinity after merging in {weight.dtype}",
            expected="finite weights",
            cure="Lower the adapter's weight in the prompt, or use --dtype float32.",
        )
    return merged


def _stack_of(stack: TextStack, encoders: Sequence[nn.Module]) -> TextStack:
    """The same stack around other encoders."""
    made = copy.copy(stack)
    made._modules = {**stack._modules, "encoders": nn.ModuleList(encoders)}
    return made


class TokensWithWords(nn.Module):
    """A table of token vectors with further rows; the model's own table stays as it is.

    Args:
        base: the model's table.
        rows: vectors of the new tokens. [n, width]
    """

    def __init__(self, base: nn.Embedding, rows: Tensor) -> None:
        super().__init__()
        self.base = base
        self.rows = nn.Parameter(rows.to(base.weight), requires_grad=False)

    def forward(self, ids: Tensor) -> Tensor:
        """ids [N, L] -> [N, L, width]."""
        return vectors_of(ids, self.base, self.rows)


def vectors_of(ids: Tensor, base: nn.Embedding, rows: Tensor) -> Tensor:
    """The vectors of tokens, of which those behind the table's have the further rows. [N, L] -> [N, L, width]"""
    known = base.num_embeddings
    new = F.embedding((ids - known).clamp_min(0), rows)
    return torch.where((ids >= known)[..., None], new, base(ids.clamp_max(known - 1)))


def with_words(stack: TextStack, encoders: Sequence[TextEncoder], words: Mapping[str, Sequence[Tensor]]) -> TextStack:
    """A text stack that knows further words; T5, which has no vectors for them, reads them as they are written.

    Args:
        stack: of CLIP encoders; it is left as it is.
        encoders: copies of its encoders, whose tables of tokens are replaced.
        words: word -> its vectors for each encoder. [n, width]
    """
    first = encoders[0].config.vocabulary_size
    runs: dict[str, range] = {}
    for word, vectors in words.items():
        runs[word] = range(first, first + len(vectors[0]))
        first += len(vectors[0])
    for index, encoder in enumerate(encoders):
        rows = torch.cat([vectors[index].float() for vectors in words.values()])
        table = encoder.embeddings.token_embedding
        encoder.embeddings.token_embedding = TokensWithWords(table, rows)  # type: ignore[assignment]
    bases = [one for one in stack.tokenizers if isinstance(one, ClipTokenizer)]
    t5 = None if stack.t5 is None or stack.t5_tokenizer is None else (stack.t5, stack.t5_tokenizer)
    made = TextStack(encoders, bases, stack.joint, t5)
    made.tokenizers = tuple(TokenizerWithWords(one, runs) for one in bases)
    return made
