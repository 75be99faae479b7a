"""Gao et al.'s curves: planted weights are found again, and gold turns where the derivative is 0."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rlhf_ray.hacking.turning import FORMS, Fit, Form, certain_fall, fit_curve, share_lost, turning_point


@pytest.mark.parametrize("form", FORMS)
def test_a_curve_is_found_again_from_its_points(form: Form) -> None:
    planted = Fit(form, alpha=0.5, beta=0.2, error=0.0)
    distances = np.linspace(0.3, 4, 9)
    fit = fit_curve(form, distances, np.array([planted.gain(d) for d in distances]))
    assert (fit.alpha, fit.beta) == (pytest.approx(0.5), pytest.approx(0.2))
    assert fit.error == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_gold_turns_where_the_curve_is_flat(form: Form) -> None:
    fit = Fit(form, alpha=0.5, beta=0.2, error=0.0)
    assert all(fit.gain(fit.peak) > fit.gain(fit.peak * factor) for factor in (0.99, 1.01))


def test_the_peak_is_that_of_the_equations() -> None:
    assert Fit("best_of_n", 0.6, 0.1, 0.0).peak == pytest.approx(3.0)
    assert Fit("reinforcement", 0.4, 0.2, 0.0).peak == pytest.approx(math.e)


@pytest.mark.parametrize("form", FORMS)
def test_gold_that_only_rises_never_turns_and_one_that_only_falls_turns_at_once(form: Form) -> None:
    assert Fit(form, 0.5, 0.0, 0.0).peak == math.inf
    assert Fit(form, -0.5, 0.0, 0.0).peak == 0.0


@pytest.mark.parametrize("form", FORMS)
def test_the_turn_is_told_in_nats_and_in_gold(form: Form) -> None:
    planted = Fit(form, 0.3, 0.15, 0.0)
    kls = [0.0, 0.1, 0.5, 1.0, 2.0, 4.0, 9.0]
    turn = turning_point(kls, [0.6 + planted.gain(math.sqrt(kl)) for kl in kls])
    assert turn is not None
    assert turn.fit.form == form
    assert turn.kl == pytest.approx(planted.peak**2)
    assert turn.gold == pytest.approx(0.6 + planted.gain(planted.peak))


def test_too_few_points_say_nothing() -> None:
    assert turning_point([0.0, 1.0, 2.0, 3.0], [0.1, 0.2, 0.3, 0.2]) is None
    assert turning_point([0.0, -0.1, 0.0, 1.0, 2.0, 3.0], [0.1, 0.1, 0.1, 0.2, 0.3, 0.2]) is None
    with pytest.raises(ValueError, match="must match"):
        turning_point([0.0], [])
    with pytest.raises(ValueError, match="two or more points"):
        fit_curve("best_of_n", np.array([0.0, 1.0]), np.array([0.0, 1.0]))


def test_the_share_that_is_lost_is_of_the_gain() -> None:
    assert share_lost(0.6, 0.8, 0.78) == pytest.approx(0.1)
    assert share_lost(0.6, 0.8, 0.9) == 0.0
    assert share_lost(0.6, 0.6, 0.4) == 0.0


def test_a_fall_is_certain_only_beyond_chance_and_by_the_same_prompts() -> None:
    random = np.random.default_rng(0)
    best = {f"p{n}": float(random.random()) for n in range(100)}
    noisy = {name: value + float(random.normal()) * 0.3 for name, value in best.items()}
    fallen = {name: value - 0.1 + float(random.normal()) * 0.1 for name, value in best.items()}
    assert certain_fall(best, noisy) == 0.0
    assert 0.05 < certain_fall(best, fallen) < 0.1
    assert certain_fall(best, {"other": 0.0}) == 0.0
