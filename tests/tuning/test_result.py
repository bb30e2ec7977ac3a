import json
from dataclasses import replace

import pytest
import torch
from support.tuning_cases import two_layers

import gradalign
from gradalign.tuning.result import StartingWeight


def test_the_text_names_reference_radii_and_weights():
    result = gradalign.tune(*two_layers(dtype=torch.float32))
    text = str(result)
    assert result.table() in text
    assert "against double backward: 163 parameters, float32" in text
    assert f"radius={result.radius['central']:g} for central differences" in text
    assert "cosine       0.03" in text
    sentences = " ".join(text.split())
    assert "one labelled source with shortcuts of its own: 1 with variance" in sentences
    assert "Elsewhere plain training was best" in sentences
    assert "-1.7 +- 3.4; -1.0 +- 2.5" in text
    assert [line.split()[0] for line in result.table().splitlines()[1:]] == [f"{p.radius:g}" for p in result.curve]


def test_a_starting_weight_with_a_large_term_comes_with_a_lower_one():
    result = gradalign.tune(*two_layers())
    dot, variance, cosine = (StartingWeight(0.03, share, "") for share in (0.5, 1.82, 0.6))
    assert str(replace(result, weights={"dot": dot, "variance": variance, "cosine": cosine})).endswith(
        "begin lower, with a term of about 20%,\nfor example with weight 0.003 for variance, 0.01 for cosine."
    )
    assert "begin lower" not in str(replace(result, weights={"dot": dot}))


def test_an_extrapolation_says_how_accurate_it_is():
    text = str(gradalign.tune(*two_layers(), reference="richardson"))
    assert "against a Richardson extrapolation: 163 parameters, float64" in text
    assert "The extrapolation is accurate to about " in text


def test_the_displacement_is_that_of_the_recommended_radii_and_json_has_everything():
    result = gradalign.tune(*two_layers(), radii=(0.01, 0.1))
    assert result.displacement["forward"] == result.at(result.radius["forward"])
    assert json.loads(json.dumps(result.as_dict()))["curve"][0]["radius"] == 0.01


def test_a_radius_that_was_not_measured_is_refused():
    with pytest.raises(ValueError, match=r"radius: expected one of \[0.01\]; got 0.5"):
        gradalign.tune(*two_layers(), radii=(0.01,)).at(0.5)


def test_a_sweep_without_a_good_radius_and_a_minimum_at_its_end_are_reported():
    assert "no radius of the sweep is good; try others" in str(gradalign.tune(*two_layers(), radii=(30.0, 100.0)))
    assert "the smallest error is at an end of the sweep" in str(gradalign.tune(*two_layers(), radii=(0.8, 1.5)))


def test_radii_at_which_nothing_is_finite_are_no_good_ones():
    model, _, batches = two_layers()
    result = gradalign.tune(model, lambda b: model(b[0]).exp().mean(), batches, radii=(1e4, 1e6))
    text = str(result)
    assert text.count("no radius of the sweep is good; try others") == 2
    assert text.count("nan%") == 6  # of both radii, and of the recommended one once more
    assert "<-" not in text
    assert "not known" not in text  # the default radius is good


def test_a_size_that_is_nan_is_not_known():
    result = gradalign.tune(*two_layers(), radii=(0.01,))
    weights = {"variance": StartingWeight(0.03, float("nan"), "0; 1")}
    assert "variance     0.03        not known  0; 1" in str(replace(result, weights=weights))
