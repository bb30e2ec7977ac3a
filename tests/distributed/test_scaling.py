"""The formulas of docs/scaling.md are what a step does: its collectives are counted on 2, on 4 and on one of 1,024 ranks."""

from __future__ import annotations

import re
from pathlib import Path

import torch
import torch.distributed as dist
from support.rank_cases import same_on_all_ranks
from support.rank_collectives import Collectives, averaged_by
from support.ranks import Group
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import gradalign
from gradalign import GradAlign
from gradalign.engine import buckets

PAGE = Path(__file__).parents[2] / "docs" / "scaling.md"
K, M = 8, 2
FEWER = (4, 1)  # on pretended ranks
BYTES = buckets.BYTES
WIDTH = 1024  # rows of every parameter: a whole number on every rank


def formulas():
    names: dict = {}
    for block in re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL):
        exec(block, names)
    return names


class Even(nn.Module):
    """Every parameter divides among the ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, WIDTH), nn.Linear(4, WIDTH, bias=False)

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)).view(len(x), -1, 4)).square().mean()


def average(_, gradients):
    """What the wrapper does by itself; a pretended group can do no more than this."""
    mean = gradients / dist.get_world_size()
    dist.all_reduce(mean)
    future = torch.futures.Future()
    future.set_result(mean)
    return future


def options_of(estimator, objective):
    if estimator == "plain":
        return {"weight": 0.0}
    return {"weight": 0.05, "estimator": estimator, "objective": objective, "radius": 0.01}


def counted(model, options, k=K):
    """The collectives of a step that is not the first."""
    aligner, batches = GradAlign(model, **options), list(torch.randn(k, 2, 2))
    aligner.backward(model, batches)
    model.zero_grad()
    with Collectives() as collectives:
        aligner.backward(model, batches)
    return dict(collectives.counts), dict(collectives.elements)


def all_counts(rank, cases, pretended=None):
    """(estimator, objective) -> the collectives under DistributedDataParallel and under fully_shard."""
    if pretended is not None:
        from torch.testing._internal.distributed.fake_pg import FakeStore

        dist.destroy_process_group()
        dist.init_process_group("fake", rank=0, world_size=pretended, store=FakeStore())
    found, k = [], K if pretended is None else FEWER[0]
    for case in cases:
        model = DistributedDataParallel(Even())
        with averaged_by(average, model):
            with_ddp = counted(model, options_of(*case), k)
        model = Even()
        fully_shard(model.second)
        found.append((with_ddp, counted(fully_shard(model), options_of(*case), k)))
    if pretended is not None:
        dist.destroy_process_group()
    return found


def check(found, cases=None, k=K, m=M):
    """Counts and elements against the formulas."""
    page, n, n_root = formulas(), WIDTH * 7, WIDTH * 3
    for case, ((_, averaged), (calls, elements)) in zip(cases or page["PASSES"], found, strict=True):
        passes = page["PASSES"][case](k, m)
        assert averaged["allreduce_"] // n == page["AVERAGES"][case](k, m), case
        assert averaged["allreduce_"] % n <= 8, case
        assert calls["allreduce_"] == page["SUMS"][case](k, m), case
        assert elements["allreduce_"] <= 8 * calls["allreduce_"], case
        assert elements["_allgather_base_"] == page["gathered"](passes, n, n_root), case
        assert elements["_reduce_scatter_base_"] == page["scattered"](passes, n), case


def counted_of_every_rank(rank, cases):
    """Calls and elements with scope="rank", where not all fits into a buffer."""
    found = []
    buckets.BYTES = SMALL
    for case in cases:
        model = DistributedDataParallel(Even())
        with averaged_by(average, model):
            calls, elements = counted(model, {**options_of(*case), "scope": "rank"})
        found.append((calls["allreduce_"], elements["allreduce_"]))
        assert same_on_all_ranks(*(p.grad for p in model.parameters()))
    buckets.BYTES = BYTES
    return found


SMALL = 4 * 3 * WIDTH  # bytes: the first layer fits, the second is larger


def test_averages_of_scope_rank(two_ranks):
    page = formulas()
    cases, sizes = list(page["OF_EVERY_RANK"]), [4 * p.numel() for p in Even().parameters()]
    assert page["BUCKET"] == BYTES
    for found in two_ranks.run(counted_of_every_rank, cases):
        for case, (calls, elements) in zip(cases, found, strict=True):
            wrapper, own = page["OF_EVERY_RANK"][case]
            assert page["all_reduces"](sizes, SMALL) == 2
            assert calls == wrapper + own * 2 + 1, case  # 1: means of a few numbers
            assert elements // (WIDTH * 7) == wrapper + own == 2, case


def counted_steps(rank, names):
    """Reductions of a step of an optimizer on shards."""
    found = []
    for name in names:
        model = Even()
        fully_shard(model.second)
        optimizer = getattr(gradalign.optim, name)(fully_shard(model).parameters(), lr=1e-3, max_grad_norm=1.0)
        model(torch.randn(2, 2)).backward()
        with Collectives() as collectives:
            optimizer.step()
        found.append((dict(collectives.counts), collectives.reads))
    return found


def test_steps_of_optimizers_on_shards(two_ranks):
    expected = formulas()["OF_AN_OPTIMIZER"]
    for found in two_ranks.run(counted_steps, list(expected)):
        assert found == [({"allreduce_": num}, 0) for num in expected.values()]


def reads(model, objective):
    """Numbers that are read back to the host in the fourth step, in which nothing is inspected."""
    aligner, batches = GradAlign(model, 0.05, objective=objective), list(torch.randn(K, 2, 2))
    for _ in range(3):
        aligner.backward(model, batches)
        model.zero_grad()
    with Collectives() as seen:
        aligner.backward(model, batches)
    return seen.reads


def all_reads(rank):
    found = []
    for objective in ("dot", "variance"):
        model = Even()
        fully_shard(model.second)
        found.append([reads(m, objective) for m in (Even(), DistributedDataParallel(Even()), fully_shard(model))])
    return found


def test_reductions_are_no_reads(two_ranks):
    for found in two_ranks.run(all_reads):
        for alone, with_ddp, on_shards in found:
            assert with_ddp == on_shards == alone


def test_two_ranks(two_ranks):
    """Every estimator with one objective; on the pretended ranks they all are counted."""
    cases = list({case[0]: case for case in formulas()["PASSES"]}.values())
    for found in two_ranks.run(all_counts, cases):
        check(found, cases)


def test_four_ranks(four_ranks):
    cases = list(formulas()["PASSES"])[:3]
    for found in four_ranks.run(all_counts, cases):
        check(found, cases)


def test_one_of_1024_ranks():
    alone = Group(1)
    try:
        (found,) = alone.run(all_counts, list(formulas()["PASSES"]), 1024, seconds=180)
    finally:
        alone.stop()
    check(found, None, *FEWER)


def test_the_plan_of_the_page_is_what_its_formulas_give():
    """Numbers in the prose are those that the block asserts."""
    text, names = PAGE.read_text(), formulas()
    for number in (names["state"], names["backup"]):
        assert f"{number:.2f} GB" in text
    for number in (names["per_pass"], names["plain"], names["aligned"]):
        assert f"{number:,.0f} GB" in text
    assert f"{round(names['tokens'], -2):,.0f} tokens" in text
    assert "for {:.0f} s, aligned\n  for {:.0f} s".format(*names["compute"]) in text
