"""Random requests over Python, the command line and HTTP: each must end in a picture or in an error of gouache's own.

    python benchmarks/fuzz.py                       # 20,000 requests: about an hour on two cores
    python benchmarks/fuzz.py --only http --number 1234    # one of them again
    python benchmarks/fuzz.py --only python --count 20000 --unpainted    # checked and resolved only: a minute

Fields, kinds of value and bounds are read from `Request` itself, so that a new field is fuzzed from its first day. The
models are those of tiny_checkpoints.py. A request is a function of its interface and number. What counts as a fault:
any exception that is no `GouacheError`, an exit code or status that stands for one (1, 500), a job that failed for a
reason without a kind, a picture of another size than the request names, and an answer that takes over a minute.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from PIL import Image

if TYPE_CHECKING:
    import httpx

    from gouache import Pipeline
    from gouache.pipeline.generate.generation import Painted

COUNT = 20_000
SHARES = {"python": 0.7, "cli": 0.1, "http": 0.1, "a1111": 0.1}
SLOWEST = 60.0
"""Seconds that one request may take."""
MODELS = ("tiny-sd1", "tiny-sd2", "tiny-sdxl", "tiny-inpaint", "tiny-instruct", "tiny-depth")
VALUES = json.loads(Path(__file__).with_name("fuzz_values.json").read_text(encoding="utf-8"))
"""pieces of prompts; words that fields of text hold, right and misspelt; what clients of A1111 send in its fields."""
CAPS = {
    "width": 96, "height": 96, "num_inference_steps": 4, "count": 2, "best_of": 2, "frames": 3, "tile": 96, "factor": 2,
    "scale": 2, "left": 40, "right": 40, "top": 40, "bottom": 40, "overlap": 64, "top_k": 50, "padding": 64, "blur": 40,
}  # fmt: skip
"""Largest values, for time's sake, of fields whose own bounds allow pictures that take minutes."""
UNREADABLE = ("broken.png", "text.png", "nothing.png", "missing.png")
NEEDED = {"tiny-depth": "depth_image", "tiny-instruct": "init_image", "tiny-inpaint": "init_image"}
"""Model -> the picture that it can't do without."""
FOREIGN = ("vae", "background", "best_of", "prior", "style", "safety", "eta", "churn")
"""Fields that none of the models takes, or few of their samplers."""
OF_SDXL = ("prompt_2", "negative_prompt_2", "size_condition")
HOSTILE = 0.2
"""Share of requests in which nothing is fitted to the model."""
MISSPELT = ("nonsense", "red", "99:1", "0:1", "", "edges-xl", "model", "latent-bicubic", "latent-nearest", "latent")
Fields = dict[str, Any]
Fault = str | None


def write_pictures(folder: Path) -> list[str]:
    """Pictures of every mode and odd size, with files that are none; gives their names."""
    gradient = Image.linear_gradient("L").resize((72, 56))
    colour = Image.merge("RGB", (gradient, gradient.rotate(90), gradient.rotate(180)))
    holes = colour.copy()
    holes.putalpha(gradient.point([0 if value < 128 else 255 for value in range(256)]))
    square, modes = colour.resize((64, 64)), {"palette": "P", "grey": "L", "bits": "1", "deep": "I;16"}
    made = {f"{name}.png": gradient.convert(mode) for name, mode in modes.items()}
    made |= {"colour.png": colour, "alpha.png": holes, "greyalpha.png": holes.convert("LA"), "web.webp": holes}
    made |= {"photo.jpg": colour, "print.jpg": colour.convert("CMYK")}
    sizes = {"thin": (300, 1), "tall": (1, 300), "dot": (1, 1), "square": (64, 64)}
    made |= {f"{name}.png": square.resize(size) for name, size in sizes.items()}
    made |= {"empty.png": Image.new("RGBA", (64, 64)), "white.png": Image.new("L", (48, 80), 255)}
    for name, picture in made.items():
        picture.save(folder / name)
    (folder / "broken.png").write_bytes((folder / "colour.png").read_bytes()[:200])
    (folder / "text.png").write_text("no picture")
    (folder / "nothing.png").write_bytes(b"")
    return [*made, *UNREADABLE]


