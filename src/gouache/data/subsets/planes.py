"""Pictures that belong to a picture: the mask of its loss, and the condition that it is painted from.

They lie beside it as ``NAME-mask.png``, or under the same name in a folder that says what they are: ``masks/NAME.png``,
``conditioning/NAME.png``, ``before/NAME.png`` for ``after/NAME.png``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from gouache.colours import Picture
from gouache.data.buckets import Bucket, fit_to_bucket
from gouache.errors import DataError

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif")
CAPTION_SUFFIXES = (".txt", ".caption")
MaskSource = Literal["files", "alpha", "conditions", "none"]
"""Where masks come from: files of their own, the pictures' alpha, the conditions' red channel, or nowhere."""
MASK_ENDINGS = ("-mask", "-masklabel")
MASK_FOLDERS = ("masks", "mask")
CONDITION_FOLDERS = ("conditioning", "conditioning_images", "conditions", "condition", "control")
PAIRS = {"before": "after", "source": "target", "input": "output"}
"""Folders of conditions that need their counterpart beside them."""
SAME_SHAPE = 0.02
"""By how much the shape of what belongs to a picture may differ from the picture's."""
Mask = NDArray[np.uint8]


class Planes:
    """Finds masks and conditions among the files of a folder.

    Args:
        root: the folder.
        files: in it, at any depth.
    """

    def __init__(self, root: Path, files: Iterable[Path]) -> None:
        files = list(files)
        self.root = root
        pictures = [path for path in files if path.suffix.lower() in PICTURE_SUFFIXES]
        self._at = {path.with_suffix(""): path for path in pictures}
        captioned = {path.with_suffix("") for path in files if path.suffix in CAPTION_SUFFIXES}
        self._folders = {path.parent for path in pictures}
        self._folders -= {path.parent for path in pictures if path.with_suffix("") in captioned}  # these are trained on

    def mask(self, picture: Path) -> Path | None:
        """The mask of a picture."""
        beside = (self._at.get(picture.with_name(picture.stem + ending)) for ending in MASK_ENDINGS)
        return next(filter(None, beside), None) or self._in_folder(picture, MASK_FOLDERS)

    def condition(self, picture: Path) -> Path | None:
        """The condition of a picture."""
        return self._in_folder(picture, (*CONDITION_FOLDERS, *PAIRS))

    def pictures(self) -> tuple[list[Path], int]:
        """The pictures themselves, without those that belong to another; and how many of the latter have no picture."""
        belonging = {found for path in self._at.values() for found in (self.mask(path), self.condition(path)) if found}
        folders = {path.parent for path in belonging if self._says(path.parent)}
        alone = [path for path in self._at.values() if path not in belonging]
        own = [path for path in alone if path.parent not in folders]
        return own, len(alone) - len(own)

    def _says(self, folder: Path) -> bool:
        return folder.name in (*MASK_FOLDERS, *CONDITION_FOLDERS, *PAIRS)

    def _in_folder(self, picture: Path, names: Sequence[str]) -> Path | None:
        """The picture of the same name in a folder beside it, or beside a folder that it is in."""
        below = picture.with_suffix("").relative_to(self.root)
        if any(part in (*MASK_FOLDERS, *CONDITION_FOLDERS, *PAIRS) for part in below.parts[:-1]):
            return None
        for depth in range(len(below.parts) - 1, -1, -1):
            above, rest = self.root.joinpath(*below.parts[:depth]), below.parts[depth:]
            for name in names:
                for inner in (rest, rest[1:]):
                    found = self._at.get(above.joinpath(name, *inner)) if inner else None
                    if found and found.parent in self._folders and (PAIRS.get(name, rest[0]) == rest[0]):
                        return found
        return None


def in_folder(folder: Path, picture: str) -> Path | None:
    """The picture of the same name in a folder of conditions; `picture` is a name as its own source has it."""
    for name in (Path(picture), Path(Path(picture).name)):
        for suffix in (name.suffix, *PICTURE_SUFFIXES):
            if (path := (folder / name).with_suffix(suffix)).is_file():
                return path
    return None


def fitted_plane(plane: Picture, picture: Picture, bucket: Bucket, what: str) -> Picture:
    """What belongs to a picture, scaled and cut as `fit_to_bucket` does the picture: uint8 [h,w,4]

    Args:
        plane: uint8 [H',W',4], of the picture's shape at any size.
        picture: uint8 [H,W,4].
        bucket: the picture's.
        what: "mask" or "condition", for the error.

    Raises:
        DataError: its shape isn't the picture's.
    """
    height, width = picture.shape[:2]
    if plane.shape[:2] == (height, width):
        return fit_to_bucket(plane, bucket)
    ratio = plane.shape[1] / plane.shape[0] * height / width
    if not 1 - SAME_SHAPE < ratio < 1 / (1 - SAME_SHAPE):
        given = f"a {what} of {plane.shape[1]}x{plane.shape[0]} for a picture of {width}x{height}"
        raise DataError(what, given=given, expected="the picture's shape")
    return fit_to_bucket(fit_to_bucket(plane, Bucket(width, height)), bucket)


def fitted_mask(mask: Mask, picture: Picture, bucket: Bucket) -> Mask:
    """As `fitted_plane`, of a mask uint8 [H',W']: uint8 [h,w] of the bucket."""
    plane = np.concatenate([np.repeat(mask[..., None], 3, axis=2), np.full((*mask.shape, 1), 255, np.uint8)], axis=2)
    return np.ascontiguousarray(fitted_plane(plane, picture, bucket, "mask")[..., 0])
