"""The card of a trained model: what it is, learnt from, can and can't do, as README.md and CREDITS.md next to it.

Every figure is read from a file: sizes from the weights, the course of the training from its logs, what it reaches from
the JSON of `gouache eval`. Words that no file holds come from the author's own page.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gouache.checkpoints.detect import Identity
from gouache.checkpoints.identify import identify, known_sha256
from gouache.data.packed import PackedPictures
from gouache.data.readers import ReadReport, read_pictures
from gouache.data.stickers import Stickers
from gouache.errors import DataError
from gouache.training.evaluation.own import OWN_PICTURES, is_sticker_set
from gouache.training.runlog import read_log
from gouache.training.stages.registry import STAGES


@dataclass(frozen=True, slots=True)
class Goal:
    """One figure and its bound.

    Attributes:
        words: what it is, for people.
        name, group: of the figure.
        bound: what to reach; None for a figure to compare with.
        sense: "least": the figure should be at least the bound; "most": at most; "above" and "below": the whole
            interval should lie on that side of it.
        unit: "%" for shares.
        steps: of the figure; None = the model's default.
    """

    words: str
    name: str
    group: str
    bound: float | None
    sense: Literal["least", "most", "above", "below"] = "least"
    unit: str = "%"
    steps: int | None = None

    @property
    def description(self) -> str:
        """The goal in words."""
        if self.bound is None:
            return ""
        if self.sense in ("above", "below"):
            return "significantly better"
        return f"{'≥' if self.sense == 'least' else '≤'} {self.shown(self.bound)}"

    def shown(self, value: object) -> str:
        """A value with its unit."""
        if not isinstance(value, int | float):
            return str(value)
        return f"{100 * value:.1f} %" if self.unit == "%" else f"{value:.3g} {self.unit}".rstrip()

    def find(self, figures: Sequence[Mapping[str, object]], steps: object) -> Mapping[str, object] | None:
        """The goal's figure: painted with one draft, and in `steps` steps unless the goal names a number."""
        wanted = (None, self.steps or steps)
        for figure in figures:
            plain = figure.get("draft") is not False and figure.get("best_of", 1) == 1
            if (figure["name"], figure["group"]) == (self.name, self.group) and figure.get("steps") in wanted and plain:
                return figure
        return None

    def met(self, figure: Mapping[str, object]) -> bool | None:
        """Whether a figure reaches the goal; None if there is nothing to reach."""
        if self.bound is None:
            return None
        end = {"least": "value", "most": "value", "above": "low", "below": "high"}[self.sense]
        value = figure[end]
        if not isinstance(value, int | float):
            return None
        if self.sense in ("least", "most"):
            return value >= self.bound if self.sense == "least" else value <= self.bound
        return value > self.bound if self.sense == "above" else value < self.bound


GOALS = (
    Goal("autoencoder, held-out pictures", "vae_psnr_db", "held_out", 31.0, unit="dB"),
    Goal("own caption best of 100, seen pairs", "retrieval_at_1", "seen", 0.85),
    Goal("own caption best of 100, held-out pairs", "retrieval_at_1", "held_out", 0.65),
    Goal("own caption best of 100, asked in Chinese", "retrieval_at_1", "chinese", 0.60),
    Goal("style right, seen pairs", "style", "seen", 0.95),
    Goal("style right, held-out pairs", "style", "held_out", 0.95),
    Goal("scenes: colour", "scene_colour", "scenes", 0.80),
    Goal("scenes: count up to 3", "scene_count_to_3", "scenes", 0.70),
    Goal("scenes: left, right, above, below", "scene_relation", "scenes", 0.70),
    Goal("scenes: background", "scene_background", "scenes", 0.95),
    Goal("the draft's gain at 8 steps, own caption best", "prior_gain_in_retrieval_at_1", "all", 0.0, "above", "%", 8),
    Goal("the draft's change of KID at 8 steps", "prior_change_of_kid", "all", 0.0, "below", "", 8),
    Goal("best of 4 drafts: gain, own caption best", "best_of_gain_in_retrieval_at_1", "all", 0.0, "above"),
    Goal("real pictures, seen pairs: the ceiling", "retrieval_at_1", "real seen", None),
    Goal("real pictures, held-out pairs: the ceiling", "retrieval_at_1", "real held_out", None),
    Goal("whole command, one picture", "command_seconds", "one picture", 4.0, "most", "s"),
    Goal("one picture, model loaded", "warm_seconds", "one picture", 0.6, "most", "s"),
    Goal("peak memory of that command", "command_peak_mb", "one picture", 700.0, "most", "MB"),
)


