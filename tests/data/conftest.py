"""A small recipe in real npm tarballs, made on the spot: twelve coloured shapes in two styles, with labels."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from gouache.data.packages import Package, integrity_of
from gouache.data.stickers import Stickers
from gouache.data.stickers_recipe import Credit, StickerSources, StyleSource, build_stickers

NOUNS = (
    "apple",
    "boat",
    "car",
    "duck",
    "egg",
    "frog",
    "guitar",
    "hat",
    "igloo",
    "jar",
    "kite",
    "lamp",
    "mango",
    "nut",
    "owl",
    "pear",
    "quill",
    "robot",
    "spoon",
    "tent",
    "urn",
    "van",
    "wagon",
    "yak",
    "zebra",
    "anchor",
    "bell",
    "clock",
    "drum",
    "engine",
)
FILLS = ("#d8332f", "#f59a23", "#f8d33c", "#3fae49", "#3c6fdc", "#8a4fbf")


def code_of(number: int) -> str:
    return f"1f{0x400 + number:03x}"


def tarball(path: Path, files: Mapping[str, bytes]) -> Path:
    """Write an npm tarball: every file below `package/`."""
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"package/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def icon_files() -> dict[str, bytes]:
    """An icon package: shapes on a 32 x 32 view box, one with a skin tone, one without a label."""
    icons: dict[str, dict[str, str | int]] = {}
    chars: dict[str, str] = {}
    for number, noun in enumerate(NOUNS):
        fill = FILLS[number % len(FILLS)]
        shape = '<circle cx="16" cy="16" r="12"' if number % 2 else '<rect x="5" y="7" width="22" height="18"'
        icons[noun] = {"body": f'{shape} fill="{fill}"/>'}
        chars[f"{code_of(number)}-fe0f" if number == 3 else code_of(number)] = noun
    icons["wide"] = {"body": '<rect width="32" height="16" fill="#f00" fill-opacity=".5"/>', "height": 16}
    chars |= {"2049": "wide", "1f44b-1f3fb": "apple", "1faeb": "apple"}
    document = {"prefix": "mini", "icons": icons, "width": 32, "height": 32}
    return {"icons.json": json.dumps(document).encode(), "chars.json": json.dumps(chars).encode()}


def picture_files() -> dict[str, bytes]:
    """A package with a WebP file a picture; the keycap's name has no leading zeros."""
    files = {}
    for number in range(len(NOUNS)):
        image = Image.new("RGBA", (64, 64))
        image.paste(FILLS[(number + 1) % len(FILLS)], (12, 10, 54, 56))
        content = io.BytesIO()
        image.save(content, "WEBP", lossless=True)
        files[f"assets/{code_of(number)}.webp"] = content.getvalue()
    files["assets/39-fe0f-20e3.webp"] = files[f"assets/{code_of(0)}.webp"]
    return files


def label_files() -> dict[str, bytes]:
    rows, chinese = [], []
    for number, noun in enumerate(NOUNS):
        place = {"group": 4 if number % 2 else 3, "subgroup": 42, "order": number}
        rows.append({"hexcode": code_of(number).upper(), "label": noun, "tags": [noun, "thing"], **place})
        chinese.append({"hexcode": code_of(number).upper(), "label": f"东西{number}", "tags": ["东西"], **place})
    for code, label, group in (("0039-FE0F-20E3", "keycap: 9", 8), ("2049", "exclamation", 8), ("1F3FB", "light", 2)):
        rows.append({"hexcode": code, "label": label, "tags": [], "group": group, "subgroup": 42, "order": 900})
        chinese.append({"hexcode": code, "label": "符号", "tags": [], "group": group, "subgroup": 42, "order": 900})
    groups = {"2": "component", "3": "animals-nature", "4": "food-drink", "8": "symbols"}
    meta = {"groups": groups, "subgroups": {"42": "food-fruit"}}
    documents = {"en/data.json": rows, "zh/data.json": chinese, "meta/groups.json": meta}
    return {name: json.dumps(document, ensure_ascii=False).encode() for name, document in documents.items()}


@dataclass(frozen=True)
class MiniRecipe:
    """The tarballs' folder and the sources that name them."""

    folder: Path
    sources: StickerSources


def package_of(folder: Path, name: str, files: Mapping[str, bytes]) -> Package:
    unchecked = Package(name, "1.0.0", "")
    content = tarball(folder / unchecked.tarball_name, files).read_bytes()
    return Package(name, "1.0.0", integrity_of(content))


@pytest.fixture(scope="session")
def mini_recipe(tmp_path_factory: pytest.TempPathFactory) -> MiniRecipe:
    """Two styles and labels, as npm would pack them."""
    folder = tmp_path_factory.mktemp("tarballs")
    credit = Credit("Shapes", "Nobody", "https://example.org", "MIT")
    icons = StyleSource("noto", package_of(folder, "@mini/icons", icon_files()), credit)
    pictures = StyleSource("3d", package_of(folder, "@mini/pictures", picture_files()), credit)
    return MiniRecipe(folder, StickerSources((icons, pictures), package_of(folder, "labels", label_files()), credit))


@pytest.fixture(scope="session")
def mini_stickers(mini_recipe: MiniRecipe, tmp_path_factory: pytest.TempPathFactory) -> Stickers:
    """The mini recipe, built at 128 pixels."""
    folder = tmp_path_factory.mktemp("sets") / "stickers"
    for _ in build_stickers(folder, size=128, tarball_folder=mini_recipe.folder, sources=mini_recipe.sources):
        pass
    return Stickers.open(folder)
