"""Budget levels, and that each crossing is reported once."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from eemtcleanupd.policy.capacity import Budget, BudgetLevel

WITHIN, WARNED, OVER = BudgetLevel


@pytest.mark.parametrize(
    ("before", "used", "level"),
    [
        (WITHIN, 79, WITHIN),
        (WITHIN, 80, WARNED),
        (WITHIN, 100, OVER),
        (WITHIN, 10**6, OVER),
        (WARNED, 77, WARNED),  # a little below its mark
        (WARNED, 75, WITHIN),
        (WARNED, 99, WARNED),
        (WARNED, 100, OVER),
        (OVER, 96, OVER),
        (OVER, 94, WARNED),
        (OVER, 10, WITHIN),
    ],
)
def test_a_level_is_reached_at_its_mark_and_left_a_little_below(
    before: BudgetLevel, used: int, level: BudgetLevel
) -> None:
    assert Budget(100, 80).level(used, before) is level


@given(
    st.integers(1, 2**62),
    st.floats(0.01, 100),
    st.integers(0, 2**62),
    st.sampled_from(BudgetLevel),
)
def test_the_level_does_not_change_while_usage_is_constant(
    max_bytes: int, warn_percent: float, used: int, before: BudgetLevel
) -> None:
    budget = Budget(max_bytes, warn_percent)
    level = budget.level(used, before)
    assert budget.level(used, level) is level


@given(
    st.floats(1, 100),
    st.integers(10**5, 2 * 10**6),
    st.lists(st.floats(0, 1), min_size=1),
)
def test_usage_that_varies_by_less_than_5_percent_raises_each_level_once(
    percent: float, lowest: int, swings: list[float]
) -> None:
    budget, level, rises = Budget(10**6, percent), WITHIN, 0
    for swing in swings:
        after = budget.level(int(lowest * (1 + swing / 20)), level)
        rises += after > level
        level = after
    assert rises <= 2
