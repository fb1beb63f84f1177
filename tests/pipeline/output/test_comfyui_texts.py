"""ComfyUI's pictures: from the node that saved the picture back along the wires.

The kind: a value of a request that stands in a graph somewhere else than in the sampler or in the node right above.
Text may be wired from another node, joined, chosen by a switch or encoded in several pieces; there may be several
samplers, of which one painted the picture; settings may be spread over nodes for noise, guidance and levels, or travel
in a pipe. What can't be followed is noted by the node's name, and a prompt that isn't known is never an empty one.
Nodes and names are those of ComfyUI and of popular packs (Efficiency, Impact, WAS, rgthree, pysssss, KJNodes, easy-use,
Comfyroll), as their files hold them; `sd_parsers` reads the plain ones as a second opinion.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from comfyui_graphs import TEXT, Graph, encoded, graph, node, png, read
from typer.testing import CliRunner

from gouache.cli.main import app
from gouache.errors import RecipeError
from gouache.pipeline.prompts.syntax import branches, schedule, sections

WIRED: dict[str, Graph] = {
    "PrimitiveString": {"20": node("PrimitiveString", value=TEXT)},
    "PrimitiveStringMultiline": {"20": node("PrimitiveStringMultiline", value=TEXT)},
    "core concatenation": {"20": node("StringConcatenate", string_a="a (red:1.2)", string_b="cat", delimiter=" ")},
    "concatenation of wires": {
        "20": node("StringConcatenate", string_a=["21", 0], string_b=["22", 0], delimiter=" "),
        "21": node("PrimitiveString", value="a (red:1.2)"),
        "22": node("PrimitiveString", value="cat"),
    },
    "core replacement": {"20": node("StringReplace", string="a (red:1.2) dog", find="dog", replace="cat")},
    "WAS concatenation": {
        "20": node("Text Concatenate", delimiter=" ", clean_whitespace="true", text_a=["21", 0], text_b=["22", 0]),
        "21": node("Text Multiline", text="a (red:1.2)"),
        "22": node("Text String", text="cat"),
    },
    "pysssss function": {
        "20": node(
            "StringFunction|pysssss", action="append", tidy_tags="no", text_a="a (red:1.2) ", text_b="cat", text_c=""
        )
    },
    "pysssss display": {
        "20": node("ShowText|pysssss", text=["21", 0], text_0="older"),
        "21": node("CR Text", text=TEXT),
    },
    "Comfyroll": {"20": node("CR Text Concatenate", text1="a (red:1.2)", text2="cat", separator=" ")},
    "KJNodes": {"20": node("JoinStrings", string1="a (red:1.2)", string2="cat", delimiter=" ")},
    "KJNodes, many": {
        "20": node(
            "JoinStringMulti",
            inputcount=3,
            string_1="a",
            string_2="(red:1.2)",
            string_3="cat",
            delimiter=" ",
            return_list=False,
        )
    },
    "KJNodes constant": {"20": node("StringConstantMultiline", string=TEXT, strip_newlines=True)},
    "easy positive": {"20": node("easy positive", positive=TEXT)},
    "tiny terra": {"20": node("ttN concat", text1="a (red:1.2)", text2="cat", text3="", delimiter=" ")},
    "image saver": {"20": node("String Literal", string=TEXT)},
    "reroute": {"20": node("Reroute", **{"": ["21", 0]}), "21": node("PrimitiveString", value=TEXT)},
    "Impact wildcards": {
        "20": node(
            "ImpactWildcardProcessor", wildcard_text="a {red|blue} cat", populated_text=TEXT, mode="populate", seed=1
        )
    },
    "first input of a switch": {
        "20": node("Any Switch (rgthree)", any_01=["21", 0], any_02=["22", 0]),
        "21": node("PrimitiveString", value=TEXT),
        "22": node("PrimitiveString", value="a dog"),
    },
    "a chosen input": {
        "20": node("ImpactSwitch", select=2, sel_mode=False, input1=["22", 0], input2=["21", 0]),
        "21": node("PrimitiveString", value=TEXT),
        "22": node("PrimitiveString", value="a dog"),
    },
    "a boolean": {
        "20": node("ComfySwitchNode", switch=True, on_false=["22", 0], on_true=["21", 0]),
        "21": node("PrimitiveString", value=TEXT),
        "22": node("PrimitiveString", value="a dog"),
    },
}


@pytest.mark.parametrize("name", WIRED)
def test_text_wired_from_another_node_is_the_prompt(name: str) -> None:
    found = read(graph(n6=encoded("20", 0), **{f"n{key}": one for key, one in WIRED[name].items()}))
    assert found.request.prompt == TEXT
    assert found.request.negative_prompt == "bad"
    assert found.prompt_known


ENCODERS: dict[str, dict[str, Any]] = {
    "SDXL": node("CLIPTextEncodeSDXL", text_g=TEXT, text_l=TEXT, width=1024, height=1024, clip=["4", 1]),
    "SDXL refiner": node("CLIPTextEncodeSDXLRefiner", ascore=6.0, text=TEXT, clip=["4", 1]),
    "advanced": node(
        "BNK_CLIPTextEncodeAdvanced",
        text=TEXT,
        token_normalization="none",
        weight_interpretation="comfy",
        clip=["4", 1],
    ),
    "Impact": node("ImpactWildcardEncode", wildcard_text="x", populated_text=TEXT, model=["4", 0], clip=["4", 1]),
    "Inspire": node("PromptEncode //Inspire", prompt=TEXT, clip=["4", 1]),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_every_encoder_is_read(name: str) -> None:
    assert read(graph(n6=ENCODERS[name])).request.prompt == TEXT


def test_an_encoder_of_a1111s_rule_sets_the_rule() -> None:
    smz = node("smZ CLIPTextEncode", text="[a] (cat)", parser="A1111", mean_normalization=True, clip=["4", 1])
    request = read(graph(n6=smz)).request
    assert (request.prompt, request.emphasis) == ("[a] (cat)", "a1111")


@pytest.mark.parametrize(
    ("large", "small", "expected"),
    [
        ("a cat", "film", {"prompt": "film", "prompt_2": "a cat"}),
        ("a cat", "", {"prompt": "", "prompt_2": "a cat"}),
        ("", "film", {"prompt": "film", "prompt_2": ""}),
        ("a cat", "a cat", {"prompt": "a cat", "prompt_2": None}),
        (["20", 0], "film", {"prompt": "film", "prompt_2": "a wired cat"}),
    ],
)
def test_both_texts_of_sdxl_are_read(large: Any, small: str, expected: dict[str, str | None]) -> None:
    """As ComfyUI's node gives them: text_l to ViT-L, text_g to bigG."""
    both = node("CLIPTextEncodeSDXL", text_g=large, text_l=small, clip=["4", 1])
    found = read(graph(n6=both, n20=node("PrimitiveString", value="a wired cat")))
    assert {name: getattr(found.request, name) for name in expected} == expected
    assert not any("texts" in note for note in found.notes)
    other = node("CLIPTextEncodeSDXL", text_g="grey", text_l="dark", clip=["4", 1])
    found = read(graph(n6=both, n7=other, n20=node("PrimitiveString", value="a wired cat")))
    assert (found.request.negative_prompt, found.request.negative_prompt_2) == ("dark", "grey")


