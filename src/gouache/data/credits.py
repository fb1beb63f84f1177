"""The `CREDITS.md` that goes with a data set and with every model trained on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gouache.data.packages import Package

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
