"""Recipe `stickers`: about 7,000 captioned pictures with clean licences, from five pinned packages."""

from __future__ import annotations

import json
import re
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from gouache.checkpoints.hub import file_sha256
from gouache.data.drawing import render_source, svg_document
from gouache.data.packages import Package, members, tarballs
from gouache.data.stickers import (
    RECIPE,
    RECIPE_VERSION,
    SourcePackage,
    Sticker,
    StickerManifest,
    read_manifest,
)
from gouache.data.whole_folder import whole_folder
from gouache.errors import DataError, InvalidInput

LICENCE_URLS = {
    "Apache-2.0": "https://www.apache.org/licenses/LICENSE-2.0",
    "CC-BY-4.0": "https://creativecommons.org/licenses/by/4.0/",
    "MIT": "https://opensource.org/license/mit",
}


@dataclass(frozen=True, slots=True)
class Credit:
    """Whom to name for a package's content.

    Attributes:
        title: name of the work.
        author: copyright holder.
        url: home of the work.
        licence: SPDX identifier.
    """

    title: str
    author: str
    url: str
    licence: str


def write_credits(data_set: str, packages: Sequence[tuple[Package, Credit]], counts: Mapping[str, int]) -> str:
    """The text of a `CREDITS.md`.

    Args:
        data_set: name of the data set.
        packages: every source package with its credit.
        counts: pictures by style.
    """
    lines = [
        f"# Credits of the data set {data_set}",
        "",
        f"{sum(counts.values())} pictures: " + ", ".join(f"{count} {style}" for style, count in counts.items()) + ".",
        "Changes made: the pictures were rendered or scaled to one size; scenes made from them may recolour, scale,",
        "mirror and combine them. The authors named here do not endorse this data set or models trained on it.",
        "",
    ]
    for package, credit in packages:
        licence = LICENCE_URLS.get(credit.licence)
        lines += [
            f"- **{credit.title}**, © {credit.author}, {credit.url}",
            f"  Licence: {credit.licence}" + (f" ({licence})" if licence else ""),
            f"  Taken from the npm package `{package.spec}`, integrity `{package.integrity}`",
        ]
    return "\n".join(lines) + "\n"


SKIN_TONE = re.compile(r"1f3f[b-f]")
COMPONENT_GROUP = 2
SIZES = range(16, 1025)


@dataclass(frozen=True, slots=True)
class StyleSource:
    """One style of the recipe: its key, the package that draws it, and whom to credit."""

    style: str
    package: Package
    credit: Credit


@dataclass(frozen=True, slots=True)
class StickerSources:
    """All packages of the recipe: the styles' pictures and the labels."""

    styles: tuple[StyleSource, ...]
    labels: Package
    labels_credit: Credit

    @property
    def packages(self) -> tuple[Package, ...]:
        """Every package to fetch."""
        return (*(style.package for style in self.styles), self.labels)


SOURCES = StickerSources(
    styles=(
        StyleSource(
            "noto",
            Package(
                "@iconify-json/noto",
                "1.2.9",
                "sha512-DQiuXENbun41ch+XPSV55H9FaWKpHTyz46YIKtSaKYD4fIDDzL1tR6H4np/T38jfrTAeI3rcKF0mqHYeZVAuaw==",
            ),
            Credit("Noto Emoji", "Google Inc.", "https://github.com/googlefonts/noto-emoji", "Apache-2.0"),
        ),
        StyleSource(
            "twemoji",
            Package(
                "@iconify-json/twemoji",
                "1.2.5",
                "sha512-uKpuIEV0v6K5BW3Mjdyl+XKFVAbbcPxAgifKvEMtZoUZB5+YiY5zaMm2uNNCxyXzAWU9yNLlj41WU6/mvgALsw==",
            ),
            Credit("Twemoji", "Twitter, Inc and other contributors", "https://github.com/jdecked/twemoji", "CC-BY-4.0"),
        ),
        StyleSource(
            "flat",
            Package(
                "@iconify-json/fluent-emoji-flat",
                "1.2.6",
                "sha512-RY47RgPb47fYUiyrA64sIOL0+UU02s29sXpNBbIQRBUlPlfNFTKUmZDERGuxDs/7yNGWqQYvuaSYM1M4fRXlUw==",
            ),
            Credit("Fluent Emoji, flat", "Microsoft Corporation", "https://github.com/microsoft/fluentui-emoji", "MIT"),
        ),
        StyleSource(
            "3d",
            Package(
                "@lobehub/fluent-emoji-3d",
                "1.1.0",
                "sha512-Wlq2lVStTnr8BDpIJ0pEnTKO4LuDxxqTEhTvRtD1DLRF0me7ogeRQjKoehDHXuVJ2Qaecgl5wRBv60lUAG3h7g==",
            ),
            Credit(
                "Fluent Emoji, 3D",
                "Microsoft Corporation; packed by LobeHub",
                "https://github.com/lobehub/fluent-emoji",
                "MIT",
            ),
        ),
    ),
    labels=Package(
        "emojibase-data",
        "17.0.0",
        "sha512-Yvgb5AWoHViHV/gq1qr5ZAarcBip+B27/ZLRsUJkbgAEaLlZ/fof9g882LTpmEpyhBNEC0m2SEmItljHsTygjA==",
    ),
    labels_credit=Credit(
        "emojibase (labels and keywords)", "Miles Johnson", "https://github.com/milesj/emojibase", "MIT"
    ),
)