@pytest.mark.parametrize(
    ("t5", "expected"),
    [
        ("a fox", {"prompt": "film", "prompt_2": "a cat", "prompt_3": "a fox"}),
        ("film", {"prompt": "film", "prompt_2": "a cat", "prompt_3": None}),
        ("", {"prompt": "film", "prompt_2": "a cat", "prompt_3": ""}),
    ],
)
def test_the_three_texts_of_stable_diffusion_3_are_read(t5: str, expected: dict[str, str | None]) -> None:
    """As ComfyUI's node gives them, with text encoders from a loader of their own."""
    loader = node("TripleCLIPLoader", clip_name1="clip_l", clip_name2="clip_g", clip_name3="t5xxl")
    three = node("CLIPTextEncodeSD3", clip_l="film", clip_g="a cat", t5xxl=t5, empty_padding="none", clip=["20", 0])
    found = read(graph(n6=three, n20=loader))
    assert {name: getattr(found.request, name) for name in expected} == expected
    assert not any("texts" in note or "followed" in note for note in found.notes)
    other = node("CLIPTextEncodeSD3", clip_l="dark", clip_g="dark", t5xxl="grey", empty_padding="none", clip=["20", 0])
    request = read(graph(n6=three, n7=other, n20=loader)).request
    assert (request.negative_prompt, request.negative_prompt_2, request.negative_prompt_3) == ("dark", None, "grey")


