"""A small vocabulary in T5's numbering, trained on a few sentences by the package tokenizers."""

from __future__ import annotations

import json
from functools import cache

from tokenizers import Tokenizer
from tokenizers.models import Unigram
from tokenizers.pre_tokenizers import Metaspace, Sequence, WhitespaceSplit
from tokenizers.trainers import UnigramTrainer

SENTENCES = (
    "a red apple on a wooden table, oil painting",
    "a photo of a cat, masterpiece, best quality, 8k",
    "two dogs play with a blue ball in the snow; it's winter",
    "une tête à l'ombre d'une façade naïve",
    "the quick brown fox jumps over the lazy dog",
)


@cache
def trained_vocabulary() -> tuple[tuple[str, float], ...]:
    """Pieces and scores: padding, end and unknown first, T5's hundred sentinels last."""
    tokenizer = Tokenizer(Unigram())
    tokenizer.pre_tokenizer = Sequence([WhitespaceSplit(), Metaspace()])
    trainer = UnigramTrainer(vocab_size=150, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>")
    tokenizer.train_from_iterator(SENTENCES, trainer)
    numbers = tokenizer.get_vocab(with_added_tokens=False)
    scores = dict(json.loads(tokenizer.to_str())["model"]["vocab"])
    pieces = sorted(numbers, key=lambda piece: numbers[piece])
    sentinels = [(f"<extra_id_{i}>", 0.0) for i in reversed(range(100))]
    return (*((piece, float(scores[piece])) for piece in pieces), *sentinels)