class Draw:
    """Random values for the fields of a config.

    Args:
        dice: where every choice comes from.
        pictures: names that a picture's field may hold, the unreadable ones last.
        hostile: draw bounds, misspelt names and files that are no pictures too.
    """

    def __init__(self, dice: random.Random, pictures: list[str], *, hostile: bool) -> None:
        self.dice, self.hostile = dice, hostile
        self.pictures = pictures if hostile else pictures[: -len(UNREADABLE)]

    def request(self, kind: Any, *, share: float, prefix: str = "") -> Fields:
        """Values of a share of the fields of a config's class, in the shape of JSON."""
        values: Fields = {}
        for name, field in kind.model_fields.items():
            if field.is_required() or self.dice.random() < share:
                values[name] = self.value(Annotated[(field.annotation, *field.metadata, ...)], f"{prefix}{name}")
        return values

    def value(self, annotation: Any, name: str) -> Any:
        """A value of this type: ordinary for the most part, at a bound at times."""
        bounds: dict[str, float] = {}
        while get_origin(annotation) is Annotated:
            annotation, *marks = get_args(annotation)
            for mark in marks:
                bounds |= _bounds(mark)
        if get_origin(annotation) in (Union, UnionType):
            options = get_args(annotation)
            some = [option for option in options if option is not type(None)]
            none = len(some) < len(options) and self.dice.random() < 0.1
            return None if none else self._with(some[0], bounds, name)
        return self._with(annotation, bounds, name)

    def _with(self, annotation: Any, bounds: dict[str, float], name: str) -> Any:
        if get_origin(annotation) is Annotated:
            return self.value(annotation, name)
        if get_origin(annotation) is Literal:
            return self.dice.choice(get_args(annotation))
        if get_origin(annotation) is tuple:
            return self._list(get_args(annotation), name)
        if annotation is bool:
            return self.dice.random() < 0.5
        if annotation in (int, float):
            return self._number(annotation, bounds, name.rpartition(".")[2])
        if annotation is str:
            return self._text(name)
        if not hasattr(annotation, "model_fields"):
            return None
        return self.request(annotation, share=0.4, prefix=f"{name}.")

    def _list(self, parts: tuple[Any, ...], name: str) -> list[Any]:
        if name == "sigmas":
            levels = sorted((10 ** self.dice.uniform(-2, 1.5) for _ in range(self.dice.randint(2, 5))), reverse=True)
            return [*levels, *([0.0] if self.dice.random() < 0.7 else [])]
        if parts[-1] is Ellipsis:
            return [self.value(parts[0], name) for _ in range(self.dice.randint(0, 2))]
        values = [self.value(part, name) for part in parts]
        return sorted(values)[: len(parts)] if len(parts) == 2 or self.dice.random() < 0.1 else _block(values)

    def _number(self, kind: type, bounds: dict[str, float], name: str) -> float:
        low, high = bounds.get("low", -1000.0), min(bounds.get("high", 1000.0), CAPS.get(name, 1e30))
        chance = self.dice.random()
        if not self.hostile and high > 1:
            number = low + (0 if kind is int and low else 0.1) + abs(self.dice.gauss(0, 2))
            number = number if number <= high else self.dice.uniform(low, high)
        elif chance < 0.08:
            number = low
        elif chance < 0.16:
            number = high
        elif high > 100 and chance < 0.85:
            number = low + abs(self.dice.gauss(0, 4))
        else:
            number = self.dice.uniform(low, min(high, low + 1e6))
        if name in ("width", "height", "tile") and chance > 0.3:
            number = self.dice.choice((32, 48, 64, 96))
        return round(number) if kind is int else number

    def _text(self, name: str) -> str:
        last = name.rpartition(".")[2]
        words = VALUES["words"]
        if name in words or last in words:
            words = words.get(name, words.get(last))
            return self.dice.choice(words if self.hostile else [word for word in words if word not in MISSPELT])
        if last.endswith("image"):
            return self.dice.choice(self.pictures)
        joint = self.dice.choice((", ", " ", ""))
        pieces = [piece for piece in VALUES["pieces"] if self.hostile or not ("<lora" in piece or "\0" in piece)]
        return joint.join(self.dice.choice(pieces) for _ in range(self.dice.randint(0, 4)))


def _bounds(mark: Any) -> dict[str, float]:
    found: dict[str, float] = {}
    for one in (mark, *getattr(mark, "metadata", ())):
        match one:
            case annotated_types.Ge(ge=low) | annotated_types.Gt(gt=low):
                found["low"] = float(str(low)) + (1e-6 if isinstance(one, annotated_types.Gt) else 0)
            case annotated_types.Le(le=high) | annotated_types.Lt(lt=high):
                found["high"] = float(str(high)) - (1e-6 if isinstance(one, annotated_types.Lt) else 0)
    return found


def _block(values: list[Any]) -> list[Any]:
    """Left, top, right, bottom in order."""
    left, right = sorted(values[::2])
    top, bottom = sorted(values[1::2])
    return [left, top, right, bottom]


