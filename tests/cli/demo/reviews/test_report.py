from support.demo_records import SETTINGS, record

from gradalign.cli.demo.reviews.report import conditions, rows, title


def test_the_rows_of_the_table():
    r = record(0.01, 0.02, 0.03)
    cells = {name: cells for name, *cells in rows(r["summary"], r["peak_memory_bytes"])}
    assert cells["optimizer steps"] == ["2", "3", "2"]
    assert cells["test accuracy"] == ["60.0% +/- 0.0", "65.0% +/- 0.0", "62.0% +/- 2.5"]
    assert cells["gradalign minus this"] == ["+2.00 +/- 2.48", "-3.00 +/- 2.48", ""]
    assert cells["alignment dot"] == ["1 -> 2", "", "1 -> 3"]
    assert cells["alignment cosine"] == ["0.5 -> 0.2", "", "0.5 -> 0.3"]
    assert cells["seconds per step"] == ["0.2000", "", "0.3000"]
    assert cells["cost factor"] == ["1", "", "1.25"]
    assert cells["peak memory"] == ["1 MiB", "", "3 MiB"]


def test_one_seed_has_no_interval_in_the_table():
    cells = {name: cells for name, *cells in rows(record(0.01)["summary"], {"adamw": 0, "gradalign": 0})}
    assert cells["test accuracy"] == ["60.0%", "65.0%", "61.0%"]


def test_label_noise_and_too_few_seeds_are_reported():
    start = "One seed, too few for an interval; 100 texts for training and 50 for the test"
    assert conditions(record(0.01)).startswith(start)
    assert "(30% wrong labels)" in title(SETTINGS | {"label_noise": 0.3})
