import math

import pytest

from vmp.config.defaults import get_cfg
from vmp.solver import build_schedule
from vmp.solver.schedule import cosine, steps_with_relative_lrs, with_warmup


def schedule_of(**solver):
    cfg = get_cfg()
    for key, value in solver.items():
        cfg.SOLVER[key] = value
    return build_schedule(cfg)


def test_the_cosine_goes_from_base_over_the_middle_to_end_and_stays_there():
    rate = cosine(0.1, 0.02, 10)
    values = [rate(epoch) for epoch in (0, 2.5, 5, 10, 12)]
    quarter = 0.02 + 0.08 * (1 + math.sqrt(0.5)) / 2
    assert values == pytest.approx([0.1, quarter, 0.06, 0.02, 0.02], abs=1e-15)


def test_a_step_begins_at_its_own_epoch():
    rate = steps_with_relative_lrs(0.005, [0, 11, 14], [1.0, 0.1, 0.01])
    epochs = (0, 10.999, 11, 13.5, 14, 25, 99)
    expected = [0.005, 0.005, 0.0005, 0.0005, 0.00005, 0.00005, 0.00005]
    assert [rate(epoch) for epoch in epochs] == pytest.approx(expected)


def test_warm_up_ends_at_what_the_schedule_has_there():
    plain = cosine(0.1, 0.0, 196)
    rate = with_warmup(plain, 0.01, 34)  # PySlowFast's SLOWFAST_8x8_R50 from scratch
    assert rate(0) == 0.01
    assert rate(17) == pytest.approx((0.01 + plain(34)) / 2)
    assert rate(34 - 1e-9) == pytest.approx(rate(34), abs=1e-9)
    assert rate(34) == plain(34) < 0.1
    assert rate(100) == plain(100)


def test_warm_up_over_a_step_goes_to_the_rate_after_it():
    rate = with_warmup(steps_with_relative_lrs(1.0, [0, 2], [1.0, 0.5]), 0.0, 2)
    assert [rate(epoch) for epoch in (0, 1, 2)] == [0.0, 0.25, 0.5]


def test_the_config_names_the_schedule():
    rate = schedule_of(LR_POLICY="steps_with_relative_lrs", BASE_LR=0.005, STEPS=[0, 11, 14])
    assert rate(12) == pytest.approx(0.0005)
    rate = schedule_of(BASE_LR=0.4, MAX_EPOCH=8, WARMUP_EPOCHS=2.0, COSINE_END_LR=0.1)
    assert rate(1) == pytest.approx(cosine(0.4, 0.1, 8)(2) / 2)
    assert rate(8) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("solver", "message"),
    [
        ({"LR_POLICY": "cosin"}, "cosin'; there are: cosine, steps_with_relative_lrs"),
        ({"LR_POLICY": "steps_with_relative_lrs", "STEPS": [0, 1]}, "2 SOLVER.STEPS and 3"),
        ({"LR_POLICY": "steps_with_relative_lrs", "STEPS": [1, 2, 3]}, "start at 0"),
        ({"LR_POLICY": "steps_with_relative_lrs", "STEPS": [0, 2, 2]}, "increase"),
        ({"LR_POLICY": "steps_with_relative_lrs", "STEPS": [], "LRS": []}, "start at 0"),
        ({"WARMUP_EPOCHS": -1.0}, "WARMUP_EPOCHS is -1"),
        ({"MAX_EPOCH": 0}, "MAX_EPOCH"),
    ],
)
def test_what_makes_no_schedule_is_refused(solver, message):
    with pytest.raises(ValueError, match=message):
        schedule_of(**solver)
