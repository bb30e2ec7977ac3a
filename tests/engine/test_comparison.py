"""A micro-batch compared with a reference on L(c) = h / 2 ||theta - c||^2, whose Hessian is h I: the term is exact."""

from __future__ import annotations

import pytest
import torch
from support.begun_step import Bowl, begun_step

from gradalign.engine.comparison import compare, displaced_passes
from gradalign.engine.space import ParamSpace
from gradalign.engine.term import Term

THETA, CENTRE, CURVATURE = [1.0, 2.0], [1.0, -2.0], 3.0  # g = 3 (theta - c) = (0, 12), stored as half of it


def compared(reference, omega=0.5, **options):
    """(model, step, term, what `keep` was given)."""
    model = Bowl(THETA, CURVATURE)
    step = begun_step(model, radius=0.25, **options)
    term, kept = Term(step.space), []
    given = [torch.tensor(reference, dtype=torch.float64)]
    loss = compare(
        step,
        lambda: model(CENTRE),
        given,
        step.mean_scale(1),
        omega,
        term,
        lambda g, sums: kept.append((g[0].clone(), sums.clone())),
    )
    assert float(loss) == CURVATURE / 2 * 16
    return model, step, term.unit * term.vector[0], kept


@pytest.mark.parametrize("difference", ["forward", "central"])
@pytest.mark.parametrize(("normalize", "expected"), [("direction", [0.6, 0.8]), ("none", [2 * 6.0, 2 * 8.0])])
def test_the_term_is_omega_s_hessian_times_direction(normalize, expected, difference):
    """dot: v is the mean of the reference, (6, 8); direction: s w = v / ||v||; none: s w = 2 v."""
    model, step, term, _ = compared([3.0, 4.0], normalize=normalize, difference=difference)
    torch.testing.assert_close(term, 0.5 * CURVATURE * torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0)
    assert step.passes.count == (3 if difference == "central" else 2)
    assert model.theta.tolist() == THETA
    assert float(model.num_forwards) == 1  # as after the base pass


def test_variance_displaces_against_the_own_gradient():
    """v = a - g = (6, 8) - (0, 12)."""
    _, _, term, _ = compared([3.0, 4.0], objective="variance", normalize="none")
    expected = 0.5 * CURVATURE * 2 * torch.tensor([6.0, -4.0], dtype=torch.float64)
    torch.testing.assert_close(term, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("objective", "products"), [("dot", [25.0, 0.0, 0.0]), ("variance", [25.0, 24.0, 36.0])])
def test_the_own_gradient_and_the_inner_products_can_be_kept(objective, products):
    """Those with the own gradient only where the displacement contains it."""
    _, _, _, [(g, sums)] = compared([3.0, 4.0], objective=objective)
    assert g.tolist() == [0.0, 6.0]
    assert sums.tolist() == products


def test_an_own_gradient_that_the_displacement_does_not_contain_is_not_read_for_it(monkeypatch):
    """Two copies of the parameters less to read in every comparison."""
    given = []
    perturb = ParamSpace.perturb

    def spy(self, backups, x, scale, y, *args, **kwargs):
        given.append(y)
        return perturb(self, backups, x, scale, y, *args, **kwargs)

    monkeypatch.setattr(ParamSpace, "perturb", spy)
    compared([3.0, 4.0])
    compared([3.0, 4.0], objective="variance")
    assert given[0] is None
    assert given[1] is not None


def test_a_reference_of_zero_gives_no_term():
    _, _, term, _ = compared([0.0, 0.0])
    assert term.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("difference", ["forward", "central"])
def test_displaced_passes_run_in_order_on_one_side_or_both(difference):
    model = Bowl(THETA)
    step = begun_step(model, radius=0.25, difference=difference)
    seen, term = [], Term(step.space)

    def closure_of(name):
        def closure():
            seen.append((name, model.theta.tolist(), float(model.num_forwards)))
            return model(CENTRE)

        return closure

    starts = [step.passes.replay_state() for _ in "ab"]
    reference = [torch.tensor([0.0, 2.0], dtype=torch.float64)]
    step.displace(step.aim(step.space.norm_dot(reference), step.mean_scale(1)), reference)
    displaced_passes(step, [closure_of(name) for name in "ab"], starts, term, step.space.scalar(1.0))
    up, down = [1.0, 2.25], [1.0, 1.75]
    sides = [up, down] if difference == "central" else [up]
    assert seen == [(name, side, 0.0) for side in sides for name in "ab"]