class Trials:
    """Runs requests by number and remembers how they ended.

    Args:
        folder: an empty one; the models are written here.
        show: print how each ended.
        unpainted: over Python, check and resolve requests, and paint none.
    """

    def __init__(self, folder: Path, *, show: bool, unpainted: bool = False) -> None:
        from tiny_checkpoints import write_checkpoints

        self.folder, self.models, self.show, self.unpainted = folder, folder / "models", show, unpainted
        write_checkpoints(self.models)
        self.pictures = write_pictures(folder)
        self.ended: Counter[str] = Counter()
        self.faults: list[str] = []
        self._pipelines: dict[str, Pipeline] = {}

    def fields(self, interface: str, number: int) -> Fields:
        """The request of this number."""
        from gouache import Request

        dice = random.Random(f"{interface} {number}")
        draw = Draw(dice, self.pictures, hostile=dice.random() < HOSTILE)
        fields = draw.request(Request, share=dice.choice((0.05, 0.1, 0.2, 0.4)))
        fields["model"] = model = MODELS[number % len(MODELS)]
        for name, value in (("num_inference_steps", 2), ("width", 64), ("height", 64)):
            fields[name] = fields.get(name) or value
        return fields if draw.hostile else fitted(fields, model, draw)

    def note(self, interface: str, number: int, outcome: str, fault: Fault, seconds: float) -> None:
        """Write down how one ended."""
        if fault is None and seconds > SLOWEST:
            fault = f"{seconds:.0f} s"
        self.ended[f"{interface}: {'FAULT' if fault else outcome.partition(':')[0]}"] += 1
        if self.show:
            sys.stderr.write(f"{interface} {number} {seconds:.1f} s {outcome}\n")
        if fault is not None:
            self.faults.append(f"--only {interface} --number {number}\n{fault}")
            sys.stderr.write(f"{self.faults[-1]}\n\n")

    def python(self, number: int) -> tuple[str, Fault]:
        """Through `gouache.Pipeline`."""
        from gouache import Pipeline, Request
        from gouache.errors import GouacheError
        from gouache.pipeline.output.foreign import read_recipe

        fields = self.fields("python", number)
        try:
            request = Request.from_dict(fields, where="request")
            name = fields["model"]
            if name not in self._pipelines:
                self._pipelines[name] = Pipeline.load(self.models / name, device="cpu")
            if self.unpainted:
                self._pipelines[name].plan(request)
                return "resolved", None
            painted = self._pipelines[name].paint(request)
            read_recipe(painted[0].encode("png"))
            return "picture", _size_fault(painted)
        except GouacheError as error:
            return f"{type(error).__name__}: {error}", _unclear(str(error))
        except Exception:  # What must never get here is what is looked for.
            return "", f"{fields}\n{traceback.format_exc(limit=-6)}"

    def cli(self, number: int) -> tuple[str, Fault]:
        """Through `gouache paint` or `gouache edit`, in this process."""
        from typer.testing import CliRunner

        from gouache.cli import edit, paint
        from gouache.cli.main import app
        from gouache.errors import GouacheError

        fields = self.fields("cli", number)
        fields.pop("interpolation", None)
        arguments = list(_arguments(fields, edit.SPECS if fields.get("init_image") else paint.SPECS))
        out = self.folder / "out"
        out.mkdir()
        result = CliRunner().invoke(app, [*arguments, "-o", f"{out}/", "--force"])
        shutil.rmtree(out, ignore_errors=True)
        error = result.exception
        if error is None or (isinstance(error, SystemExit) and error.code in (0, 2)):
            return ("picture" if result.exit_code == 0 else f"usage: {result.output[-300:]}"), None
        if isinstance(error, GouacheError):
            return f"{type(error).__name__}: {error}", _unclear(str(error))
        return "", f"{arguments}\n{''.join(traceback.format_exception(error)[-6:])}"


def fitted(fields: Fields, model: str, draw: Draw) -> Fields:
    """The fields without what this model can't take, and with the picture that it needs."""
    kept = {name: value for name, value in fields.items() if name not in FOREIGN}
    for picture in ("depth_image", "image_guidance_scale"):
        kept.pop(picture, None)
    if model in NEEDED:
        kept[NEEDED[model]] = draw.value(str, "init_image")
    if kept.get("init_image") is None:
        kept = {name: value for name, value in kept.items() if name not in ("mask", "outpaint", "inversion")}
    if draw.dice.random() < 0.8:
        kept.pop("interpolation", None)
    if model != "tiny-sdxl":
        kept = {name: value for name, value in kept.items() if name not in OF_SDXL}
    if model != "tiny-sd1":
        kept.pop("control", None)
    elif draw.dice.random() < 0.3:
        kept["prompt"] = f"{kept.get('prompt', '')} <lora:film:{draw.dice.uniform(-1, 2):.2f}>"
    return kept