CARD, CREDITS = "README.md", "CREDITS.md"
MOST_FIGURES = 4
"""Validation figures of a stage that are shown; stages log the ones that matter first."""
FigureMapping = Mapping[str, object]


def write_model_card(
    model: Path,
    *,
    data: Path,
    runs: Sequence[Path] = (),
    config: Path | None = None,
    evaluation: Path | None = None,
    words: Path | None = None,
) -> Path:
    """Write README.md and CREDITS.md into a model's folder.

    Args:
        model: folder in the own format.
        data: folder of what it learnt from: the sticker set, or anyone's pictures, packed or not.
        runs: folders of its training, as given to ``gouache train --out``.
        config: the TOML file of the training, shown whole.
        evaluation: JSON of ``gouache eval``.
        words: Markdown that opens the page: what the model is for, its limits, credits that the data do not know.

    Raises:
        DataError: a file is missing, holds something else, or the evaluation is of other weights.
    """
    identity = identify(model)
    learnt_from = _data(Stickers.open(data)) if is_sticker_set(data) else _own_data(data)
    parts = [f"# {identity.label or model.name}\n" if words is None else _text(words)]
    if evaluation is not None:
        parts.append(_figures(_evaluation(evaluation, known_sha256(identity)), evaluation.name))
    parts += [_parts(model, identity), learnt_from]
    if stages := [line for run in runs for line in _stages(run)]:
        parts.append(_table("Training", ("stage", "images seen", "hours", "best validation", "at images"), stages))
    if config is not None:
        parts.append(f"The config of the training:\n\n```toml\n{_text(config)}```\n")
    (model / CARD).write_text("\n".join(parts), encoding="utf-8")
    if is_sticker_set(data) or (data / CREDITS).is_file():
        shutil.copyfile(_there(data / CREDITS), model / CREDITS)
    return model / CARD


def _there(path: Path) -> Path:
    if not path.is_file():
        raise DataError(str(path), given="no such file", expected="a file for the card")
    return path


def _text(path: Path) -> str:
    return _there(path).read_text(encoding="utf-8")


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return f"## {title}\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _parts(model: Path, identity: Identity) -> str:
    rows = [
        (name, f"{part.parameters:,}", " and ".join(part.dtypes), f"{part.header.path.stat().st_size / 1e6:.1f}")
        for name, part in identity.parts.items()
    ]
    files = sum(file.stat().st_size for file in model.iterdir() if file.name not in (CARD, CREDITS))
    rows.append(("together", f"{sum(p.parameters for p in identity.parts.values()):,}", "", f"{files / 1e6:.1f}"))
    return _table("Weights", ("part", "parameters", "stored as", "MB"), rows)


def _data(stickers: Stickers) -> str:
    manifest = stickers.manifest
    held = sum(record.held_out for record in stickers.records)
    counts = ", ".join(f"{count:,} {style}" for style, count in manifest.counts.items())
    rows = [(f"`{package.name}` {package.version}", package.licence) for package in manifest.packages]
    text = (
        f"\nRecipe `{manifest.recipe}`, version {manifest.recipe_version}: {manifest.count:,} pictures ({counts}), of"
        f" which {held:,} (concept, style) pairs were held out of the training; scenes are composed of the others. Who"
        f" made them and under which licence: [{CREDITS}]({CREDITS}).\n"
    )
    return _table("Data", ("package", "licence"), rows) + text


def _own_data(data: Path) -> str:
    """Of pictures that aren't the recipe's: how many there are, and whether their makers are named.

    Raises:
        DataError: there are none.
    """
    if (data / "manifest.json").is_file():
        count = len(PackedPictures.open(data))
    else:
        count = sum(1 for _ in read_pictures(data, ReadReport()))
    if not count:
        raise DataError(str(data), given="no captioned picture", expected="what the model learnt from")
    credits_ = (
        f"Who made them: [{CREDITS}]({CREDITS})." if (data / CREDITS).is_file() else "No file names their makers."
    )
    return f"## Data\n\n{count:,} pictures of one's own, with captions. {credits_}\n"


