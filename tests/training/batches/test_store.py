"""The store of latents and text states: what is kept, made again, named and read back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from gouache.errors import DataError
from gouache.models.configs import SentenceEncoderConfig, VAEConfig
from gouache.models.text.sentence import SentenceEncoder
from gouache.models.text.stack import TextStack
from gouache.models.vae import AutoencoderKL
from gouache.pipeline.inputs.tensors import rgba_to_tensor
from gouache.training.batches import store as encoded_store
from gouache.training.batches.store import Captioned, EncodedStore, Encoders, encode, store_folder
from gouache.training.stages.clip import character_vocabulary

COUNT = 20


class Noise:
    """Pictures of noise 16 x 16, each with a caption of its own length; counts what was asked for."""

    fingerprint = "noise"

    def __init__(self) -> None:
        self.asked: list[int] = []

    def examples(self, numbers: Sequence[int]) -> Captioned:
        self.asked += numbers
        rows = [torch.randint(256, (16, 16, 4), generator=torch.Generator().manual_seed(n)) for n in numbers]
        return Captioned(torch.stack(rows).byte().numpy(), ["a" * (1 + n % 5) for n in numbers])


@pytest.fixture
def encoders(monkeypatch: pytest.MonkeyPatch) -> Encoders:
    """Small networks with fixed random weights; shards of eight."""
    monkeypatch.setattr(encoded_store, "SHARD", 8)
    monkeypatch.setattr(encoded_store, "BATCH", 4)
    vocabulary = character_vocabulary()
    text = SentenceEncoderConfig(
        width=16, inner_width=32, layers=1, heads=2, positions=16, max_tokens=16, vocabulary_size=len(vocabulary)
    )
    vae = VAEConfig(
        image_channels=4,
        latent_channels=2,
        channels=(8, 16),
        layers_per_level=1,
        norm_groups=4,
        middle_attention=False,
        scale=1.0,
    )
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        networks = AutoencoderKL(vae), SentenceEncoder(text)
    for network in networks:
        network.eval().requires_grad_(False)
    return Encoders(networks[0], TextStack.of_sentences(networks[1], vocabulary), "weights")


def test_what_is_read_is_what_the_encoders_give(encoders: Encoders, tmp_path: Path) -> None:
    source = Noise()
    assert list(encode(tmp_path / "store", source, encoders, COUNT))[-1] == COUNT
    store, numbers = EncodedStore(tmp_path / "store", COUNT), [1, 9, 19]
    examples = [source.examples(range(n, n + 1)) for n in numbers]
    assert store.captions(numbers) == [example.captions[0] for example in examples]
    for row, example in enumerate(examples):
        latents = encoders.vae.normalise(encoders.vae.encode(rgba_to_tensor(example.pictures)).mode())
        assert torch.allclose(store.latents(numbers)[row], latents[0], atol=2e-3), "half precision"
        states, text = encoders.text.encode([encoders.text.tokenize(example.captions[0])]), store.text(numbers)
        assert states.mask is not None
        assert states.pooled is not None
        assert torch.allclose(text.context[row][text.mask[row]], states.context[states.mask], atol=4e-3)
        assert torch.allclose(text.pooled[row], states.pooled[0], atol=4e-3)


def test_an_interrupted_store_is_finished_and_a_finished_one_used_again(encoders: Encoders, tmp_path: Path) -> None:
    source = Noise()
    begun = encode(tmp_path / "store", source, encoders, COUNT)
    while next(begun) < 12:
        pass  # amid the second shard
    del begun
    assert not list((tmp_path / "store").glob(".*")), "nothing half written"
    with pytest.raises(DataError, match="2 of 3 shards missing"):
        EncodedStore(tmp_path / "store", COUNT)
    source.asked.clear()
    list(encode(tmp_path / "store", source, encoders, COUNT))
    assert source.asked == list(range(8, COUNT)), "the first shard was whole"
    source.asked.clear()
    list(encode(tmp_path / "store", source, encoders, COUNT))
    assert not source.asked


def test_a_damaged_shard_is_made_again(encoders: Encoders, tmp_path: Path) -> None:
    source, path = Noise(), tmp_path / "store" / "000000008.safetensors"
    list(encode(tmp_path / "store", source, encoders, COUNT))
    whole = path.read_bytes()
    for damaged in (whole[:-1] + bytes([whole[-1] ^ 1]), whole[: len(whole) // 2], b""):
        path.write_bytes(damaged)
        source.asked.clear()
        list(encode(tmp_path / "store", source, encoders, COUNT))
        assert source.asked == list(range(8, 16))
        assert path.read_bytes() == whole


def test_another_source_or_encoder_has_another_store(encoders: Encoders, tmp_path: Path) -> None:
    other = Noise()
    other.fingerprint = "other"
    changed = Encoders(encoders.vae, encoders.text, "others")
    folders = {store_folder(tmp_path, s, e) for s, e in ((Noise(), encoders), (other, encoders), (Noise(), changed))}
    assert len(folders) == 3
    assert store_folder(tmp_path, Noise(), encoders) in folders
