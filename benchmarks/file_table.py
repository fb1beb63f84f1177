"""Which files of which program gouache reads: each is written as its program writes it, and gouache is asked.

    python benchmarks/file_table.py            # measure everything and write docs/files.md
    python benchmarks/file_table.py --pictures # pictures' metadata alone, printed
    python benchmarks/file_table.py --published # the tables of published files alone, written anew

To add a file: an `Entry` with a name, a program and a function that writes it to a path (`picture_files.py` and
`weight_files.py` have writers). The last two columns are measured, never typed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import picture_files as pictures
import published_files as published

from gouache.diffusion.samplers.names import resolve, resolve_schedule
from gouache.errors import GouacheError
from gouache.pipeline.output.foreign import read_recipe

PAGE = Path(__file__).parents[1] / "docs" / "files.md"
LONGEST = 150
NOWHERE = Path("/no/folder/of/files")


@dataclass(frozen=True, slots=True)
class Entry:
    """One kind of file.

    Attributes:
        name: what it is; the file's name on disk is made of it.
        program: who writes it so.
        write: writes it to a path.
        suffix: of the path; empty for a folder.
    """

    name: str
    program: str
    write: Callable[[Path], None]
    suffix: str = ".png"


@dataclass(frozen=True, slots=True)
class Row:
    """A line of a table.

    Attributes:
        name: of the file.
        program: who writes it.
        verdict: read, in part, refused, not known.
        said: what gouache says.
    """

    name: str
    program: str
    verdict: str
    said: str

    def line(self) -> str:
        said = self.said.replace("|", "\\|")
        return f"| {self.name} | {self.program} | {self.verdict} | {said} |"


def _png(texts: dict[str, str], **how: Any) -> Callable[[Path], None]:
    return partial(pictures.png, texts=texts, **how)


def _text(text: str, **how: Any) -> Callable[[Path], None]:
    return _png({"parameters": text}, **how)


def _exif(kind: str, comment: bytes) -> Callable[[Path], None]:
    return partial(pictures.with_exif, kind=kind, comment=comment)


def _tags(kind: str, tags: dict[int, str]) -> Callable[[Path], None]:
    return partial(pictures.with_exif, kind=kind, tags=tags)


def _comfy(values: dict[str, Any]) -> Callable[[Path], None]:
    return _png(pictures.queued(values))


_DUMP, _TEXT = json.dumps, pictures.TEXT
_COMMENT, _GRAPH = pictures.unicode_comment, _DUMP(pictures.graph())
_BOTH = {0x0110: f"prompt:{_GRAPH}", 0x010F: "workflow:{}"}
_BESIDE = {"prompt": "{}", "parameters": f"{_TEXT}, Version: ComfyUI"}
_NOVEL = {"Software": "NovelAI", "Comment": _DUMP(pictures.NOVEL)}
_EASY = {key: str(one) for key, one in pictures.EASY.items()}
PICTURES: tuple[Entry, ...] = (
    Entry("PNG, text `parameters`", "A1111", _text(_TEXT)),
    Entry("PNG, packed text", "A1111, by an optimizer", _text(_TEXT, sort="packed")),
    Entry("PNG, text behind the pixels", "ImageMagick", _text(_TEXT, behind=True)),
    Entry("JPEG, EXIF user comment", "A1111", _exif("JPEG", _COMMENT(_TEXT)), ".jpg"),
    Entry("WebP, EXIF user comment", "A1111", _exif("WEBP", _COMMENT(_TEXT)), ".webp"),
    Entry("JPEG, comment in little-endian", "Civitai", _exif("JPEG", _COMMENT(_TEXT, "le")), ".jpg"),
    Entry("GIF, comment", "A1111", partial(pictures.in_comment, kind="GIF"), ".gif"),
    Entry("PNG, text in alpha's lowest bit", "A1111, stealth extension", pictures.stealth),
    Entry("PNG, text `parameters` of Forge", "Forge", _text(f"{_TEXT}, Version: f2.0.1v1.10.1")),
    Entry("PNG, text `parameters` of SD.Next", "SD.Next", _text(f"{_TEXT}, App: SD.Next, Version: 27ee0b3")),
    Entry("PNG, UTF-8 in tEXt", "stable-diffusion.cpp", pictures.raw_utf8),
    Entry("PNG, default graph", "ComfyUI", _comfy(pictures.graph())),
    Entry("PNG, text wired from another node", "ComfyUI", _comfy(pictures.wired())),
    Entry("PNG, base and refiner", "ComfyUI", _comfy(pictures.refined())),
    Entry("PNG, SamplerCustomAdvanced", "ComfyUI", _comfy(pictures.custom())),
    Entry("PNG, the editor's graph alone", "ComfyUI", _png({"workflow": _DUMP(pictures.EDITOR)})),
    Entry("WebP, graph in EXIF Model and Make", "ComfyUI", _tags("WEBP", _BOTH), ".webp"),
    Entry("JPEG, graph in EXIF", "ComfyUI, WAS suite", _tags("JPEG", {0x010F: f"Prompt:{_GRAPH}"}), ".jpg"),
    Entry("PNG, a graph without sampler beside `parameters`", "ComfyUI, Image Saver", _png(_BESIDE)),
    Entry("PNG, text `invokeai_metadata`", "InvokeAI 3 to 5", _png({"invokeai_metadata": _DUMP(pictures.INVOKE)})),
    Entry("PNG, text `sd-metadata`", "InvokeAI 2", _png({"sd-metadata": _DUMP(pictures.INVOKE_2)})),
    Entry("PNG, text `Dream`", "InvokeAI 1", _png({"Dream": pictures.DREAM})),
    Entry("PNG, texts `Software` and `Comment`", "NovelAI", _png(_NOVEL)),
    Entry("PNG, JSON in `parameters`", "Fooocus", _text(_DUMP(pictures.FOOOCUS))),
    Entry("JPEG, JSON in the user comment", "Fooocus", _exif("JPEG", _DUMP(pictures.FOOOCUS).encode()), ".jpg"),
    Entry("PNG, A1111's scheme", "Fooocus", _text(f"{_TEXT}, Version: Fooocus v2.5.5")),
    Entry("PNG, JSON with capital names", "RuinedFooocus", _text(_DUMP(pictures.RUINED))),
    Entry("PNG, `sui_image_params`", "SwarmUI", _text(_DUMP(pictures.SWARM), sort="international")),
    Entry("JPEG, `sui_image_params`", "SwarmUI", _exif("JPEG", _COMMENT(_DUMP(pictures.SWARM), "le")), ".jpg"),
    Entry("PNG, a text for each setting", "Easy Diffusion", _png(_EASY)),
    Entry(
        "JPEG, JSON in the user comment (ED)", "Easy Diffusion", _exif("JPEG", _COMMENT(_DUMP(pictures.EASY))), ".jpg"
    ),
    Entry("PNG, XMP", "Draw Things", pictures.draw_things),
    Entry("PNG, text `Description`", "Midjourney", _png({"Description": "a cat --v 6 Job ID: 01"})),
    Entry("PNG without texts", "any", _png({})),
)


def picture_row(entry: Entry, folder: Path) -> Row:
    """Write the picture and compare the request that is read from it with what was asked for."""
    path = folder / f"{_slug(entry.name)}{entry.suffix}"
    entry.write(path)
    try:
        found = read_recipe(path)
    except GouacheError as error:
        return Row(entry.name, entry.program, "refused", short(error, folder))
    request = found.request
    wrong = [name for name, value in pictures.GIVEN.items() if not _same(name, getattr(request, name), value, request)]
    said = f"as {found.tool}" + (f"; not the {', '.join(_words(wrong))}" if wrong else "; every setting")
    notes = f"; notes: {'; '.join(found.notes)}" if found.notes else ""
    return Row(entry.name, entry.program, "in part" if wrong else "read", cut(said + notes))


def _same(name: str, found: object, wanted: object, request: Any) -> bool:
    if name == "sampler":
        return request.sampler is not None and resolve(request.sampler)[0] == wanted
    if name == "schedule":
        implied = resolve(request.sampler)[1] if request.sampler else None
        return (resolve_schedule(request.schedule) if request.schedule else implied) == wanted
    return str(found).removesuffix(".safetensors") == str(wanted)


def _words(names: Iterable[str]) -> list[str]:
    plain = {"num_inference_steps": "steps", "guidance_scale": "guidance", "negative_prompt": "negative prompt"}
    return [plain.get(name, name) for name in names]


def short(error: GouacheError, folder: Path) -> str:
    """An error without the place of the file."""
    text = f"given {error.given}, expected {error.expected}".replace(f"{folder}/", "").replace(str(folder), "")
    return cut(re.sub(r"\s+", " ", text))


def cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3].rstrip()}..."


def _slug(name: str) -> str:
    return re.sub(r"\W+", "-", name).strip("-").lower()


HEAD = """# Which files gouache reads