@dataclass(frozen=True, slots=True)
class BuildProgress:
    """How far a build is: `done` of `total` pictures."""

    done: int
    total: int


@dataclass(frozen=True, slots=True)
class _Concept:
    """Labels of one code point sequence."""

    order: int
    label: str
    keywords: tuple[str, ...]
    zh_label: str
    zh_keywords: tuple[str, ...]
    group: str
    subgroup: str


def build_stickers(
    folder: str | Path, *, size: int = 128, tarball_folder: Path | None = None, sources: StickerSources = SOURCES
) -> Iterator[BuildProgress]:
    """Build the set into `folder`: a generator that yields its progress; the set is there when it ends.

    The set appears in one rename, whole or not at all. A folder that already holds the same set, by recipe version,
    size and packages, is left as it is.

    Args:
        folder: where the set shall be; absent, empty, or the same set.
        size: side of the pictures, 16 to 1024 pixels.
        tarball_folder: a folder with the packages' tarballs; None fetches them with `npm pack`.
        sources: the packages.

    Raises:
        InvalidInput: `size` is out of range.
        DataError: a package can't be had or is not the pinned one, `folder` holds something else, or the disk is full.
        MissingDependency: resvg-py or npm is absent.
    """
    folder = Path(folder)
    if size not in SIZES:
        raise InvalidInput("size", given=size, expected=f"{SIZES.start} to {SIZES.stop - 1} pixels", cure="Try 128.")
    if _already_built(folder, size, sources):
        return
    with tarballs(sources.packages, tarball_folder) as paths:
        concepts = _read_concepts(paths[sources.labels.name])
        found = [item for style in sources.styles for item in _read_style(style, paths[style.package.name], concepts)]
    if not found:
        raise DataError(str(folder), given="no picture with a label", expected="pictures in the packages")
    with whole_folder(folder) as part:
        yield from _write_set(part, found, size, sources)


def _already_built(folder: Path, size: int, sources: StickerSources) -> bool:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    cure = "Choose another folder, or remove that one."
    if not (folder / "manifest.json").is_file():
        raise DataError(str(folder), given="other files", expected="no folder, or an empty one", cure=cure)
    manifest = read_manifest(folder)
    wanted = [(p.name, p.integrity) for p in sources.packages]
    if manifest.size != size or [(p.name, p.integrity) for p in manifest.packages] != wanted:
        given = f"a set of {manifest.size} px pictures, or of other packages"
        raise DataError(str(folder), given=given, expected=f"this recipe's set at {size} px", cure=cure)
    return True


def _read_concepts(tarball: Path) -> dict[str, _Concept]:
    wanted = {"en/data.json", "zh/data.json", "meta/groups.json"}
    files = {name: json.loads(content) for name, content in members(tarball) if name in wanted}
    if wanted - files.keys():
        raise DataError(
            str(tarball), given=f"no {', '.join(sorted(wanted - files.keys()))}", expected="the label files"
        )
    groups = files["meta/groups.json"]["groups"]
    subgroups = files["meta/groups.json"]["subgroups"]
    chinese = {row["hexcode"]: row for row in files["zh/data.json"]}
    return {
        normal_code(row["hexcode"]): _concept(row, chinese[row["hexcode"]], groups, subgroups)
        for row in files["en/data.json"]
        if row.get("group") != COMPONENT_GROUP and row["hexcode"] in chinese
    }


