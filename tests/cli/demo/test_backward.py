import pytest
from support.toy_demo import toy_model

from gradalign.cli.demo import backward
from gradalign.cli.demo.backward import aligned_backward, ramp


@pytest.mark.parametrize(("step", "warmup", "factor"), [(0, 4, 0.25), (3, 4, 1.0), (9, 4, 1.0), (0, 0, 1.0)])
def test_the_ramp_is_linear_and_stays_at_1(step, warmup, factor):
    assert ramp(step, warmup) == factor


def test_the_weight_of_the_term_follows_the_ramp(monkeypatch):
    seen = {}

    class Aligner:
        def __init__(self, model, weight):
            seen["weight"] = weight

        backward = None

    monkeypatch.setattr(backward.gradalign, "GradAlign", Aligner)
    aligned_backward(0.8, 4)(toy_model())
    assert [seen["weight"](step) for step in (0, 1, 3, 10)] == pytest.approx([0.2, 0.4, 0.8, 0.8])