def _stages(run: Path) -> list[tuple[str, ...]]:
    """One row for each stage that has a log."""
    rows: list[tuple[str, ...]] = []
    for stage in STAGES:
        log = read_log(run / stage)
        if log:
            rows.append((stage, f"{int(log[-1]['images_seen']):,}", f"{_hours(log):.1f}", *_best(log)))
    if not rows:
        raise DataError(str(run), given="no log of any stage", expected="the folder given to gouache train --out")
    return rows


def _hours(log: Sequence[Mapping[str, float]]) -> float:
    """Training time in hours, from a log: images between two lines divided by the speed of the second."""
    seconds, before = 0.0, 0.0
    for line in log:
        if speed := line.get("images_per_second"):
            seconds += (line["images_seen"] - before) / speed
            before = line["images_seen"]
    return seconds / 3600


def _best(log: Sequence[Mapping[str, float]]) -> tuple[str, str]:
    """The figures of the validation with the best score, and when it was."""
    validated = [line for line in log if "validation/score" in line]
    if not validated:
        return "", ""
    best = min(validated, key=lambda line: line["validation/score"])
    figures = {name.removeprefix("validation/"): v for name, v in best.items() if name.startswith("validation/")}
    shown = {name: value for name, value in figures.items() if name != "score"} or figures
    words = ", ".join(f"{name} {value:.4g}" for name, value in list(shown.items())[:MOST_FIGURES])
    return words, f"{int(best['images_seen']):,}"


def _evaluation(path: Path, sha256: str) -> FigureMapping:
    try:
        values = json.loads(_text(path))
        known = isinstance(values["figures"], list)
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(str(path), given="something else", expected="the JSON of gouache eval") from error
    if not known or values.get("model_sha256") != sha256:
        raise DataError(
            str(path),
            given=f"figures of the model {str(values.get('model_sha256'))[:16]}",
            expected=f"of {sha256[:16]}, the model of this card",
            cure="Run gouache eval on this model.",
        )
    return dict(values)


def _figures(values: FigureMapping, source: str) -> str:
    """The figures that were set as goals, then all others."""
    figures = values["figures"]
    assert isinstance(figures, list), "checked when it was read"
    steps = values.get("default_steps")
    goals = [row for goal in GOALS if (row := _goal_row(goal, figures, steps)) is not None]
    text = _table("Figures", ("what", "reached", "95 % interval", "n", "goal", "met"), goals)
    if OWN_PICTURES in values:
        text = "## Figures\n"  # the goals are of the sticker set
    rest = [
        (
            str(f["name"]),
            str(f["group"]),
            _setting(f),
            f"{f['value']:.4g}",
            f"{f['low']:.4g} to {f['high']:.4g}",
            str(f["count"]),
        )
        for f in figures
    ]
    head = ("figure", "on", "painted with", "value", "interval", "n")
    described = ", ".join(f"{name} {value}" for name, value in values.items() if name != "figures")
    return (
        f"{text}\nMeasured by `gouache eval` ({source}): {described}.\n\n<details><summary>Every figure</summary>\n\n"
        f"{_table('All figures', head, rest)}\n</details>\n"
    )


def _setting(figure: FigureMapping) -> str:
    if figure.get("steps") is None:
        return ""
    words = [f"{figure['steps']} steps"]
    if figure.get("draft") is not None:
        words.append("prior" if figure["draft"] else "no prior")
    if figure.get("best_of", 1) != 1:
        words.append(f"best of {figure['best_of']}")
    return ", ".join(words)


def _goal_row(goal: Goal, figures: Sequence[FigureMapping], steps: object) -> tuple[str, ...] | None:
    found = goal.find(figures, steps)
    if found is None:
        return None
    value, low, high = (goal.shown(found[name]) for name in ("value", "low", "high"))
    met = {None: "", True: "yes", False: "no"}[goal.met(found)]
    return goal.words, value, f"{low} to {high}", str(found["count"]), goal.description, met