def _concept(
    row: dict[str, Any], chinese: dict[str, Any], groups: dict[str, str], subgroups: dict[str, str]
) -> _Concept:
    has_group = "group" in row
    return _Concept(
        order=row.get("order", 0),
        label=row["label"],
        keywords=tuple(row.get("tags", ())),
        zh_label=chinese["label"],
        zh_keywords=tuple(chinese.get("tags", ())),
        group=groups[str(row["group"])] if has_group else "letters",
        subgroup=subgroups[str(row["subgroup"])] if has_group else "letters",
    )


def normal_code(name: str) -> str:
    """The key of a concept: lower case, ``-`` between code points of at least four digits, FE0F left out."""
    points = re.split("[-_]", name.lower())
    return "-".join(point.rjust(4, "0") for point in points if point != "fe0f")


def _read_style(style: StyleSource, tarball: Path, concepts: dict[str, _Concept]) -> Iterator[tuple[Sticker, bytes]]:
    """Every picture of one style whose code has a label and no skin tone, in the order of the labels."""
    raw = dict(_raw_pictures(tarball))
    usable = [code for code in raw if code in concepts and not SKIN_TONE.search(code)]
    for code in sorted(usable, key=lambda code: (concepts[code].order, code)):
        concept = concepts[code]
        suffix, content = raw[code]
        sticker = Sticker(
            index=0,
            code=code,
            style=style.style,
            label=concept.label,
            keywords=concept.keywords,
            zh_label=concept.zh_label,
            zh_keywords=concept.zh_keywords,
            group=concept.group,
            subgroup=concept.subgroup,
            file=f"{style.style}/{code}{suffix}",
            source=style.package.spec,
            licence=style.credit.licence,
        )
        yield sticker, content


def _raw_pictures(tarball: Path) -> Iterator[tuple[str, tuple[str, bytes]]]:
    """(code, (suffix, content)) of an icon package or of one with a file a picture."""
    files = dict(members(tarball))
    if "icons.json" not in files:
        for name, content in files.items():
            path = Path(name)
            if path.suffix in (".webp", ".png"):
                yield normal_code(path.stem), (path.suffix, content)
        return
    icons, names = json.loads(files["icons.json"]), json.loads(files["chars.json"])
    for character, name in names.items():
        icon = icons["icons"].get(name)
        if icon is not None:
            width, height = icon.get("width", icons.get("width", 16)), icon.get("height", icons.get("height", 16))
            yield normal_code(character), (".svg", svg_document(icon["body"], width, height).encode())


def _write_set(
    part: Path, found: list[tuple[Sticker, bytes]], size: int, sources: StickerSources
) -> Iterator[BuildProgress]:
    records = [replace(sticker, index=i) for i, (sticker, _) in enumerate(found)]
    shape = (len(records), size, size, 4)
    with (part / "pictures.npy").open("wb") as pictures, zipfile.ZipFile(part / "sources.zip", "w") as archive:
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(pictures, header)
        for record, (_, content) in zip(records, found, strict=True):
            pictures.write(render_source(record.file, content, size).tobytes())
            # A fixed date, so that the same recipe gives the same bytes; WebP is compressed already.
            entry = zipfile.ZipInfo(record.file)
            entry.compress_type = zipfile.ZIP_DEFLATED if record.file.endswith(".svg") else zipfile.ZIP_STORED
            archive.writestr(entry, content)
            yield BuildProgress(record.index + 1, len(records))
    lines = (json.dumps(asdict(record), ensure_ascii=False) for record in records)
    (part / "records.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    counts = dict(Counter(record.style for record in records))
    packages = [(style.package, style.credit) for style in sources.styles]
    packages.append((sources.labels, sources.labels_credit))
    (part / "CREDITS.md").write_text(write_credits("stickers", packages, counts), encoding="utf-8")
    manifest = StickerManifest(
        recipe=RECIPE,
        recipe_version=RECIPE_VERSION,
        size=size,
        count=len(records),
        counts=counts,
        packages=tuple(
            SourcePackage(name=p.name, version=p.version, integrity=p.integrity, licence=c.licence) for p, c in packages
        ),
        sha256={path.name: file_sha256(path) for path in sorted(part.iterdir())},
    )
    (part / "manifest.json").write_text(manifest.model_dump_json(indent=1) + "\n", encoding="utf-8")
