"""benchmarks/bench_kernels.py and bench_optim.py, on small sizes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gradalign.backends import native

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def load(scripts):
    return scripts(BENCHMARKS)


def measured(script, path, capsys):
    assert script.main(["--device", "cpu", "--quick", "--seconds", "0.1", "--json", str(path)]) == 0
    found = json.loads(path.read_text())
    assert {"date", "machine", "versions", "commit", "device"} <= set(found)
    rows = found["rows"]
    assert all(r["of_add"] > 0 and r["rounds"] >= 5 for r in rows)
    yardsticks = [r for r in rows if r["op"] == "y += a x"]
    assert [r["of_add"] for r in yardsticks] == [1] * len(yardsticks)
    return rows, capsys.readouterr().out


OPS = {"norm_dot", "perturb_", "restore_", "swap_", "accumulate_", "combine_", "adamw_step_", "sgd_step_", "lamb_step_"}


@pytest.mark.slow
def test_every_op_is_measured_on_every_backend(load, tmp_path, capsys):
    rows, _ = measured(load("bench_kernels"), tmp_path / "kernels.json", capsys)
    backends = {"reference"} | ({"native"} if native.why_unavailable() is None else set())
    for backend in backends:
        for dtype in ("float32", "bfloat16"):
            assert {r["op"] for r in rows if r["variant"] == backend and r["dtype"] == dtype} >= OPS
    assert {r["variant"] for r in rows if r["op"] == "perturb_"} >= backends | {"foreach", "compiled"}
    size = 4 * 2**20
    perturb = next(r for r in rows if r["op"] == "perturb_" and r["variant"] == "reference")
    assert perturb["gigabytes_per_second"] == pytest.approx(4 * size / perturb["microseconds"] / 1e3)


@pytest.mark.slow
@pytest.mark.skipif(native.why_unavailable() is not None, reason="the steps measured are native's")
def test_every_step_is_measured_beside_torch(load, tmp_path, capsys):
    script = load("bench_optim")
    rows, printed = measured(script, tmp_path / "optim.json", capsys)
    for op in (script.UPDATE, script.CLIP_STEP):
        assert {r["variant"] for r in rows if r["op"] == op} >= {"native", "torch fused", "torch foreach"}
    assert {r["variant"] for r in rows if r["op"] == script.COMPOSITE} >= {"native", "torch foreach", "torch compiled"}
    ours, torchs = (
        next(r["microseconds"] for r in rows if r["op"] == script.CLIP_STEP and r["variant"] == variant)
        for variant in ("native", "torch fused")
    )
    assert f"{'one tensor of 1M':<18} {script.CLIP_STEP:<30} {'torch fused':<20} {torchs / ours:.2f}" in printed


def test_bert_is_bert(load):
    shapes = load("workloads").bert(1024, 24)
    assert len(shapes) == 391
    assert sum(a * (b[0] if b else 1) for a, *b in shapes) == 335_141_888
    assert len(load("workloads").bert(768, 12)) == 199