Written by `python benchmarks/file_table.py`: each file is written small, in the layout, container, encoding and names
of its program, and gouache is asked what it is. **read**: all that was asked for comes back, or the file is used.
**in part**: the rest is named. **identified**: what it is is known; a use of its own isn't tried. **refused**: an error
with a reason, never a wrong image. **not known**: passed over.
`tests/pipeline/output/test_file_table.py` measures the pictures and the published files again at every test run, the
weights with `-m slow`.
"""
PICTURES_HEAD = """
## Settings inside pictures

Read by `gouache show`, `gouache paint --like`, the page (drop an image on the gallery) and A1111's `png-info`. Each
picture asks for a prompt, a negative prompt, a seed, steps, guidance, a size, DPM++ 2M with Karras and a model. What
can't be followed or has no place in a request becomes a note: it is shown, and kept in the recipe of what is generated
from it.

| file | program | | gouache says |
|---|---|---|---|
"""
WEIGHTS_HEAD = """
## Weights

Models are loaded, adapters and embeddings applied to a model of their family, upscalers and ControlNets loaded.

| file | program | | gouache says |
|---|---|---|---|
"""
PUBLISHED_HEAD = """
## Published files

Files that nobody here wrote, by the names and shapes of their tensors as other programs list them
(`tests/reference/published.toml`, with the sources): what `gouache inspect` calls them. No weights are needed for that;
`tests/checkpoints/test_published.py` compares each with what its makers say, and that every tensor of the models has
its place in our networks.

