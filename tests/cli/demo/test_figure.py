import matplotlib.image
import pytest

from gradalign.cli.demo.figure import figure, mean_curve, num_seeds


def test_the_mean_curve_keeps_the_last_point_of_a_shorter_one():
    assert mean_curve([[(1.0, 10.0), (2.0, 20.0)], [(3.0, 30.0)]]) == [(2.0, 20.0), (2.5, 25.0)]


def test_a_figure_that_fails_leaves_no_file(tmp_path):
    with pytest.raises(ValueError, match="half"), figure(tmp_path / "a.png", "a$\\x$", (2, 2), 1, 1):
        raise ValueError("half")
    assert list(tmp_path.iterdir()) == []


def test_a_figure_is_written_when_it_is_drawn(tmp_path):
    with figure(tmp_path / "a.png", "a title", (4, 3), 1, 2) as (left, right):
        left.plot([1, 2])
        right.plot([2, 1])
    assert matplotlib.image.imread(tmp_path / "a.png").shape[:2] == (450, 600)


def test_seeds_in_words():
    assert (num_seeds(1), num_seeds(5)) == ("one seed", "5 seeds")
