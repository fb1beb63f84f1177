"""Make docs/gallery.md and its pictures: one figure for each feature, all painted by one model.

    python recipes/gallery.py                        # the model in the package
    python recipes/gallery.py --model untrained --out /tmp/gallery

What a model can't do (drafts without a prior, transparency without an alpha channel) is left out and named on stderr.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from gouache.errors import GouacheError
from gouache.pipeline.generate.generation import Painted
from gouache.pipeline.inputs.images import on_background
from gouache.pipeline.output.recipe import model_ref
from gouache.pipeline.output.sheets import labelled_sheet
from gouache.pipeline.pipeline import Pipeline, open_pipeline
from gouache.pipeline.request import (
    Hires,
    Interpolation,
    Inversion,
    Mask,
    Outpaint,
    Prior,
    Request,
    Tiled,
    Upscale,
)

MOST_BYTES = 2_000_000
QUALITY = 88
ENGINE, FROG = "a red fire engine, 3d style", "a green frog, 3d style"
WORDS = (
    "a red fire engine",
    "a green frog",
    "a slice of pizza",
    "a smiling sun",
    "a blue butterfly",
    "a birthday cake",
    "a yellow car",
    "a penguin",
)
STYLES = ("noto", "twemoji", "flat", "3d")
SEVERAL = (
    "a cat to the left of a tree",
    "a blue book above a red apple",
    "three cups",
    "a rocket, a moon and a star, flat style",
    "左上角有一只青蛙",
)
CHINESE = ("一只绿色的青蛙", "一辆红色的消防车", "一块披萨", "一只企鹅")


@dataclass(frozen=True)
class Figure:
    """One feature.

    Attributes:
        title: heading on the page.
        text: what is to be seen.
        command: what paints such a picture.
        make: paints the sheet.
    """

    title: str
    text: str
    command: str
    make: Callable[[Painter], Image.Image]


class Painter:
    """Paints for the figures.

    Args:
        pipeline: the model.
        seed: of every picture that doesn't choose its own.
    """

    def __init__(self, pipeline: Pipeline, seed: int) -> None:
        self.pipeline, self.seed = pipeline, seed
        self.side = pipeline.bundle.defaults.width
        self._files: dict[str, bytes] = {}

    def all(self, prompt: str, **changes: object) -> list[Painted]:
        """Every picture of a request."""
        request = Request(prompt=prompt, seed=self.seed).replace(changes)
        return self.pipeline.paint(request, self._files)

    def one(self, prompt: str, **changes: object) -> Image.Image:
        """Its only picture."""
        return self.all(prompt, **changes)[0].image

    def file(self, name: str, picture: Image.Image) -> str:
        """A picture that later requests can name."""
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        self._files[name] = buffer.getvalue()
        return name

    def start(self) -> tuple[Image.Image, str]:
        """The picture that the edits start from, and its name."""
        picture = self.one(ENGINE, background=self.ground("white"))
        return picture, self.file("start", picture)

    def ground(self, colour: str) -> str | None:
        """A background, for a model that paints transparency."""
        return colour if self.pipeline.bundle.vae.config.image_channels == 4 else None


def tell(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def row(pictures: Sequence[Image.Image], labels: Sequence[str]) -> Image.Image:
    return labelled_sheet([pictures], labels, [""])


def text_to_image(p: Painter) -> Image.Image:
    pictures = [p.one(words) for words in WORDS]
    rows = [[*pictures[k : k + 4]] for k in (0, 4)]
    return labelled_sheet(rows, [""] * 4, ["", ""])


def styles(p: Painter) -> Image.Image:
    return row([p.one("a fox", style=style) for style in STYLES], STYLES)


def guidance_sweep(p: Painter) -> Image.Image:
    scales, counts = (1.0, 2.0, 3.0, 5.0, 8.0), (4, 8, 16)
    rows = [[p.one(FROG, guidance_scale=scale, num_inference_steps=steps) for scale in scales] for steps in counts]
    return labelled_sheet(rows, [f"guidance={scale:g}" for scale in scales], [f"steps={steps}" for steps in counts])


def strengths(p: Painter) -> Image.Image:
    _, name = p.start()
    steps = (0.0, 0.25, 0.5, 0.75, 1.0)
    pictures = [p.one("a blue police car, 3d style", init_image=name, strength=one) for one in steps]
    return row(pictures, [f"strength={one:g}" for one in steps])


def inpaint(p: Painter) -> Image.Image:
    picture, name = p.start()
    mask = Image.new("L", picture.size)
    mask.paste(255, (0, 0, picture.width // 2, picture.height))
    painted = p.one(
        "a green frog, 3d style",
        init_image=name,
        strength=1.0,
        seed=p.seed + 2,
        mask=Mask(image=p.file("mask", mask), blur=4, fill="noise"),
    )
    shown = mask.convert("RGB")
    ImageDraw.Draw(shown).rectangle((0, 0, mask.width - 1, mask.height - 1), outline="black")  # white on white paper
    return row([picture, shown, painted], ["before", "mask", "after"])


def outpaint(p: Painter) -> Image.Image:
    picture, name = p.start()
    grow = Outpaint(left=p.side // 2, right=p.side // 2, overlap=p.side // 8)
    return row([picture, p.one(ENGINE, init_image=name, outpaint=grow)], ["before", "grown to both sides"])


def variations(p: Painter) -> Image.Image:
    painted = p.all(ENGINE, subseed=1, subseed_strength=0.3, count=5)
    pictures = [p.one(ENGINE), *(one.image for one in painted)]
    return row(pictures, ["seed", *(f"subseed {one.recipe.request.subseed}" for one in painted)])


def interpolation(p: Painter) -> Image.Image:
    painted = p.all(ENGINE, interpolation=Interpolation(prompt="a yellow car, flat style", seed=p.seed + 7, frames=7))
    return row([one.image for one in painted], [""] * len(painted))


def completion(p: Painter) -> Image.Image:
    picture, name = p.start()
    top = picture.copy()
    top.paste(Image.new(picture.mode, (picture.width, picture.height // 2), "grey"), (0, picture.height // 2))
    keep = Prior(keep=(0.0, 0.0, 1.0, 0.5))
    pictures = [p.one(ENGINE, init_image=name, strength=1.0, prior=keep, seed=p.seed + k) for k in range(1, 5)]
    return row([top, *pictures], ["what is kept", *(["completed"] * 4)])


def hires(p: Painter) -> Image.Image:
    first, second = p.one(FROG), p.one(FROG, hires=Hires(scale=2.0, strength=0.5))
    return row([first.resize(second.size, Image.Resampling.BICUBIC), second], ["enlarged", "second pass"])


def tiled(p: Painter) -> Image.Image:
    return p.one("a forest, flat style", width=4 * p.side, height=p.side, tiled=Tiled(tile=p.side))


def seamless(p: Painter) -> Image.Image:
    one = p.one("green leaves pattern, flat style", seamless="both")
    sheet = Image.new(one.mode, (2 * one.width, 2 * one.height))
    for place in ((0, 0), (one.width, 0), (0, one.height), one.size):
        sheet.paste(one, place)
    return sheet


def inversion(p: Painter) -> Image.Image:
    picture, name = p.start()
    words = {
        "a red fire engine, 3d style": 1.0,
        "a green fire engine, 3d style": 2.0,
        "a red fire engine, flat style": 2.0,
    }
    edits = [
        p.one(
            text,
            init_image=name,
            num_inference_steps=25,
            guidance_scale=scale,
            inversion=Inversion(source_prompt=ENGINE),
        )
        for text, scale in words.items()
    ]
    return row([picture, *edits], ["before", "same words", "red > green", "3d > flat"])


def backgrounds(p: Painter) -> Image.Image:
    clear = p.one(FROG, background="transparent")
    board = Image.new("RGB", clear.size, "white")
    for k in range(0, clear.width, 8):
        for j in range(k // 8 % 2 * 8, clear.height, 16):
            board.paste("#cccccc", (k, j, k + 8, j + 8))
    board.paste(clear, (0, 0), clear.getchannel("A"))
    colours = ("white", "black", "#ffd166", "#118ab2")
    return row([board, *(p.one(FROG, background=colour) for colour in colours)], ["transparent", *colours])


def chinese(p: Painter) -> Image.Image:
    return row([p.one(words) for words in CHINESE], [""] * len(CHINESE))


def best_of(p: Painter) -> Image.Image:
    words = WORDS[4:8]
    rows = [[p.one(text, best_of=count, seed=p.seed + 3) for text in words] for count in (1, 8)]
    return labelled_sheet(rows, words, ["first draft", "best of 8"])


def upscale(p: Painter) -> Image.Image:
    small = p.one(FROG)
    plain = p.one(FROG, upscale=Upscale(factor=2.0, upscaler="lanczos"))
    own = p.one(FROG, upscale=Upscale(factor=2.0))
    return row([small.resize(plain.size, Image.Resampling.NEAREST), plain, own], ["pixels", "lanczos", "upscaler"])


def several(p: Painter) -> Image.Image:
    rows = [[p.one(text, prior=Prior(layout=layout)) for text in SEVERAL] for layout in (True, False)]
    return labelled_sheet(rows, [""] * len(SEVERAL), ["one by one", "as a whole"])


def editing(p: Painter) -> Image.Image:
    prompts = ("a (red:1.4) and blue fish", "a red and (blue:1.4) fish", "a [frog:penguin:0.4]", "a fish AND a flower")
    return row([p.one(text) for text in prompts], [""] * len(prompts))


RED = "a red fire engine, 3d style"
FIGURES = (
    Figure("Text to image", f"Row by row: {', '.join(WORDS)}.", f'gouache paint "{WORDS[0]}"', text_to_image),
    Figure(
        "Styles",
        "One prompt in every style that the model was trained on.",
        'gouache paint "a fox" --style flat',
        styles,
    ),
    Figure("Prompts in Chinese", f"{'; '.join(CHINESE)}.", f'gouache paint "{CHINESE[0]}"', chinese),
    Figure(
        "The prompt's language",
        "Weights, editing half way, and two prompts at once: `a (red:1.4) and blue fish`, "
        "`a red and (blue:1.4) fish`, `a [frog:penguin:0.4]`, `a fish AND a flower`.",
        'gouache paint "a [frog:penguin:0.4]"',
        editing,
    ),
    Figure(
        "Several things in one sentence",
        "Above, each thing is drafted by itself and laid where the sentence says; "
        f"below, the prior drafts the whole: {'; '.join(SEVERAL)}.",
        f'gouache paint "{SEVERAL[0]}"',
        several,
    ),
    Figure(
        "Guidance and steps on one sheet",
        "An X/Y plot of two parameters.",
        f'gouache grid "{FROG}" --x guidance=1,2,3,5,8 --y steps=4,8,16 -o sheet.png',
        guidance_sweep,
    ),
    Figure(
        "Best of several drafts",
        "The prior drafts eight times and the likeliest draft is painted.",
        'gouache paint "a penguin" --best-of 8',
        best_of,
    ),
    Figure(
        "Transparent and coloured grounds",
        "The picture is painted with transparency; a ground is laid under it.",
        'gouache paint "a green frog" --background "#ffd166"',
        backgrounds,
    ),
    Figure(
        "Image to image",
        "From the picture itself (0) to a new one (1).",
        'gouache edit start.png "a blue police car, 3d style" --strength 0.5',
        strengths,
    ),
    Figure(
        "Inpainting",
        "White is painted anew; every other pixel comes back bit for bit.",
        'gouache edit start.png "a green frog, 3d style" --mask mask.png --mask-fill noise --strength 1',
        inpaint,
    ),
    Figure(
        "Outpainting",
        "The picture grows to the left and to the right.",
        f'gouache edit start.png "{RED}" --outpaint-left 64 --outpaint-right 64',
        outpaint,
    ),
    Figure(
        "Variations",
        "The noise of one seed, moved a little towards others.",
        "gouache vary start.png --strength 0.3 --count 5",
        variations,
    ),
    Figure(
        "Interpolation",
        "From one prompt and seed to another.",
        f'gouache interpolate "{RED}" --to "a yellow car, flat style" --frames 7 -o strip.png',
        interpolation,
    ),
    Figure(
        "Completion by the prior",
        "The upper half's tokens stay, the prior continues, diffusion paints.",
        f'gouache edit start.png "{RED}" --strength 1 --prior-keep 0,0,1,0.5',
        completion,
    ),
    Figure(
        "Edit by prompt change",
        "The picture is walked up to its noise; from there a changed prompt changes only what it must.",
        f'gouache edit start.png "a green fire engine, 3d style" --inversion "{RED}"',
        inversion,
    ),
    Figure("Second pass", "Painted small, enlarged, painted over.", f'gouache paint "{FROG}" --hires', hires),
    Figure(
        "Upscaling",
        "Once as pixels, once by Lanczos, once by what the model brings along (else Lanczos).",
        "gouache upscale frog.png --factor 2",
        upscale,
    ),
    Figure(
        "Beyond the training size",
        "Overlapping tiles, four times as wide as the model knows.",
        'gouache paint "a forest, flat style" --size 512x128 --tiled',
        tiled,
    ),
    Figure(
        "Seamless",
        "One tile laid two by two.",
        'gouache paint "green leaves pattern, flat style" --seamless both',
        seamless,
    ),
)


def made(painter: Painter, figures: Sequence[Figure], folder: Path) -> Iterator[tuple[Figure, Path]]:
    """Paint every figure that the model can; the others are named on standard error."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, figure in enumerate(figures, 1):
        try:
            sheet = figure.make(painter)
        except GouacheError as error:
            tell(f"{figure.title}: left out: {error}")
            continue
        path = folder / f"{figure.make.__name__.replace('_', '-')}.webp"
        on_background(sheet, "white").save(path, "WEBP", quality=QUALITY, method=6)
        tell(f"{number}/{len(figures)} {path} {path.stat().st_size} bytes")
        yield figure, path


