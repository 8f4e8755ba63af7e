"""How many workers to use."""

from __future__ import annotations

import numpy as np
import pytest

from dpexp.analysis.decision.choice import choose
from dpexp.analysis.estimate import UNKNOWN, Estimate
from dpexp.analysis.table_row import Row
from dpexp.errors import pluralize


def row(workers, overall, share=0.02, over_best=None, **changes):
    estimate = Estimate(overall, overall / (1 + share), overall * (1 + share))
    best = UNKNOWN if over_best is None else Estimate(over_best, over_best / (1 + share), over_best * (1 + share))
    settings = {"threads_per_worker": 1, "best_sequential_threads": None if over_best is None else 2}
    found = {"overall_speedup": estimate, "overall_best_sequential_speedup": best}  # overall: it decides
    return Row("ok", workers=workers, option=pluralize(workers, "worker"), **(found | settings | changes))


def test_the_fastest_is_chosen_and_surely_so():
    choice = choose([row(1, 1.0), row(2, 1.8), row(4, 1.2)])
    assert choice.name == "2 workers"
    assert choice.options == ["one process with 1 thread", "2 workers", "4 workers"]
    assert choice.probability == pytest.approx(1)
    assert choice.expected_cost == pytest.approx(0, abs=1e-6)


def test_where_workers_do_not_pay_one_process_is_chosen():
    assert choose([row(2, 0.6), row(4, 0.4)]).name == "one process with 1 thread"


def test_the_best_sequential_process_is_an_option():
    assert choose([row(2, 1.2, over_best=0.8)]).name == "one process with 2 threads"


def test_of_two_that_are_alike_neither_is_sure_and_little_is_lost():
    choice = choose([row(2, 1.80, 0.05), row(4, 1.81, 0.05)])
    assert 0.4 < choice.probability < 0.6
    assert 0 < choice.expected_cost < 0.05


def test_fewer_threads_are_named_where_they_take_hardly_more_time():
    assert choose([row(2, 1.80, 0.001), row(4, 1.85, 0.001)]).cheaper == "2 workers"
    assert choose([row(2, 1.50, 0.001), row(4, 1.85, 0.001)]).cheaper is None


def test_what_decides_is_the_overall_speedup_not_the_undisturbed_one():
    undisturbed = {"speedup": Estimate(1.7, 1.69, 1.71), "disturbed_share": 0.5}
    assert choose([row(2, 0.9, **undisturbed)]).name == "one process with 1 thread"


def test_a_wide_interval_makes_the_choice_less_sure():
    choice = choose([row(2, 1.05, overall_speedup=Estimate(1.05, 0.9, 1.25))])
    assert choice.name == "2 workers"
    assert 0.6 < choice.probability < 0.8


@pytest.mark.parametrize(
    "rows", [[], [row(1, 1.0)], [Row("ok", workers=2, overall_speedup=Estimate(1.5, np.nan, np.nan))]]
)
def test_without_intervals_of_several_workers_nothing_is_chosen(rows):
    assert choose(rows) is None


def test_the_probability_is_how_often_the_choice_is_right():
    """On held-out truths: of choices that claim a probability around p, about p are right."""
    generator = np.random.default_rng(4)
    claimed, right, lost, expected = [], [], [], []
    for _ in range(300):
        truth = generator.normal(np.log(1.5), 0.05, 3)  # log speedups of 2, 3 and 4 workers
        seen = truth + generator.normal(0, 0.04, 3)
        choice = choose([row(2 + at, np.exp(value), np.expm1(1.96 * 0.04)) for at, value in enumerate(seen)])
        chosen = int(choice.name.split()[0]) - 2
        claimed.append(choice.probability)
        right.append(chosen == truth.argmax())
        lost.append(-np.expm1(truth[chosen] - truth.max()))
        expected.append(choice.expected_cost)
    assert np.mean(claimed) == pytest.approx(np.mean(right), abs=0.08)
    assert np.mean(lost) <= 1.2 * np.mean(expected)


def test_the_choice_in_words_is_never_certain_and_names_what_was_compared():
    assert str(choose([row(2, 1.8)])) == (
        "2 workers, with a probability of more than 99 % (compared: one process with 1 thread, 2 workers)"
    )
    assert "expected cost of this choice: " in str(choose([row(2, 1.80, 0.05), row(4, 1.81, 0.05)]))
    assert "; 2 workers, with fewer threads, is at most 5 % slower" in str(
        choose([row(2, 1.80, 0.001), row(4, 1.85, 0.001)])
    )


def test_oversubscription_is_chosen_only_if_surely_fastest():
    close = [row(2, 1.5), row(4, 1.52, oversubscribed=True)]
    found = choose(close)
    assert found.name == "2 workers"
    assert "4 workers" not in found.options
    assert choose([close[0], row(4, 2.5, oversubscribed=True)]).name == "4 workers"
