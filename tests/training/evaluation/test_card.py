"""Goals: which figure they mean, and when it reaches them."""

from __future__ import annotations

import pytest

from gouache.training.evaluation.card import GOALS, Goal


def figure(name: str, value: float, low: float, high: float, **more: object) -> dict[str, object]:
    return {"name": name, "group": "all", "value": value, "low": low, "high": high, "count": 9, **more}


@pytest.mark.parametrize(
    ("sense", "bound", "reached", "missed", "told"),
    [
        ("least", 0.8, (0.8, 0.1, 0.9), (0.79, 0.1, 0.9), "≥ 80.0 %"),
        ("most", 0.8, (0.8, 0.1, 0.9), (0.81, 0.1, 0.9), "≤ 80.0 %"),
        ("above", 0.0, (0.1, 0.01, 0.2), (0.1, 0.0, 0.2), "significantly better"),
        ("below", 0.0, (-0.1, -0.2, -0.01), (-0.1, -0.2, 0.0), "significantly better"),
    ],
)
def test_a_share_needs_its_bound_and_a_gain_its_whole_interval(
    sense: str, bound: float, reached: tuple[float, float, float], missed: tuple[float, float, float], told: str
) -> None:
    goal = Goal("what", "x", "all", bound, sense)  # type: ignore[arg-type]
    assert goal.description == told
    assert goal.met(figure("x", *reached)) is True
    assert goal.met(figure("x", *missed)) is False


def test_a_ceiling_asks_for_nothing() -> None:
    ceiling = Goal("what", "x", "all", None)
    assert ceiling.description == ""
    assert ceiling.met(figure("x", 0.0, 0.0, 0.0)) is None


def test_the_figure_meant_is_painted_once_with_a_draft_in_the_default_steps() -> None:
    figures = [
        figure("x", 1.0, 0, 1, steps=8, draft=True),
        figure("x", 2.0, 0, 1, steps=12, draft=False),
        figure("x", 3.0, 0, 1, steps=12, draft=True, best_of=4),
        figure("x", 4.0, 0, 1, steps=12, draft=True),
        figure("y", 5.0, 0, 1, steps=None),
    ]
    for goal, value in (
        (Goal("what", "x", "all", 0.0), 4.0),
        (Goal("what", "x", "all", 0.0, steps=8), 1.0),
        (Goal("what", "y", "all", 0.0), 5.0),
    ):
        found = goal.find(figures, 12)
        assert found is not None
        assert found["value"] == value
    assert Goal("what", "z", "all", 0.0).find(figures, 12) is None


def test_every_goal_is_asked_once() -> None:
    assert len({(goal.name, goal.group, goal.steps) for goal in GOALS}) == len(GOALS)
