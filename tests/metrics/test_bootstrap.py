"""The paired bootstrap against sums that are done by hand and against its normal limit."""

import itertools
import math

import pytest
import torch

from vmp.metrics.bootstrap import paired_bootstrap


def outcomes(text):
    return torch.tensor([float(each) for each in text])


def make_pair(samples=600, seed=1):
    """Two models of 70 and some 75 %, right on much the same samples."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.rand(samples, generator=generator) < 0.7
    turned = torch.rand(samples, generator=generator) < 0.15
    return first.double(), torch.where(turned, torch.ones(samples), first).double()


def test_the_difference_is_that_of_the_means():
    result = paired_bootstrap(outcomes("1100"), outcomes("0111"), replicates=10)
    assert result.difference == pytest.approx(0.25)
    assert (result.samples, result.groups, result.replicates) == (4, 4, 10)


def test_the_same_seed_gives_the_same_numbers_and_another_one_others():
    first, second = make_pair()
    results = [paired_bootstrap(first, second, replicates=200, seed=seed) for seed in (0, 0, 1)]
    assert results[0] == results[1]
    assert results[0] != results[2]


def test_numbers_do_not_depend_on_the_size_of_a_block(monkeypatch):
    first, second = make_pair(50)
    whole = paired_bootstrap(first, second, replicates=200)
    monkeypatch.setattr("vmp.metrics.bootstrap.BLOCK", 50 * 200 // 2)
    halves = paired_bootstrap(first, second, replicates=200)
    assert halves == whole


def test_the_interval_of_two_samples_is_known_from_all_draws():
    # differences 0 and 1: of four draws one has mean 0, two 0.5, one 1
    result = paired_bootstrap(outcomes("00"), outcomes("01"), replicates=4000, level=0.4)
    assert (result.low, result.high) == (0.5, 0.5)
    wide = paired_bootstrap(outcomes("00"), outcomes("01"), replicates=4000, level=0.9)
    assert (wide.low, wide.high) == (0.0, 1.0)


def test_the_p_value_of_three_samples_is_that_of_all_draws():
    differences = [0.0, 1.0, 1.0]
    mean = sum(differences) / 3
    draws = [sum(each) / 3 for each in itertools.product(differences, repeat=3)]
    exact = sum(abs(each - mean) >= mean - 1e-12 for each in draws) / len(draws)
    result = paired_bootstrap(outcomes("000"), outcomes("011"), replicates=20_000)
    assert result.p_value == pytest.approx(exact, abs=0.01)


def test_the_interval_tends_to_the_normal_one():
    first, second = make_pair(5000)
    difference = second - first
    error = float(difference.std()) / math.sqrt(5000)
    result = paired_bootstrap(first, second, replicates=4000)
    assert result.low == pytest.approx(float(difference.mean()) - 1.96 * error, abs=0.15 * error)
    assert result.high == pytest.approx(float(difference.mean()) + 1.96 * error, abs=0.15 * error)


def test_equal_models_have_no_difference_and_a_p_value_of_1():
    first, _ = make_pair()
    result = paired_bootstrap(first, first, replicates=100)
    assert (result.difference, result.low, result.high, result.p_value) == (0, 0, 0, 1)


def test_a_clear_difference_has_the_smallest_p_value_that_so_many_draws_can_give():
    result = paired_bootstrap(torch.zeros(200), torch.ones(200), replicates=99)
    assert result.p_value == pytest.approx(0.01)


def test_p_values_of_equally_good_models_are_below_5_percent_about_5_times_in_100():
    generator = torch.Generator().manual_seed(0)
    draws = torch.rand(2, 200, 150, generator=generator) < 0.7
    below = sum(
        paired_bootstrap(first.double(), second.double(), replicates=400).p_value < 0.05
        for first, second in zip(*draws, strict=True)
    )
    assert 2 <= below <= 20  # 10 expected of 200, sd 3.1


def test_swapped_models_mirror_the_difference():
    first, second = make_pair()
    one, other = (paired_bootstrap(*pair) for pair in ((first, second), (second, first)))
    assert other.difference == pytest.approx(-one.difference)
    assert other.low == pytest.approx(-one.high)
    assert other.p_value == one.p_value


def test_samples_of_one_group_are_drawn_together():
    # 5 videos of 40 samples that all share an outcome: there are 5 facts, not 200
    first, second = make_pair(5)
    groups = torch.arange(5).repeat_interleave(40)
    together = paired_bootstrap(first[groups], second[groups], groups, replicates=500)
    alone = paired_bootstrap(first, second, replicates=500)
    assert together[1:4] == pytest.approx(alone[1:4])
    assert (together.samples, together.groups) == (200, 5)


def test_the_names_and_the_order_of_groups_do_not_matter():
    first, second = make_pair(60)
    groups = torch.arange(60) // 3
    named = 1000 - 7 * groups  # the same groups, sorted the other way round
    plain, other = (paired_bootstrap(first, second, each) for each in (groups, named))
    assert other.low == pytest.approx(plain.low, abs=0.02)
    assert other.groups == plain.groups == 20


@pytest.mark.parametrize(
    ("first", "second", "options", "message"),
    [
        ("", "", {}, "at least one"),
        ("10", "100", {}, "same N samples"),
        ("10", "10", {"groups": torch.zeros(3, dtype=torch.int64)}, "same N samples"),
        ("10", "10", {"level": 1.0}, "between 0 and 1"),
        ("10", "10", {"replicates": 0}, "at least one draw"),
    ],
)
def test_what_can_not_be_compared_is_refused(first, second, options, message):
    with pytest.raises(ValueError, match=message):
        paired_bootstrap(outcomes(first), outcomes(second), **options)


def test_outcomes_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="not finite"):
        paired_bootstrap(torch.tensor([math.nan]), torch.tensor([1.0]))
