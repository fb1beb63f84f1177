"""What stands in for torch's private parts gives the same numbers as they do."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from gouache.nn import layers, torch_private

X, WEIGHT, BIAS = (
    torch.randn(*shape, generator=torch.Generator().manual_seed(3)) for shape in ((64, 24), (8, 24), (8,))
)


@pytest.fixture
def _without_private_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A torch that has none of them."""
    monkeypatch.setattr(torch_private, "has_one_dnn", lambda: False)
    monkeypatch.delattr("torch._foreach_lerp_")
    monkeypatch.setitem(sys.modules, "torch._compile", None)


def test_this_torch_has_them_all() -> None:
    assert torch_private.has_one_dnn()
    assert hasattr(torch, "_foreach_lerp_")


def test_a_linear_layer_by_one_dnn_is_the_operator_bit_for_bit() -> None:
    expected = torch.ops.mkldnn._linear_pointwise(X, WEIGHT, BIAS, "none", [], "")
    assert torch.equal(torch_private.one_dnn_linear(X, WEIGHT, BIAS), expected)
    torch.testing.assert_close(expected, F.linear(X, WEIGHT, BIAS))


@pytest.mark.usefixtures("_without_private_parts")
def test_without_one_dnn_a_linear_layer_is_torchs() -> None:
    assert torch.equal(torch_private.one_dnn_linear(X, WEIGHT, BIAS), F.linear(X, WEIGHT, BIAS))


def test_a_layer_asks_for_one_dnn_only_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = layers.Linear(24, 8)
    with torch.no_grad():
        layer.weight.copy_(WEIGHT)
        layer.bias.copy_(BIAS)
        assert torch.equal(layer(X), torch_private.one_dnn_linear(X, WEIGHT, BIAS))
        monkeypatch.setattr(layers, "_HAS_ONE_DNN", False)
        assert torch.equal(layer(X), F.linear(X, WEIGHT, BIAS))


def _twice(x: float) -> float:
    return 2 * x


def test_a_function_kept_out_of_graphs_computes_the_same() -> None:
    assert torch_private.not_compiled(_twice)(3.0) == 6.0


@pytest.mark.usefixtures("_without_private_parts")
def test_so_it_does_by_the_public_decorator() -> None:
    assert torch_private.not_compiled(_twice)(3.0) == 6.0


def test_the_compiler_is_not_imported_by_a_layer() -> None:
    code = "import sys, gouache.nn.layers; sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


def averaged() -> list[torch.Tensor]:
    averages = [X.clone(), WEIGHT.clone()]
    torch_private.lerp_all_(averages, [X + 1, WEIGHT * 3], 0.1)
    return averages


def test_averages_move_towards_the_values() -> None:
    for average, start, value in zip(averaged(), (X, WEIGHT), (X + 1, WEIGHT * 3), strict=True):
        assert torch.equal(average, start.lerp(value, 0.1))


@pytest.mark.usefixtures("_without_private_parts")
def test_one_by_one_they_move_to_the_same_bits() -> None:
    for average, start, value in zip(averaged(), (X, WEIGHT), (X + 1, WEIGHT * 3), strict=True):
        assert torch.equal(average, start.lerp(value, 0.1))
