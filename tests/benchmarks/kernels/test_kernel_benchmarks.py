"""`benchmarks.kernels.ops` and `benchmarks.kernels.optimizers` on small sizes."""

from __future__ import annotations

import re

import pytest

from benchmarks import record
from benchmarks.kernels import ops, optimizers
from benchmarks.kernels.measurement import FIELDS, compiled
from benchmarks.kernels.workloads import bert
from gradalign.backends import native


def measured(script, path, capsys):
    assert script.main(["--device", "cpu", "--quick", "--seconds", "0.1", "--json", str(path)]) == 0
    rows = record.read_result(path, FIELDS)["rows"]
    assert all(r["of_add"] > 0 and r["rounds"] >= 5 for r in rows)
    yardsticks = [r for r in rows if r["op"] == "y += a x"]
    assert [r["of_add"] for r in yardsticks] == [1] * len(yardsticks)
    return rows, re.sub(" +", " ", capsys.readouterr().out)


OPS = {"norm_dot", "perturb_", "restore_", "swap_", "accumulate_", "combine_", "adamw_step_", "sgd_step_", "lamb_step_"}


@pytest.mark.slow
def test_every_op_is_measured_on_every_backend(tmp_path, capsys):
    rows, printed = measured(ops, tmp_path / "ops.json", capsys)
    backends = {"reference"} | ({"native"} if native.why_unavailable() is None else set())
    for backend in backends:
        for dtype in ("float32", "bfloat16"):
            found = {r["op"] for r in rows if r["method"] == backend and r["workload"]["dtype"] == dtype}
            assert found >= OPS
    assert {r["method"] for r in rows if r["op"] == "perturb_"} >= backends | {"foreach", "compiled"}
    size = 4 * 2**20
    perturb = next(r for r in rows if r["op"] == "perturb_" and r["method"] == "reference")
    assert perturb["gigabytes_per_second"] == pytest.approx(4 * size / perturb["microseconds"] / 1e3)
    assert f"| perturb_ | reference | {perturb['microseconds']:.0f} |" in printed


@pytest.mark.slow
@pytest.mark.skipif(native.why_unavailable() is not None, reason="the steps measured are native's")
def test_every_step_is_measured_beside_torch(tmp_path, capsys):
    rows, printed = measured(optimizers, tmp_path / "optimizers.json", capsys)
    for op in (optimizers.UPDATE, optimizers.CLIP_STEP):
        assert {r["method"] for r in rows if r["op"] == op} >= {"native", "torch fused", "torch foreach"}
    composite = {r["method"] for r in rows if r["op"] == optimizers.COMPOSITE}
    assert composite >= {"native", "torch foreach", "torch compiled"}
    ours, torchs = (
        next(r["microseconds"] for r in rows if r["op"] == optimizers.CLIP_STEP and r["method"] == method)
        for method in ("native", "torch fused")
    )
    assert f"| one tensor of 1M | {optimizers.CLIP_STEP} | torch fused | {torchs / ours:.2f} |" in printed


def test_what_does_not_compile_is_left_out_with_the_reason(monkeypatch, capsys):
    def refuse():
        raise RuntimeError("no compiler\nand more")

    monkeypatch.setattr("torch.compile", lambda call, dynamic: call)
    assert compiled(refuse) is None
    assert capsys.readouterr().err == "torch.compile: RuntimeError: no compiler\n"


def test_bert_is_bert():
    shapes = bert(1024, 24)
    assert len(shapes) == 391
    assert sum(a * (b[0] if b else 1) for a, *b in shapes) == 335_141_888
    assert len(bert(768, 12)) == 199
