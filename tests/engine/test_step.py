"""What a step knows once it runs: the radius it displaces by, and how much of the displacement the dtype could represent."""

from __future__ import annotations

import pytest
import torch
from support.begun_step import Bowl, begun_step
from support.networks import state
from torch import nn

from gradalign import GradAlign


def test_the_radius_follows_dtype_and_autocast():
    def radius(dtype=torch.float32, autocast=None, **options):
        model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)).to(dtype)
        aligner = GradAlign(model, 0.1, **options)
        batches = list(torch.randn(4, 5, 3, dtype=dtype))

        def loss_fn(x):
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast == "inside"):
                return model(x).float().square().mean()

        with torch.autocast("cpu", torch.bfloat16, enabled=autocast == "outside"):
            aligner.backward(loss_fn, batches)
        return aligner.stats.radius

    assert radius() == 0.01
    assert radius(torch.float64) == 0.01
    assert radius(torch.bfloat16) == 0.03
    assert radius(autocast="inside") == 0.03
    assert radius(autocast="outside") == 0.03
    assert radius(torch.bfloat16, radius=0.2) == 0.2


def test_displacement_cosine_is_reported_for_low_precision():
    torch.manual_seed(0)
    model = nn.Linear(300, 300).to(torch.bfloat16)
    aligner = GradAlign(model, 0.1, radius=0.003)
    batches = list(torch.randn(4, 16, 300, dtype=torch.bfloat16))
    before = state(model)
    aligner.backward(lambda x: model(x).float().square().mean(), batches)
    assert 0 < float(aligner.stats.displacement_cosine) < 0.95
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def vector(*values):
    return [torch.tensor(values, dtype=torch.float64)]


def test_the_displacement_has_the_radius_asked_for_along_the_mean_of_the_reference():
    """Stored gradients are halved by the 1/k of the plain loop: (3, 4) stands for (6, 8), of length 10."""
    step = begun_step(Bowl([1.0, 2.0]), radius=0.5)
    reference = vector(3.0, 4.0)
    aim = step.aim(step.space.norm_dot(reference), step.mean_scale(1))
    assert float(aim.norm) == pytest.approx(10)
    assert float(aim.eps) == pytest.approx(0.5 / 10)
    eps, q = step.displace(aim, reference)
    torch.testing.assert_close(step.space.params[0].detach(), vector(1.0 + 0.3, 2.0 + 0.4)[0])
    assert float(eps) == pytest.approx(0.05)
    assert float(q) == pytest.approx(1 / 0.5)  # the gradients' difference is divided by the length


def test_without_normalisation_the_difference_is_divided_by_eps():
    step = begun_step(Bowl([1.0, 2.0]), radius=0.5, normalize="none")
    reference = vector(3.0, 4.0)
    _, q = step.displace(step.aim(step.space.norm_dot(reference), step.mean_scale(1)), reference)
    assert float(q) == pytest.approx(2 / 0.05)


@pytest.mark.parametrize("reference", [(0.0, 0.0), (float("inf"), 1.0), (float("nan"), 1.0)])
def test_a_reference_without_a_direction_displaces_nothing(reference):
    step = begun_step(Bowl([1.0, 2.0]))
    reference = vector(*reference)
    aim = step.aim(step.space.norm_dot(reference), step.mean_scale(1))
    assert (float(aim.scale_x), float(aim.scale_y), float(aim.eps)) == (0, 0, 0)


@pytest.mark.parametrize(("normalize", "factor"), [("none", 1.0), ("direction", 1.0), ("gradient", 10 / 2)])
def test_the_term_is_subtracted_with_the_weight_and_rescaled_to_the_gradient(normalize, factor):
    step = begun_step(Bowl([0.0, 0.0]), normalize=normalize)  # the weight is 0.5
    term = step.new_term()
    term.unit, term.vector = step.space.scalar(4.0), vector(0.0, 0.5)
    step.close(vector(6.0, 8.0), term)
    assert float(step.stats([torch.tensor(1.0)], {}).term_norm) == pytest.approx(2 * factor)
    assert step.space.params[0].grad.tolist() == pytest.approx([6.0, 8.0 - 0.5 * factor * 2])
