"""Compare what the guide's cells printed and drew in the last `make docs` with what is kept beside the guide.

    python docs/guide/outputs.py          compare; exit code 1 if something differs
    python docs/guide/outputs.py --write  keep what there is now

Kept are the texts, and of every picture its size and a print of 8 x 8 grey levels. Numbers may differ by 5 % and grey
levels by 24 of 255. What differs in every run (times, sizes in memory) is in cells with the tag `varies`, which aren't
compared. Another kind of processor rounds differently, and one token drawn otherwise is another picture: there,
differences are printed and the exit code is 0.
"""

from __future__ import annotations

import argparse
import base64
import io
import platform
import re
import sys
from itertools import zip_longest
from pathlib import Path

import nbformat
import torch
from jupyter_cache import get_cache
from PIL import Image

HERE = Path(__file__).parent
CACHE = HERE.parents[1] / "build" / "docs" / "cache"
KEPT = HERE / "outputs"
PROCESSOR = KEPT / "processor.txt"
"""The kind of processor that made what is kept."""
PRINT = re.compile(r" picture (\d+x\d+) ([0-9a-f]{128})$")
NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?")
RELATIVE, GREY = 0.05, 24


def printed(picture: bytes) -> str:
    """Size of a picture and its print."""
    image = Image.open(io.BytesIO(picture)).convert("RGBA")
    grey = (
        Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        .convert("L")
        .resize((8, 8), Image.Resampling.BOX)
    )
    return f"picture {image.width}x{image.height} {grey.tobytes().hex()}"


def lines_of(notebook: nbformat.NotebookNode) -> list[str]:
    """What one page's cells gave, in order."""
    lines: list[str] = []
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for number, cell in enumerate(cells, start=1):
        if "varies" in cell.metadata.get("tags", []):
            continue
        printed_text = ""
        for output in [*cell.outputs, None]:  # None: after the last one
            if output is not None and output.output_type == "stream":
                # How a line is cut into messages depends on the time.
                printed_text += output.text if output.name == "stdout" else ""
                continue
            lines += [f"{number}: {line.rstrip()}" for line in printed_text.splitlines()]
            printed_text = ""
            data = {} if output is None else output.get("data", {})
            if "image/png" in data:
                lines.append(f"{number}: {printed(base64.b64decode(data['image/png']))}")
            elif rich := [kind for kind in ("image/svg+xml", "image/gif", "text/html") if kind in data]:
                lines.append(f"{number}: {rich[0]}")
            elif "text/plain" in data:
                lines += [f"{number}: {line}" for line in data["text/plain"].splitlines()]
    return lines


def alike(now: str, kept: str) -> bool:
    """Whether two lines say the same within what processors differ by."""
    prints = [PRINT.search(line) for line in (now, kept)]
    if prints[0] and prints[1]:
        grey = [bytes.fromhex(one[2]) for one in prints if one]
        return prints[0][1] == prints[1][1] and max(abs(a - b) for a, b in zip(*grey, strict=True)) <= GREY
    if NUMBER.sub("#", now).split() != NUMBER.sub("#", kept).split():
        return False
    pairs = zip(NUMBER.findall(now), NUMBER.findall(kept), strict=True)
    return all(abs(float(a) - float(b)) <= RELATIVE * max(abs(float(a)), abs(float(b))) for a, b in pairs)


def executed() -> dict[str, nbformat.NotebookNode]:
    """The English pages' last executions, by the page's name. The Chinese ones share them."""
    cache = get_cache(str(CACHE))
    newest = sorted(cache.list_cache_records(), key=lambda record: record.accessed)
    return {
        Path(one.uri).stem: cache.get_cache_bundle(one.pk).nb for one in newest if Path(one.uri).parent.name == "en"
    }


def processor() -> str:
    """What decides how sums are rounded here: maker and model, and the vectors that torch computes with."""
    facts = Path("/proc/cpuinfo")
    told = facts.read_text(encoding="utf-8") if facts.exists() else ""
    found = [re.search(rf"^{key}\s*:\s*(\S+)$", told, re.M) for key in ("vendor_id", "cpu family", "model", "stepping")]
    named = " ".join(one[1] for one in found if one) or platform.system()
    return f"{named} {platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def main() -> int:
    """Compare or write; 0 if all is as it was."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="keep what the cells gave now")
    write = parser.parse_args().write
    pages = {page.stem for page in (HERE / "en").glob("[0-9]*.md")}
    found = {name: lines_of(notebook) for name, notebook in executed().items() if name in pages}
    missing = sorted(pages - set(found))
    faults = [f"{name}: not executed: run `make docs`" for name in missing]
    for name, lines in sorted(found.items()):
        file = KEPT / f"{name}.txt"
        if write:
            KEPT.mkdir(exist_ok=True)
            file.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
            continue
        kept = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        for now, before in zip_longest(lines, kept, fillvalue="(nothing)"):
            if not alike(now, before):
                faults.append(f"{name}, cell {now}\n    kept: {before}")
    if write:
        PROCESSOR.write_text(processor() + "\n", encoding="utf-8")
    kept_by = PROCESSOR.read_text(encoding="utf-8").strip()
    print(*faults, f"{len(found)} pages compared, {len(faults)} differences", sep="\n")  # noqa: T201
    if faults and kept_by != processor() and not missing:
        print(f"What is kept was made by {kept_by}; this is {processor()}: told, not refused.")  # noqa: T201
        return 0
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