| file | list by | | gouache says |
|---|---|---|---|
"""
FOLDERS_HEAD = """
## Published folders

By the pipeline that their `model_index.json` names.

| repository | pipeline | | gouache says |
|---|---|---|---|
"""


def published_rows() -> list[Row]:
    """Every file of `published.toml`, as `identify` names it."""
    rows = []
    for entry in published.entries("file"):
        found = published.told(published.header_of(entry))
        refused = isinstance(found, GouacheError)
        said = short(found, NOWHERE) if isinstance(found, GouacheError) else published.identity_words(found)
        rows.append(Row(entry["name"], entry["source"], "refused" if refused else "identified", cut(said)))
    return rows


def folder_rows() -> list[Row]:
    """Every folder of `published.toml`, as its pipeline is taken."""
    rows = []
    for entry in published.entries("folder"):
        error = published.told_of_folder(entry)
        said = "a pipeline of Stable Diffusion" if error is None else short(error, NOWHERE)
        rows.append(Row(entry["name"], entry["class"], "read" if error is None else "refused", said))
    return rows


def published_page() -> str:
    """Both tables of what is published."""
    return PUBLISHED_HEAD + table(published_rows()) + FOLDERS_HEAD + table(folder_rows())


def table(rows: Sequence[Row]) -> str:
    return "\n".join(row.line() for row in rows) + "\n"


def picture_rows() -> list[Row]:
    """Every picture, measured."""
    with tempfile.TemporaryDirectory() as folder:
        return [picture_row(entry, Path(folder)) for entry in PICTURES]


def weight_rows() -> list[Row]:
    """Every file of weights, measured; needs diffusers, and half a minute."""
    import weight_files

    with tempfile.TemporaryDirectory() as folder:
        os.environ["GOUACHE_MODELS"] = folder
        rows = []
        for names, said in weight_files.measured(Path(folder)):
            verdict, words = ("refused", short(said, Path(folder))) if isinstance(said, GouacheError) else said
            rows.append(Row(*names, verdict, cut(words)))
        return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", action="store_true", help="print the pictures' rows and stop")
    parser.add_argument("--published", action="store_true", help="write the tables of published files alone anew")
    parser.add_argument("--page", type=Path, default=PAGE, help="where to write the page")
    options = parser.parse_args()
    if options.pictures:
        sys.stdout.write(table(picture_rows()))
        return
    if options.published:
        kept, _, _ = options.page.read_text(encoding="utf-8").partition(PUBLISHED_HEAD.split("\n\n")[0])
        options.page.write_text(kept + published_page(), encoding="utf-8")
        return
    options.page.write_text(
        HEAD + PICTURES_HEAD + table(picture_rows()) + WEIGHTS_HEAD + table(weight_rows()) + published_page(),
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
