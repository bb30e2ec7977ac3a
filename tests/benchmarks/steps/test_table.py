from __future__ import annotations

from support.rows import HEADLINE, failed, result, row, split

from benchmarks.steps import table


def test_a_row_stands_beside_plain():
    plain, ours = table.lines([row(), split()], HEADLINE.name)
    assert (plain.extra_bytes, plain.extra_copies) == (0, 0.0)
    assert (ours.extra_bytes, ours.extra_copies, ours.pass_factor) == (40_000_000, 1.0, 1.25)
    assert ours.family == "gradalign"


def test_without_plain_or_memory_there_is_no_extra():
    assert table.lines([split()], HEADLINE.name)[0].extra_copies is None
    assert table.lines([row(peak_bytes=None), split()], HEADLINE.name)[1].extra_bytes is None


def test_the_table_has_every_quantity_and_the_failures_with_their_reasons():
    text = table.markdown(result(row(), split(), failed("double backward"), left=[("w", "m")]))
    assert text.startswith("## minilm-64, k=8, batch 16 (10M parameters; texts)")
    assert (
        "| split m=k/4 |         1.25 | 1.24 to 1.27 |       128 |       +40 MB |      +1.0 |     10 |             1.25 |"
        in text
    )
    assert "- double backward: not measured: out of memory: no" in text
    assert text.endswith("1 rows of the suite are not measured yet.")


def test_copies_of_a_small_model_are_not_told_from_noise():
    small = {"parameter_bytes": 17_000_000}
    text = table.of_workload([row(**small), split(**small)], HEADLINE.name)
    assert "+40 MB" in text
    assert "+2.4" not in text


def test_notes_are_below_the_table():
    text = table.of_workload([row(), row("double backward", ratio=4.9)], HEADLINE.name)
    assert "- double backward: compares every micro-batch with every other" in text


def test_a_work_where_everything_failed():
    assert "Nothing was measured.\n\n- plain: not measured: why" in table.of_workload(
        [failed("plain", "why")], HEADLINE.name
    )


def test_gpu_columns_are_there_for_rows_of_a_gpu():
    text = table.of_workload([row(host_seconds=0.0123, launches=400, synchronisations=0)], HEADLINE.name)
    assert "host ms | launches | synchronisations" in text
    assert "12.3 |      400 |                0 |" in text


def test_provenance_names_each_machine_and_version_once():
    text = table.provenance(result(row(), split(date="2026-01-03T00:00:00+00:00"), row("prefix", commit="def")))
    assert text.count("a CPU, 2 cores, 2 threads, AVX2") == 1
    assert "gradalign 0.1.0, torch 2.13.0\n" in text
    assert "2026-01-02T03:04:05+00:00 to 2026-01-03T00:00:00+00:00, commit abc, def, seed 0" in text
    assert table.provenance(result()) == "No rows."
