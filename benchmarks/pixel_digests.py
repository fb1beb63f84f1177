"""Digests of some forty fixed requests that use every feature between them: the proof that a change changes no picture.

    python benchmarks/pixel_digests.py --out before.json      # on the tree before
    python benchmarks/pixel_digests.py --check before.json    # on the tree after; exit code 1 if anything differs

Only what must not change is used: `gouache.Pipeline`, `gouache.Request`, the command line, and the recipe in a written
picture. The requests are in pixel_requests.toml; the models are the shipped one and those of tiny_checkpoints.py.
Compare on one machine and with one torch: other ones round differently.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import runpy
import sys
import tempfile
import time
import tomllib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageSequence

if TYPE_CHECKING:
    from gouache import Pipeline

THREADS = 1
"""Of the tensor library: their number decides the order of additions. One is the quickest on a busy machine."""
SHIPPED = "shipped"
REQUESTS = Path(__file__).with_name("pixel_requests.toml")
VOLATILE = {"versions": None, "machine": ("processor", "threads"), "model": ("path",)}
"""Parts of a recipe that tell the machine and the place, not the picture: whole (None), or some of their keys."""
PICTURES = (".png", ".jpg", ".webp", ".gif")
REFINERS = ("size_condition.aesthetic_score", "size_condition.negative_aesthetic_score")
"""Fields that SDXL's refiner alone takes; none of the models is one."""
Entry = dict[str, Any]


def tell(line: str) -> None:
    """A line of progress on standard error."""
    sys.stderr.write(f"{line}\n")


def picture_entry(data: bytes) -> Entry:
    """What is compared of one picture file: mode, size, pixels of every frame, and the texts inside."""
    with Image.open(io.BytesIO(data)) as picture:
        digest = sha256()
        for frame in ImageSequence.Iterator(picture):
            digest.update(f"{frame.mode} {frame.width}x{frame.height}\n".encode() + frame.tobytes())
        texts = {key: value for key, value in picture.info.items() if isinstance(value, str)}
        entry: Entry = {"size": f"{picture.mode} {picture.width}x{picture.height}", "pixels": digest.hexdigest()}
    if "gouache" in texts:
        recipe = without_volatile(json.loads(texts["gouache"]))
        entry["recipe"] = recipe
        entry["recipe_sha256"] = sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()
    if "parameters" in texts:
        entry["parameters"] = texts["parameters"].rpartition(", Version: ")[0]
    return entry


