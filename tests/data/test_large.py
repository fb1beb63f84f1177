"""Large pictures for the upscaler: the split is kept, nothing is enlarged, and a number always means one picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gouache.data.large import LargePictures, LargeStickers, held_out_large
from gouache.data.stickers import Stickers
from gouache.errors import InvalidInput

SIZE = 256


@pytest.fixture
def large(mini_stickers: Stickers, tmp_path: Path) -> LargeStickers:
    return LargeStickers(mini_stickers, SIZE, tmp_path)


class Witness(LargeStickers):
    """Notes which rows are asked for."""

    def __init__(self, stickers: Stickers, size: int, cache: Path) -> None:
        super().__init__(stickers, size, cache)
        self.seen: set[int] = set()

    def picture(self, row: int) -> np.ndarray:
        self.seen.add(row)
        return super().picture(row)


def test_training_never_sees_a_held_out_pair_and_validation_sees_nothing_else(
    mini_stickers: Stickers, tmp_path: Path
) -> None:
    witness = Witness(mini_stickers, SIZE, tmp_path)
    pictures = LargePictures(witness, 0)
    for number in range(2 * len(pictures.rows)):
        pictures.picture(number)
    train, held_out = set(mini_stickers.indices("train").tolist()), set(mini_stickers.indices("held_out").tolist())
    assert held_out
    assert witness.seen == train
    witness.seen.clear()
    assert held_out_large(witness, 99)
    assert witness.seen <= held_out
    assert witness.seen & {row for row in held_out if witness.is_vector(row)}


def test_a_picture_is_a_pure_function_of_seed_and_number(large: LargeStickers) -> None:
    first = [LargePictures(large, 5).picture(number) for number in range(12)]
    again = LargePictures(large, 5)
    for number in reversed(range(12)):
        assert np.array_equal(again.picture(number), first[number])
        assert first[number].shape == (SIZE, SIZE, 4)
    assert not np.array_equal(LargePictures(large, 6).picture(0), first[0])


def test_vectors_are_drawn_at_size_and_kept_while_raster_keeps_its_own_size(large: LargeStickers) -> None:
    vector = next(row for row in range(len(large.stickers)) if large.is_vector(row))
    raster = next(row for row in range(len(large.stickers)) if not large.is_vector(row))
    drawn = large.picture(vector)
    assert drawn.shape == (SIZE, SIZE, 4)
    assert np.array_equal(drawn, large.stickers.render(vector, SIZE))
    kept = large.folder / f"{vector:06d}.png"
    written = kept.stat().st_mtime_ns
    assert np.array_equal(large.picture(vector), drawn)
    assert kept.stat().st_mtime_ns == written
    # The sources are 64 pixels wide; the pictures of the set, at 128, are larger than that.
    assert large.picture(raster).shape == (64, 64, 4)


def test_another_size_has_another_cache_and_less_than_the_set_is_refused(large: LargeStickers, tmp_path: Path) -> None:
    assert LargeStickers(large.stickers, 512, tmp_path).folder != large.folder
    with pytest.raises(InvalidInput, match="128"):
        LargeStickers(large.stickers, 64, tmp_path)
