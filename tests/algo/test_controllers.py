"""The KL coefficient over a run."""

from __future__ import annotations

import json
import math

import pytest

from rlhf_ray.algo.controllers import AdaptiveKL, FixedKL


def test_a_fixed_coefficient_never_moves() -> None:
    controller = FixedKL(coef=0.05)
    assert controller.updated(observed_kl=100.0, num_samples=256).coef == 0.05


@pytest.mark.parametrize(
    ("observed_kl", "factor"),
    [(6.0, 1.0), (6.6, 1.01), (5.4, 0.99), (60.0, 1.02), (0.0, 0.98), (-3.0, 0.98)],
)
def test_one_update_multiplies_by_the_clipped_proportional_error(observed_kl: float, factor: float) -> None:
    # 1000 of 10000 responses: a tenth of the error, which is cut to a fifth on either side.
    controller = AdaptiveKL(target=6.0, horizon=10_000, coef=0.2)
    updated = controller.updated(observed_kl=observed_kl, num_samples=1000)
    assert updated.coef == pytest.approx(0.2 * factor)
    assert controller.coef == 0.2


def test_the_controller_brings_a_simulated_policy_to_the_target() -> None:
    controller = AdaptiveKL(target=6.0, horizon=2000, coef=0.01)
    for _ in range(300):
        controller = controller.updated(observed_kl=1.0 / controller.coef, num_samples=256)
    assert 1.0 / controller.coef == pytest.approx(6.0, rel=1e-3)


@pytest.mark.parametrize("controller", [FixedKL(0.05), AdaptiveKL(6.0, 10_000, 0.2)])
def test_a_restored_controller_is_the_one_that_was_saved(controller: FixedKL | AdaptiveKL) -> None:
    state = json.loads(json.dumps(controller.state()))
    assert type(controller).from_state(state) == controller


@pytest.mark.parametrize("observed_kl", [math.nan, math.inf])
def test_a_kl_that_is_not_finite_is_an_error(observed_kl: float) -> None:
    with pytest.raises(ValueError, match="observed_kl"):
        AdaptiveKL(6.0, 10_000, 0.2).updated(observed_kl=observed_kl, num_samples=1)


def test_a_step_that_could_bring_the_coefficient_to_zero_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"num_samples \(500\)"):
        AdaptiveKL(6.0, 100, 0.2).updated(observed_kl=0.0, num_samples=500)


def test_settings_out_of_range_are_errors() -> None:
    with pytest.raises(ValueError, match=r"coef \(-0.1\)"):
        FixedKL(-0.1)
    with pytest.raises(ValueError, match=r"target \(0\)"):
        AdaptiveKL(0, 10_000, 0.2)
    with pytest.raises(ValueError, match=r"horizon \(0\)"):
        AdaptiveKL(6.0, 0, 0.2)


def test_a_raised_coefficient_is_never_above_the_limit_nor_below_what_it_was() -> None:
    assert FixedKL(0.2).raised(factor=2.0, limit=0.3).coef == pytest.approx(0.3)
    assert FixedKL(0.2).raised(factor=2.0, limit=1.0).coef == pytest.approx(0.4)
    assert FixedKL(0.5).raised(factor=2.0, limit=0.3) == FixedKL(0.5)


def test_a_raised_adaptive_controller_aims_for_as_much_less() -> None:
    raised = AdaptiveKL(target=6.0, horizon=100, coef=0.2).raised(factor=1.5, limit=1.0)
    assert (raised.coef, raised.target) == (pytest.approx(0.3), pytest.approx(4.0))
    assert AdaptiveKL(target=6.0, horizon=100, coef=0.0).raised(factor=2.0, limit=1.0).target == 6.0