def without_volatile(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe without what differs between machines and folders."""
    kept: dict[str, Any] = {}
    for key, value in recipe.items():
        if key not in VOLATILE:
            kept[key] = value
        elif (inner := VOLATILE[key]) is not None:
            kept[key] = {name: one for name, one in value.items() if name not in inner}
    return kept


class Studio:
    """Paints the cases in one folder, which is the current one.

    Args:
        folder: holds `models`, the starting pictures, and what commands write.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shipped: Path | None = None
        self._loaded: tuple[tuple[str, str | None], Pipeline] | None = None

    def run(self, case: Mapping[str, Any]) -> dict[str, Entry]:
        """One case: entry by the picture's or the command's name."""
        if "commands" in case:
            return dict(self._commands(case["commands"]))
        found: dict[str, Entry] = {}
        for label, model, fields in requests_of(case):
            pipeline = self._pipeline(model, case.get("dtype"))
            for painted in pipeline.paint(request_of(fields)):
                found[f"{label}{painted.picture}"] = picture_entry(painted.encode("png"))
        return found

    def _pipeline(self, model: str, dtype: str | None) -> Pipeline:
        import torch

        from gouache import Pipeline

        if self._loaded is None or self._loaded[0] != (model, dtype):
            path = self._shipped() if model == SHIPPED else Path("models") / model
            kind = None if dtype is None else getattr(torch, dtype)
            self._loaded = ((model, dtype), Pipeline.load(path, device="cpu", dtype=kind))
        return self._loaded[1]

    def _shipped(self) -> Path:
        """Where the shipped model lies: a picture painted without a model tells it."""
        if self.shipped is None:
            command("paint", "x", "--steps", "1", "--seed", "0", "-o", "where.png")
            with Image.open("where.png") as picture:
                self.shipped = Path(json.loads(picture.info["gouache"])["model"]["path"])
        return self.shipped

    def _commands(self, commands: Sequence[Sequence[str]]) -> Iterator[tuple[str, Entry]]:
        for number, arguments in enumerate(commands, 1):
            before = set(self.folder.iterdir())
            code, said = command(*arguments)
            yield f"{number} {arguments[0]}", {"exit": code, "said": said.splitlines()}
            for path in sorted(set(self.folder.iterdir()) - before):
                if path.suffix in PICTURES:
                    yield path.name, picture_entry(path.read_bytes())


def command(*arguments: str) -> tuple[int, str]:
    """`python -m gouache ARGUMENTS` in this process: its exit code and what it printed."""
    before, out, code = sys.argv, io.StringIO(), 0
    sys.argv = ["gouache", *arguments]
    try:
        with contextlib.redirect_stdout(out):
            runpy.run_module("gouache", run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    finally:
        sys.argv = before
    return code, out.getvalue()


def requests_of(case: Mapping[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Label, model and fields of each request of a case; `only` holds further fields for one model of a sweep."""
    sweep: Mapping[str, Sequence[Any]] = case.get("sweep", {"": [None]})
    ((field, values),) = sweep.items()
    for number, value in enumerate(values):
        fields = dict(case["fields"]) if field in ("", "model") else {**case["fields"], field: value}
        model = value if field == "model" else case["model"]
        label = f"{number} {value if isinstance(value, str) else json.dumps(value)}: " if field else ""
        yield label, model, {**fields, **case.get("only", {}).get(model, {})}


def request_of(fields: Mapping[str, Any]) -> Any:
    """A request from plain values."""
    from gouache import Request

    return Request.from_json(json.dumps(fields))


def all_fields() -> set[str]:
    """Every field of a request with its groups' fields: `seed`, `mask`, `mask.blur` ..."""
    from gouache import Request

    schema = Request.model_json_schema()
    groups = schema.get("$defs", {})
    found = set()
    for name, field in schema["properties"].items():
        found.add(name)
        for group, inner in groups.items():
            if f'"#/$defs/{group}"' in json.dumps(field):
                found |= {f"{name}.{one}" for one in inner["properties"]}
    return found


def fields_set(values: Mapping[str, Any], before: str = "") -> set[str]:
    """The fields that a request sets, named as in `all_fields`."""
    found = set()
    for name, value in values.items():
        found.add(f"{before}{name}")
        for group in value if isinstance(value, list) else [value]:
            if isinstance(group, Mapping):
                found |= fields_set(group, f"{before}{name}.")
    return found


def check_coverage(cases: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Field -> the cases that set it; every field of a request is set by at least one.

    Raises:
        SystemExit: one isn't.
    """
    covered: dict[str, list[str]] = {name: [] for name in sorted(all_fields())}
    for case in cases:
        given = [fields_set(fields) for _, _, fields in requests_of(case)] if "fields" in case else []
        for name in sorted(set().union(*given)):
            covered[name].append(str(case["name"]))
    missing = [name for name, users in covered.items() if not users and name not in REFINERS]
    if missing:
        sys.exit(f"fields of a request that no case sets: {', '.join(missing)}")
    return covered


def paint_all(cases: Sequence[Mapping[str, Any]], models: Path | None) -> dict[str, dict[str, Entry]]:
    """Every case, painted in a temporary folder.

    Args:
        cases: of pixel_requests.toml.
        models: keeps the tiny checkpoints for another run; None writes them anew.
    """
    from tiny_checkpoints import write_checkpoints, write_pictures, write_safety_checker

    results: dict[str, dict[str, Entry]] = {}
    with tempfile.TemporaryDirectory() as place, contextlib.chdir(place):
        folder = Path(place)
        kept = models or folder / "checkpoints"
        if not kept.exists():
            write_checkpoints(kept / "models")
            write_safety_checker(kept / "safety_checker")
        (folder / "models").mkdir()
        for path in (kept / "models").iterdir():
            (folder / "models" / path.name).symlink_to(path, target_is_directory=path.is_dir())
        write_pictures(folder)
        (folder / "prompts.txt").write_text('a cat\n{"prompt": "a dog", "seed": 9}\n', encoding="utf-8")
        (folder / "cards").mkdir()
        (folder / "cards" / "weather.txt").write_text("sun\nrain\nsnow\n", encoding="utf-8")
        os.environ["GOUACHE_SAFETY_CHECKER"] = str(kept / "safety_checker")
        studio = Studio(folder)
        for case in cases:
            started = time.perf_counter()
            results[case["name"]] = studio.run(case)
            tell(f"{time.perf_counter() - started:6.1f} s  {case['name']}: {len(results[case['name']])} entries")
    return results


def differences(before: object, after: object, where: str = "") -> Iterator[str]:
    """One line for each value that differs between two results, with the way to it."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted(before.keys() | after.keys()):
            place = f"{where} > {key}" if where else str(key)
            if key not in before or key not in after:
                yield f"{place}: only {'before' if key in before else 'after'}"
            else:
                yield from differences(before[key], after[key], place)
    elif before != after:
        yield f"{where}: {json.dumps(before, ensure_ascii=False)} -> {json.dumps(after, ensure_ascii=False)}"


def prepare_environment(folder: str) -> None:
    """Threads, and folders of this run's own, before anything reads them."""
    os.environ.update(
        OMP_NUM_THREADS=str(THREADS), GOUACHE_OFFLINE="1", GOUACHE_MODELS="models", XDG_CACHE_HOME=f"{folder}/cache",
        XDG_DATA_HOME=f"{folder}/data", HF_HUB_CACHE=f"{folder}/hub", NO_COLOR="1", COLUMNS="100", TQDM_DISABLE="1",
    )  # fmt: skip
    warnings.simplefilter("ignore")
    import torch

    import gouache

    torch.set_num_threads(THREADS)
    tell(f"gouache from {Path(gouache.__file__).parent}, torch {torch.__version__}")


def main() -> None:
    """Paint, then write or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the digests here as JSON; standard output without it")
    parser.add_argument("--check", type=Path, help="compare with digests written before")
    parser.add_argument("--models", type=Path, help="keep the tiny checkpoints here, or take those that are there")
    parser.add_argument("--only", default="", help="only cases whose name begins so, to try them")
    parser.add_argument("--fields", action="store_true", help="only list which case sets which field")
    options = parser.parse_args()
    cases = tomllib.loads(REQUESTS.read_text(encoding="utf-8"))["case"]
    with tempfile.TemporaryDirectory() as own:
        prepare_environment(own)
        covered = check_coverage(cases)
        if options.fields:
            sys.stdout.writelines(f"{name}: {', '.join(users)}\n" for name, users in covered.items())
            return
        chosen = [case for case in cases if case["name"].startswith(options.only)]
        found = paint_all(chosen, options.models and options.models.absolute())
    if options.check is None:
        text = json.dumps(found, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
        options.out.write_text(text, encoding="utf-8") if options.out else sys.stdout.write(text)
        return
    before = json.loads(options.check.read_text(encoding="utf-8"))
    before = {name: entry for name, entry in before.items() if name.startswith(options.only)}
    wrong = list(differences(before, json.loads(json.dumps(found))))
    sys.stdout.writelines(f"{line}\n" for line in wrong)
    count = sum(len(entries) for entries in found.values())
    tell(f"{len(found)} cases, {count} entries, {len(covered)} fields of a request: {len(wrong)} differences")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
