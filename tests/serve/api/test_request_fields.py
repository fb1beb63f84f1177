"""The description of a request's fields that forms are made from: complete, and true to what the server takes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, get_args

import pytest
from pydantic.fields import FieldInfo

from gouache.config import Config
from gouache.errors import ConfigError
from gouache.pipeline.request import Request
from gouache.serve.api import request_fields
from gouache.serve.api.request_fields import PAGE_GROUPS, FieldView, describe, flattened
from gouache.serve.settings import Limits

if TYPE_CHECKING:
    from tests.serve.conftest import MakeClient


def configs_in(annotation: Any) -> list[type[Config]]:
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return [annotation]
    return [found for part in get_args(annotation) for found in configs_in(part)]


def paths_of(kind: type[Config], before: str = "") -> dict[str, FieldInfo]:
    """Every field of a config and of the configs in it, by path; written without the code that is tested."""
    found: dict[str, FieldInfo] = {}
    for name, field in kind.model_fields.items():
        path = f"{before}{name}"
        found[path] = field
        for inner in configs_in(field.annotation):
            found |= paths_of(inner, f"{path}[]." if "tuple" in str(field.annotation) else f"{path}.")
    return found


def all_fields() -> dict[str, FieldView]:
    return {field.path: field for field in flattened(describe().fields)}


def test_every_field_of_a_request_is_described_once_nested_ones_included() -> None:
    wanted, found = paths_of(Request), [field.path for field in flattened(describe().fields)]
    assert sorted(found) == sorted(wanted)
    assert len(found) > 140
    for path, field in all_fields().items():
        assert field.help == " ".join((wanted[path].description or "").split()), path
        assert field.required == wanted[path].is_required(), path


def test_every_field_stands_in_one_group_of_the_page_and_none_in_more() -> None:
    shown = [name for group in describe().groups for name in group.fields]
    assert sorted(shown) == sorted(Request.model_fields)
    assert [group.name for group in describe().groups] == list(PAGE_GROUPS)


def test_a_field_that_no_table_knows_appears_in_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_fields, "PAGE_GROUPS", {**PAGE_GROUPS, "output": ("watermark",)})
    (more,) = (group for group in describe().groups if group.name == "more")
    assert more.fields == ("safety",)


def test_the_tables_name_only_fields_that_are_there() -> None:
    known = all_fields()
    for table in (request_fields.NAMES, request_fields.USUAL, request_fields.UNITS):
        assert set(table) <= set(known)


def value_at(path: str, value: object) -> dict[str, Any]:
    """A request's values in which one field has a value, and what it needs beside it."""
    outer, _, inner = path.partition(".")
    needed: dict[str, dict[str, Any]] = {
        "control[]": {"model": "m", "image": "p"},
        "image_prompts[]": {"images": ["p"]},
        "regions[]": {"prompt": "a", "box": [0, 0, 1, 1]},
        "outpaint": {"aspect": "1:1"},
    }
    values: dict[str, Any] = {"init_image": "p"}
    if path.startswith("eta_noise"):
        values["determinism"] = "a1111"
    if not inner:
        return values | {path: value}
    group = needed.get(outer, {}) | {inner: value}
    if path == "interpolation.frame":
        group["frames"] = 1000
    if inner == "start":
        group["end"] = 1
    if inner == "end":
        group["start"] = 0
    if inner == "canny_low":
        group["canny_high"] = 1000
    if inner == "canny_high":
        group["canny_low"] = 0
    return values | {outer.removesuffix("[]"): [group] if outer.endswith("[]") else group}


RANGED = [
    path
    for path, field in all_fields().items()
    if field.kind in ("integer", "number", "seed") and path not in ("regions[].base",)
]


@pytest.mark.parametrize("path", RANGED)
def test_a_request_takes_the_ends_of_a_range_and_nothing_beyond(path: str) -> None:
    """The truth is what `Request` itself takes."""
    field = all_fields()[path]
    inside: list[float] = []
    outside: list[float] = []
    step = 1 if field.kind in ("integer", "seed") else 1e-3
    if field.min is not None:
        inside.append(field.min)
        outside.append(field.min - step)
    if field.max is not None:
        inside.append(int(field.max) if isinstance(field.max, str) else field.max)
        outside.append(inside[-1] + step)
    outside += [end for end in (field.above, field.below) if end is not None]
    assert outside, "a number without any range"
    if path in ("width", "height"):
        inside.remove(16384)  # With the other side left open it is within the pixels; on its own it isn't for 16384.
    if path.endswith((".start", ".end", "frame")):
        inside = [1 if path == "interpolation.frame" else 0.5]  # Each has to go with the one beside it.
    if path == "mask.threshold":
        inside = [1, 255]
    for value in inside:
        Request.from_dict(value_at(path, value))
    for value in outside:
        with pytest.raises(ConfigError):
            Request.from_dict(value_at(path, value))


@pytest.mark.parametrize("path", [path for path, field in all_fields().items() if field.kind == "choice"])
def test_a_request_takes_each_choice_and_no_other(path: str) -> None:
    field = all_fields()[path]
    assert len(field.choices) > 1
    for choice in field.choices:
        Request.from_dict(value_at(path, choice.value))
    with pytest.raises(ConfigError):
        Request.from_dict(value_at(path, "another"))


def test_a_slider_lies_within_what_is_allowed() -> None:
    for field in all_fields().values():
        if field.usual is not None:
            low, high = field.usual
            assert low < high, field.path
            assert field.min is None or low >= field.min, field.path
            assert field.above is None or low > field.above or field.above == low == 0, field.path
            assert field.max is None or high <= float(field.max), field.path


def test_the_defaults_are_those_of_the_classes() -> None:
    fields = all_fields()
    plain = json.loads(Request().to_json())
    assert {name: fields[name].default for name in Request.model_fields} == plain
    assert fields["hires.strength"].default == 0.7
    assert fields["pag.layers"].default == ["mid"]
    assert fields["seed"].default is None
    assert fields["seed"].max == "9223372036854775807"  # Larger than JavaScript's numbers.


def test_what_a_server_allows_less_of_is_said_and_an_unchanged_list_is_not_sent_again(make_client: MakeClient) -> None:
    client = make_client(limits=Limits(steps=40, count=3))
    reply = client.get("/v1/request-fields")
    assert reply.status_code == 200
    fields = {field["path"]: field for field in reply.json()["fields"]}
    assert (fields["num_inference_steps"]["max"], fields["count"]["max"]) == (40, 3)
    assert fields["num_inference_steps"]["usual"] == [1, 40]
    assert len(reply.content) < 60_000
    again = client.get("/v1/request-fields", headers={"If-None-Match": reply.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
