import pytest

from sterna.net.pace import Budget, Pace


def test_sends_are_at_least_one_gap_apart():
    pace = Pace(0.01)
    waits = [pace.wait(5.0) for _ in range(4)]
    assert waits == pytest.approx([0.0, 0.01, 0.02, 0.03])


def test_a_pause_earns_no_credit():
    pace = Pace(1.0)
    pace.wait(0.0)
    assert pace.wait(100.0) == 0.0
    assert pace.wait(100.0) == 1.0


def test_a_budget_lets_one_burst_through_and_then_the_rate():
    budget = Budget(rate=2.0, burst=3.0, now=0.0)
    assert [budget.take(1, 0.0) for _ in range(4)] == [True, True, True, False]
    assert not budget.take(1, 0.4)
    assert budget.take(1, 0.5)


def test_a_budget_never_saves_more_than_its_burst():
    budget = Budget(rate=2.0, burst=3.0, now=0.0)
    assert [budget.take(1, 1000.0) for _ in range(4)] == [True, True, True, False]


def test_spending_on_credit_tells_how_long_to_wait():
    budget = Budget(rate=10.0, burst=10.0, now=0.0)
    assert budget.wait(10, 0.0) == 0.0
    assert budget.wait(5, 0.0) == 0.5
    assert budget.wait(0, 0.5) == 0.0
