import pytest

from gradalign.tuning.curve import Point, is_usable, recommended_radius, smallest_error

NAN = float("nan")


def curve(forward, central):
    radii = (3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
    return tuple(Point(r, f, c, 1.0, 1.0, 1.0) for r, f, c in zip(radii, forward, central, strict=True))


@pytest.mark.parametrize(
    ("forward", "central", "radii"),
    [
        ((0.007, 0.02, 0.07, 0.2, 0.59), (5e-5, 1e-4, 2e-3, 0.014, 0.14), (0.01, 0.1)),  # MiniLM in float32
        ((0.5, 0.17, 0.09, 0.23, 0.62), (0.3, 0.09, 0.04, 0.024, 0.16), (0.03, 0.1)),  # MiniLM under bf16 autocast
        ((0.9, 0.8, 0.7, 0.6, 0.5), (0.5, 0.6, 0.7, 0.8, NAN), (0.3, 0.03)),  # the smallest error at an end
        ((NAN, 0.1, 0.2, 0.02, 0.6), (0.01, 0.06, 0.01, 0.01, 0.01), (0.1, 0.003)),  # a large error ends the range
    ],
)
def test_the_recommended_radius_is_the_largest_next_to_the_smallest_error(forward, central, radii):
    points = curve(forward, central)
    assert (recommended_radius(points, "forward"), recommended_radius(points, "central")) == radii


def test_an_error_is_usable_up_to_a_half():
    assert [is_usable(error) for error in (0.0, 0.5, 0.51, float("inf"), NAN)] == [True, True, False, False, False]


def test_the_smallest_error_is_never_nan():
    points = curve((NAN, 0.5, NAN, 0.4, 0.6), (NAN, NAN, NAN, NAN, 0.1))
    assert (smallest_error(points, "forward").radius, smallest_error(points, "central").radius) == (0.1, 0.3)
