from __future__ import annotations

from support.rows import PLACE

from benchmarks.tables import as_markdown, place


def test_columns_line_up_text_on_the_left_and_numbers_on_the_right():
    assert as_markdown(("op", "us"), [["perturb_", "10"], ["swap_", "1000"]]).splitlines() == [
        "| op       |   us |",
        "| -------- | ---: |",
        "| perturb_ |   10 |",
        "| swap_    | 1000 |",
    ]
    assert as_markdown(("a", "b", "c"), [["x", "yyyy", "z"]], num_text=2).splitlines()[1:] == [
        "| --- | ---- | --: |",
        "| x   | yyyy |   z |",
    ]


def test_a_place_is_the_gpu_where_there_is_one():
    assert place(PLACE) == "a CPU, 2 threads, torch 2.13.0, 2026-01-02"
    on_gpu = PLACE | {"machine": PLACE["machine"] | {"gpus": [{"name": "a GPU"}]}}
    assert place(on_gpu) == "a GPU, torch 2.13.0, 2026-01-02"