def _arguments(fields: Fields, specs: Any) -> Iterator[str]:
    """The command line that says the same as the fields, as far as it can."""
    yield "edit" if fields.get("init_image") else "paint"
    if fields.get("init_image"):
        yield str(fields["init_image"])
    yield f"{fields.get('prompt', '')}".replace("\0", "") or "x"
    for spec in specs:
        value: Any = fields
        for key in spec.path:
            value = value.get(key) if isinstance(value, dict) else None
        if value is None or spec.path == ("init_image",) or spec.group is not None or isinstance(value, dict):
            continue
        flag = spec.flags[0].split("/")
        if spec.kind is bool:
            yield flag[0] if value else flag[1]
        elif "\0" not in str(value):
            yield f"{flag[0]}={','.join(map(str, value)) if isinstance(value, list) else value}"


def _unclear(message: str) -> Fault:
    """An error of ours that leaks what it should have explained."""
    leaks = ("Traceback", " object at 0x", "<class ", "NoneType", "KeyError", "size of tensor")
    return f"unclear: {message}" if not message.strip() or any(leak in message for leak in leaks) else None


def _size_fault(painted: list[Painted]) -> Fault:
    """Pictures have the size that their recipe names, where nothing else decides it."""
    for one in painted:
        request = one.recipe.request
        free = any(getattr(request, name) is not None for name in ("hires", "upscale", "outpaint", "mask"))
        if not free and one.image.size != (request.width, request.height):
            return f"size {one.image.size}, but its recipe says {request.width} x {request.height}: {request.to_json()}"
    return None


class Served:
    """A server as users start it, on the tiny models.

    Args:
        trials: whose requests are sent.
        client: of the server.
    """

    def __init__(self, trials: Trials, client: httpx.Client) -> None:
        self.trials, self.client = trials, client
        self.names = {}
        for name in trials.pictures:
            path = trials.folder / name
            reply = client.post("/v1/attachments", content=path.read_bytes()) if path.exists() else None
            if reply is not None and reply.status_code >= 500:
                trials.note("http", -1, "", f"attachment {name}: {reply.status_code} {reply.text[:300]}", 0)
            if reply is not None and reply.status_code == 201:
                self.names[name] = reply.json()["name"]

    def http(self, number: int) -> tuple[str, Fault]:
        """Through `POST /v1/jobs`, until the job has ended."""
        fields = _renamed(self.trials.fields("http", number), self.names)
        reply = self.client.post("/v1/jobs", json={"request": fields})
        if reply.status_code != 202:
            return f"{reply.status_code}: {reply.text[:300]}", _reply_fault(reply)
        address = reply.headers["Location"]
        until = time.monotonic() + SLOWEST
        while time.monotonic() < until:
            job = self.client.get(address).json()
            if job["state"] == "done":
                return "picture", None if job["pictures"] else f"no pictures: {fields}"
            if job["state"] == "failed":
                error = job["error"]
                typed = error["kind"] not in ("WorkerError", "GouacheError", "")
                return f"{error['kind']}: {error['message']}", _unclear(
                    error["message"]
                ) if typed else f"{fields}\n{error}"
            time.sleep(0.02)
        return "", f"not ended after {SLOWEST:.0f} s: {fields}"

    def a1111(self, number: int) -> tuple[str, Fault]:
        """Through `POST /sdapi/v1/txt2img` or `img2img`."""
        from gouache.serve.api.a1111.fields import Img2Img, Txt2Img

        dice = random.Random(f"a1111 {number}")
        route, kind = dice.choice((("txt2img", Txt2Img), ("img2img", Img2Img)))
        draw = Draw(dice, self.trials.pictures, hostile=dice.random() < HOSTILE)
        body: Fields = {}
        for name, field in kind.model_fields.items():
            if dice.random() < 0.25:
                body[name] = _a1111_value(draw, name, field)
        body |= {"steps": dice.randint(1, 4), "width": 64, "height": 64, "batch_size": dice.randint(1, 2), "n_iter": 1}
        model = dice.choice(MODELS[:3] if route == "txt2img" and not draw.hostile else MODELS)
        body["override_settings"] = {"sd_model_checkpoint": model, **(body.get("override_settings") or {})}
        if route == "img2img":
            body["init_images"] = [self._encoded(draw)]
        reply = self.client.post(f"/sdapi/v1/{route}", json=body)
        if reply.status_code != 200:
            return f"{reply.status_code}: {reply.text[:300]}", _reply_fault(reply)
        return "picture", None if reply.json()["images"] else f"no images: {body}"

    def _encoded(self, draw: Draw) -> str:
        path = self.trials.folder / draw.dice.choice(self.trials.pictures)
        return base64.b64encode(path.read_bytes()).decode() if path.exists() else "no picture"