SIZED = {"width": 2048, "height": 1024, "crop_w": 16, "crop_h": 8, "target_width": 1024, "target_height": 768}
OURS = {
    "original_width": 2048,
    "original_height": 1024,
    "crop_left": 16,
    "crop_top": 8,
    "target_width": 1024,
    "target_height": 768,
}


def test_sizes_of_sdxls_encoder_are_read() -> None:
    def told(**sizes: int) -> Any:
        one = node("CLIPTextEncodeSDXL", text_g="a", text_l="a", clip=["4", 1], **{**SIZED, **sizes})
        return read(graph(n6=one))

    request = told().request
    assert request.size_condition is not None
    assert {name: getattr(request.size_condition, name) for name in OURS} == OURS
    width, height = request.width, request.height
    own = {"width": width, "height": height, "crop_w": 0, "crop_h": 0, "target_width": width, "target_height": height}
    assert told(**own).request.size_condition is None
    beyond = told(width=10**6)
    assert beyond.request.size_condition is None
    assert any("sizes outside" in note for note in beyond.notes)


UNKNOWN: dict[str, Graph] = {
    "a language model": {"6": encoded("20", 0), "20": node("OllamaGenerate", model="x", keep_alive=5, seed=1)},
    "nothing at the other end": {"6": encoded("99", 0)},
    "a conditioning of an unknown kind": {"6": node("FancyConditioning", strength=1.0, mystery=["4", 1])},
    "a circle": {"6": encoded("20", 0), "20": node("Reroute", **{"": ["20", 0]})},
    "an image encoder": {"6": node("StableZero123_Conditioning", clip_vision=["4", 1], elevation=0.0)},
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_a_prompt_that_cannot_be_followed_is_never_an_empty_one(name: str, tmp_path: Path) -> None:
    values = graph(**{f"n{key}": one for key, one in UNKNOWN[name].items()})
    found = read(values)
    assert not found.prompt_known
    assert any("prompt" in note or "text" in note for note in found.notes)
    path = tmp_path / "a.png"
    path.write_bytes(png({"prompt": json.dumps(values)}))
    refused = CliRunner().invoke(app, ["paint", "--like", str(path), "-o", str(tmp_path / "out.png")])
    assert refused.exit_code != 0
    assert isinstance(refused.exception, RecipeError)
    shown = CliRunner().invoke(app, ["show", str(path)])
    assert "prompt: not known" in shown.output
    assert "note:" in shown.output


def test_an_unknown_node_with_one_text_is_taken_with_a_note() -> None:
    found = read(graph(n6=encoded("20", 0), n20=node("FancyPrompt", some_words="a cat", strength=2)))
    assert found.request.prompt == "a cat"
    assert any("FancyPrompt (node 20)" in note for note in found.notes)


def test_square_brackets_and_capital_words_are_text_as_in_comfyui() -> None:
    """ComfyUI's language has round brackets only; A1111's marks must not act."""
    text = "[a] AND b [c:d:0.5] BREAK e"
    request = read(graph(n6=node("CLIPTextEncode", text=text, clip=["4", 1]))).request
    assert request.prompt == text
    assert "".join(span.text for span in sections(request.prompt, request.emphasis)[0]) == text


def test_tags_without_effect_and_embeddings() -> None:
    text = "a cat <lora:film:1>, embedding:folder\\easy.pt, (embedding:blob:1.2)"
    found = read(graph(n6=node("CLIPTextEncode", text=text, clip=["4", 1])))
    assert found.request.prompt == "a cat , easy, (blob:1.2)"
    assert any("<lora:film:1>" in note for note in found.notes)


def combined(**more: Any) -> Graph:
    second = node("CLIPTextEncode", text="a [big] dog AND more", clip=["4", 1])
    values = graph(n10=second, n11=node("ConditioningCombine", conditioning_1=["6", 0], conditioning_2=["10", 0]))
    values["3"]["inputs"]["positive"] = ["11", 0]
    return {**values, **{key.removeprefix("n"): one for key, one in more.items()}}


def test_combined_conditionings_are_their_mean() -> None:
    """ConditioningCombine averages predictions: AND with weights that add up to 1."""
    found = read(combined())
    request = found.request
    parts = branches(request.prompt, request.emphasis)
    assert [part.weight for part in parts] == [0.5, 0.5]
    assert [[(span.text, span.weight) for span in sections(part.text)[0]] for part in parts] == [
        [("a ", 1.0), ("red", 1.2), (" cat", 1.0)],
        [(" a [big] dog and more", 1.0)],
    ]
    assert any("AND" in note for note in found.notes)


def test_three_combined_conditionings() -> None:
    third = node("ConditioningCombine", conditioning_1=["11", 0], conditioning_2=["7", 0])
    values = combined(n12=third)
    values["3"]["inputs"]["positive"] = ["12", 0]
    weights = [part.weight for part in branches(read(values).request.prompt)]
    assert weights == pytest.approx([1 / 3] * 3, abs=1e-3)


def test_concatenated_conditionings_are_chunks_of_their_own() -> None:
    join = node("ConditioningConcat", conditioning_to=["6", 0], conditioning_from=["10", 0])
    request = read(combined(n11=join)).request
    found = sections(request.prompt, request.emphasis)
    assert ["".join(span.text for span in section) for section in found] == ["a red cat", "a [big] dog and more"]


def test_conditionings_one_after_the_other_are_prompt_editing() -> None:
    values = combined(
        n21=node("ConditioningSetTimestepRange", conditioning=["6", 0], start=0.0, end=0.4),
        n22=node("ConditioningSetTimestepRange", conditioning=["10", 0], start=0.4, end=1.0),
        n11=node("ConditioningCombine", conditioning_1=["21", 0], conditioning_2=["22", 0]),
    )
    request = read(values).request
    assert schedule(request.prompt, 10) == ((4, "a (red:1.2) cat"), (10, "a \\[big\\] dog and more"))


@pytest.mark.parametrize(
    "between",
    [
        node("ConditioningSetArea", conditioning=["6", 0], width=64, height=64, x=0, y=0, strength=1.0),
        node("ConditioningSetAreaPercentage", conditioning=["6", 0], width=0.5, height=1, x=0, y=0, strength=1.0),
        node("ConditioningSetMask", conditioning=["6", 0], mask=["5", 0], strength=1.0, set_cond_area="default"),
        node("ControlNetApply", conditioning=["6", 0], control_net=["12", 0], image=["13", 0], strength=0.8),
        node("unCLIPConditioning", conditioning=["6", 0], clip_vision_output=["13", 0], strength=1),
        node("GLIGENTextBoxApply", conditioning_to=["6", 0], clip=["4", 1], text="x", width=8, height=8, x=0, y=0),
        node("FluxGuidance", conditioning=["6", 0], guidance=3.5),
        node("StyleModelApply", conditioning=["6", 0], style_model=["12", 0], clip_vision_output=["13", 0]),
    ],
    ids=lambda one: one["class_type"],
)
def test_what_changes_a_conditioning_is_passed_and_noted(between: dict[str, Any]) -> None:
    values = graph(n11=between)
    values["3"]["inputs"]["positive"] = ["11", 0]
    found = read(values)
    assert found.request.prompt == TEXT if between["class_type"] != "GLIGENTextBoxApply" else found.prompt_known
    assert any(between["class_type"] in note for note in found.notes)


def boxed(strengths: tuple[float, ...], *, whole: bool) -> dict[str, Any]:
    """Two prompts on the halves of the picture, the first in pixels, beside one for all of it or not."""
    pixels = {"width": 256, "height": 640, "x": 0, "y": 0}
    fractions = {"width": 0.5, "height": 1.0, "x": 0.5, "y": 0.0}
    return combined(
        n21=node("ConditioningSetArea", conditioning=["6", 0], strength=strengths[0], **pixels),
        n22=node("ConditioningSetAreaPercentage", conditioning=["10", 0], strength=strengths[1], **fractions),
        n23=node("ConditioningCombine", conditioning_1=["21", 0], conditioning_2=["22", 0]),
        n24=node("CLIPTextEncode", text="a field", clip=["4", 1]),
        n11=node("ConditioningCombine", conditioning_1=["23", 0], conditioning_2=["24", 0]) if whole else
        node("ConditioningCombine", conditioning_1=["21", 0], conditioning_2=["22", 0]),
    )  # fmt: skip


def test_prompts_on_boxes_are_regions() -> None:
    found = read(boxed((1.0, 3.0), whole=True))
    left, right = found.request.regions
    assert (found.request.prompt, left.prompt) == ("a field", TEXT)
    assert (left.box, right.box) == ((0, 0, 0.5, 1), (0.5, 0, 1, 1))
    assert (left.base, right.base) == (0.5, 0.25)
    assert any("boxes are read as regions" in note for note in found.notes)
    bare = read(boxed((1.0, 3.0), whole=False)).request
    assert (bare.prompt, [one.base for one in bare.regions]) == ("", [0, 0])
    assert [one.weight for one in bare.regions] == [1, 3]


def test_boxes_that_are_none_are_named_and_left_out() -> None:
    values = boxed((1.0, 0.0), whole=True)
    values["21"]["inputs"] |= {"x": 5000}
    found = read(values)
    assert (found.request.prompt, found.request.regions) == ("a field", ())
    assert sum("is left out" in note for note in found.notes) == 2
    masked = boxed((1.0, 1.0), whole=True)
    masked["21"] = node("ConditioningSetMask", conditioning=["6", 0], mask=["12", 0], strength=1.0)
    noted = read(masked)
    assert [one.box for one in noted.request.regions] == [(0.5, 0, 1, 1)]
    assert any("ConditioningSetMask" in note for note in noted.notes)


def test_a_node_for_both_prompts_hands_on_the_right_one() -> None:
    """ControlNetApplyAdvanced has two outputs: the second is the negative prompt's."""
    both = node(
        "ControlNetApplyAdvanced",
        positive=["6", 0],
        negative=["7", 0],
        control_net=["12", 0],
        image=["13", 0],
        strength=1.0,
        start_percent=0,
        end_percent=1,
    )
    values = graph(n11=both)
    values["3"]["inputs"] |= {"positive": ["11", 0], "negative": ["11", 1]}
    request = read(values).request
    assert (request.prompt, request.negative_prompt) == (TEXT, "bad")


def test_a_zeroed_negative_prompt() -> None:
    values = graph(n11=node("ConditioningZeroOut", conditioning=["6", 0]))
    values["3"]["inputs"]["negative"] = ["11", 0]
    request = read(values).request
    assert (request.prompt, request.negative_prompt) == (TEXT, "")