def page(figures: Sequence[tuple[Figure, Path]], painter: Painter) -> str:
    """The page in Markdown."""
    model = model_ref(painter.pipeline.bundle)
    lines = [
        "# Gallery",
        "",
        f"One figure for each feature, painted by the model `{model.name}`"
        + (f" (sha256 `{model.sha256[:12]}`)" if model.sha256 else "")
        + f" with seed {painter.seed}, nothing picked by hand. `python recipes/gallery.py` makes this page again.",
    ]
    for figure, path in figures:
        lines += ["", f"## {figure.title}", "", figure.text, "", "```", figure.command, "```", ""]
        lines += [f"![{figure.title}]({path.parent.name}/{path.name})"]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a path or name; the shipped model without it")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs", help="folder of gallery.md")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=[], help="figures by function, to try them: no page is written")
    options = parser.parse_args()
    pipeline, note = open_pipeline(options.model)
    if note:
        tell(note)
    painter = Painter(pipeline, options.seed)
    chosen = [figure for figure in FIGURES if not options.only or figure.make.__name__ in options.only]
    found = list(made(painter, chosen, options.out / "gallery"))
    total = sum(path.stat().st_size for _, path in found)
    if total > MOST_BYTES:
        sys.exit(f"the pictures take {total} bytes, more than {MOST_BYTES}")
    if not options.only:
        (options.out / "gallery.md").write_text(page(found, painter), encoding="utf-8")


if __name__ == "__main__":
    main()