def _a1111_value(draw: Draw, name: str, field: Any) -> Any:
    """A value as clients send it; anything that the field's type allows if the draw is hostile."""
    dice = draw.dice
    if name == "mask" or (draw.hostile and name in ("latent_mask", "firstpass_image")):
        out = io.BytesIO()
        Image.linear_gradient("L").resize((dice.choice((16, 64)), 64)).save(out, "PNG")
        return base64.b64encode(out.getvalue()).decode()
    if not draw.hostile or dice.random() < 0.8:
        return dice.choice(VALUES["a1111"].get(name, (None,)))
    return draw.value(Annotated[(field.annotation, *field.metadata, ...)], name)


def _renamed(fields: Any, names: dict[str, str]) -> Any:
    """The fields with every picture's file by its hash."""
    if isinstance(fields, dict):
        return {key: _renamed(value, names) for key, value in fields.items()}
    if isinstance(fields, list):
        return [_renamed(value, names) for value in fields]
    return names.get(fields, fields) if isinstance(fields, str) else fields


def _reply_fault(reply: httpx.Response) -> Fault:
    if reply.status_code >= 500 and reply.status_code not in (503, 504):
        return f"status {reply.status_code}: {reply.text[:600]}\n{reply.request.content[:1500]!r}"
    return _unclear(reply.text)


@contextmanager
def served(trials: Trials) -> Iterator[Served]:
    """`gouache serve` on a free port with the tiny models; stopped at the end."""
    import httpx

    command = [sys.executable, "-m", "gouache", "serve", "--port", "0", "--no-page", "--threads", "1"]
    with (
        (trials.folder / "server.log").open("w") as log,
        subprocess.Popen(
            [*command, "--data", str(trials.folder / "studio")], stdout=subprocess.PIPE, stderr=log, text=True
        ) as process,
    ):
        address = (process.stdout or sys.stdin).readline().strip()
        try:
            with httpx.Client(base_url=address, timeout=2 * SLOWEST) as client:
                until = time.monotonic() + SLOWEST
                while time.monotonic() < until and client.get("/readyz").status_code != 200:
                    time.sleep(0.2)
                yield Served(trials, client)
        finally:
            process.terminate()


def run(trials: Trials, interface: str, numbers: range, one: Callable[[int], tuple[str, Fault]]) -> None:
    """Some numbers of one interface, with a line of progress now and then."""
    began = time.monotonic()
    for number in numbers:
        start = time.monotonic()
        outcome, fault = one(number)
        trials.note(interface, number, outcome, fault, time.monotonic() - start)
        if (number + 1) % 500 == 0:
            sys.stderr.write(
                f"{interface} {number + 1}: {time.monotonic() - began:.0f} s, {len(trials.faults)} faults\n"
            )


def main() -> None:
    """Run them and print how many ended how."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=COUNT, help="of all interfaces together")
    parser.add_argument("--only", choices=SHARES, help="this interface alone")
    parser.add_argument("--number", type=int, help="this request alone; with --only")
    parser.add_argument("--first", type=int, default=0, help="number of the first request of each interface")
    parser.add_argument("--show", action="store_true", help="print how each ended")
    parser.add_argument("--unpainted", action="store_true", help="check and resolve only; with --only python")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["GOUACHE_MODELS"] = str(Path(folder) / "models")
        os.chdir(folder)
        trials = Trials(Path(folder), show=options.show, unpainted=options.unpainted)
        for interface in [options.only] if options.only else SHARES:
            count = options.count if options.only else round(options.count * SHARES[interface])
            first, count = (options.first, count) if options.number is None else (options.number, 1)
            numbers = range(first, first + count)
            if interface in ("http", "a1111"):
                with served(trials) as server:
                    run(trials, interface, numbers, getattr(server, interface))
            else:
                run(trials, interface, numbers, getattr(trials, interface))
    print(json.dumps({"ended": dict(sorted(trials.ended.items())), "faults": len(trials.faults)}, indent=1))  # noqa: T201
    sys.exit(1 if trials.faults else 0)


if __name__ == "__main__":
    main()
