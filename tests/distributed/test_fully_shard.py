"""`fully_shard` and `parallelize_module`: all work on local shards, with the gradient of one process."""

from __future__ import annotations

import datetime
import gc
import time

import pytest
import torch
import torch.distributed as dist
from support.rank_cases import (
    FORMS,
    K,
    Net,
    batches_of,
    cases,
    compare_with_one_process,
    difference,
    error,
    full,
    gradients,
    joint_batches,
    loss_of,
    net,
    run_steps,
    sharded,
)
from support.rank_collectives import Collectives
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleOutput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from gradalign import GradAlign
from gradalign.engine.step import RADIUS, RADIUS_LOW_PRECISION
from gradalign.optim import SGD

TOLERANCE = 1e-10


def compared(rank, num, estimator, one_by_one, options, forms=FORMS[1:3]):
    return [
        compare_with_one_process(rank, num, lambda m: sharded(m, **options), case, one_by_one=one_by_one)
        for case in cases(estimator, forms)
    ]


# The others differ in where gradients are, or in the order of passes, and in nothing that a rank sees.
@pytest.mark.parametrize(
    "estimator",
    ["split m=2", "prefix", "prefix block=2", "leave_one_out", "leave_one_out host", "symmetric", "momentum"],
)
def test_every_estimator_and_objective_equals_one_process(two_ranks, estimator):
    for errors in two_ranks.run(compared, 2, estimator, False, {}, FORMS if estimator == "split m=2" else FORMS[1:3]):
        assert errors
        assert max(errors) < TOLERANCE


@pytest.mark.parametrize("estimator", ["split m=2", "momentum"])
def test_accumulate_equals_one_process(two_ranks, estimator):
    assert max(map(max, two_ranks.run(compared, 2, estimator, True, {}))) < TOLERANCE


@pytest.mark.parametrize("options", [{"reshard_after_forward": False}, {"offload_policy": CPUOffloadPolicy(False)}])
def test_gathered_copies_that_stay_and_offloaded_shards(two_ranks, options):
    assert max(map(max, two_ranks.run(compared, 2, "split m=2", False, options))) < TOLERANCE


def sources_compared(rank):
    return [
        compare_with_one_process(rank, 2, sharded, options, sources=("a", "b", "b", "b"))
        for estimator in ("leave_one_out", "split m=2")
        for options in cases(estimator, FORMS[2:3])
    ]


def test_sources_equal_one_process(two_ranks):
    assert max(map(max, two_ranks.run(sources_compared))) < TOLERANCE


def hybrid(rank, estimator):
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    return compared(rank, 4, estimator, False, {"mesh": mesh})


def test_empty_shards(four_ranks):
    """One parameter has one row and another three, for four ranks."""
    assert max(map(max, four_ranks.run(compared, 4, "split", False, {}))) < TOLERANCE


@pytest.mark.parametrize("estimator", ["split", "leave_one_out"])
def test_a_hybrid_mesh(four_ranks, estimator):
    assert max(map(max, four_ranks.run(hybrid, estimator))) < TOLERANCE


class Sequence(nn.Module):
    """Two linear layers, a norm on parts of a sequence and a head that every rank has."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.entry, self.norm = nn.Linear(5, 6), nn.Identity(), nn.LayerNorm(6)
        self.first, self.second, self.head = nn.Linear(6, 8), nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x):
        x = self.norm(self.entry(torch.tanh(self.embed(x).unsqueeze(1).repeat(1, 4, 1))))
        return self.head(self.second(torch.tanh(self.first(x))).mean(1))


def tensor_parallel(model, mesh):
    """Both layers are split, and the sequence between entry and first layer."""
    return parallelize_module(
        model,
        mesh,
        {
            "entry": PrepareModuleOutput(
                output_layouts=Replicate(), desired_output_layouts=Shard(1), use_local_output=False
            ),
            "norm": SequenceParallel(),
            "first": ColwiseParallel(input_layouts=Shard(1)),
            "second": RowwiseParallel(output_layouts=Replicate()),
        },
    )


def tensor_parallel_compared(rank, estimator):
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("tp",))
    return [
        compare_with_one_process(
            rank, 2, lambda m: tensor_parallel(m, mesh), case, kind=Sequence, batches=batches_of(0)
        )
        for case in cases(estimator, FORMS[1:3])
    ]


@pytest.mark.parametrize("estimator", ["split", "leave_one_out"])
def test_tensor_and_sequence_parallelism(two_ranks, estimator):
    assert max(map(max, two_ranks.run(tensor_parallel_compared, estimator))) < TOLERANCE


def two_dimensions(rank):
    """Shards of shards: data parallel ranks have their own micro-batches, tensor parallel ones the same."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))

    def distribute(model):
        return fully_shard(tensor_parallel(model, mesh["tp"]), mesh=mesh["dp"])

    errors = []
    for case in cases("split m=2", FORMS[1:3]):
        alone, model = net(Sequence), distribute(net(Sequence))
        expected = run_steps(GradAlign(alone, 0.05, **case), loss_of(alone), joint_batches(2), alone)
        own = batches_of(mesh["dp"].get_local_rank())
        errors.append(difference(run_steps(GradAlign(model, 0.05, **case), loss_of(model), own, model), expected))
    return errors


def test_fully_shard_over_tensor_parallelism(four_ranks):
    assert max(map(max, four_ranks.run(two_dimensions))) < TOLERANCE


def kept_copies(rank, how):
    """Gathered copies that the user keeps, or that an earlier forward left."""
    model, alone = net(), net()
    expected = run_steps(GradAlign(alone, 0.05), loss_of(alone), joint_batches(2), alone)
    model = sharded(model, reshard_after_forward=how != "never after forward")
    if how == "never after backward":
        model.set_reshard_after_backward(False)
    aligner = GradAlign(model, 0.05)
    if how == "earlier forward":
        with torch.no_grad():
            model(batches_of(rank)[0][0])
    if how == "unsharded":
        model.unshard()
        model.head.unshard()
    errors = [difference(run_steps(aligner, loss_of(model), batches_of(rank), model), expected) for _ in range(2)]
    if how == "made from gathered ones":
        model.unshard()
        aligner = GradAlign(model, 0.05)
        errors.append(difference(run_steps(aligner, loss_of(model), batches_of(rank), model), expected))
    return errors


@pytest.mark.parametrize(
    "how",
    ["never after forward", "never after backward", "earlier forward", "unsharded", "made from gathered ones"],
)
def test_no_gathered_copy_hides_a_displacement(two_ranks, how):
    assert max(map(max, two_ranks.run(kept_copies, how))) < TOLERANCE


def held_back(rank, objective):
    """A user's set_requires_gradient_sync(False) around all but the last micro-batch."""
    alone = net()
    expected = run_steps(GradAlign(alone, 0.05, objective=objective), loss_of(alone), joint_batches(2), alone)
    model = sharded(net())
    aligner = GradAlign(model, 0.05, objective=objective)
    with aligner.accumulate(K) as step:
        for i, batch in enumerate(batches_of(rank)):
            model.set_requires_gradient_sync(i + 1 == K)
            model.set_is_last_backward(i + 1 == K)
            step.backward(lambda batch=batch: loss_of(model)(batch))
            (group,) = model._get_fsdp_state()._fsdp_param_groups
            assert group.reduce_grads == (i + 1 == K)
    error = difference((gradients(model), aligner.stats.as_dict()), expected)
    model.zero_grad()
    model.set_requires_gradient_sync(False)
    loss_of(model)(batches_of(rank)[0]).backward()
    with pytest.raises(ValueError, match="got some that fully_shard holds back"):
        aligner.backward(loss_of(model), batches_of(rank))
    return error


@pytest.mark.parametrize("objective", ["dot", "variance"])
def test_reductions_are_never_held_back(two_ranks, objective):
    assert max(two_ranks.run(held_back, objective)) < TOLERANCE


class Fragile(Net):
    """Raises where it is told to, in the middle of a forward or of a backward."""

    fails: str | None = None

    def forward(self, x):
        x = torch.tanh(self.encode(x))
        if self.fails == "forward":
            raise KeyError("planted")
        x = torch.tanh(self.middle(x))
        if self.fails == "backward":
            x.register_hook(self.fail)
        return self.head(self.scale * torch.tanh(self.frozen(torch.tanh(self.tied(x)))))

    def fail(self, grad):
        raise KeyError("planted")


def failing(rank, where, displaced):
    alone = net(Fragile)
    expected = run_steps(GradAlign(alone, 0.05), loss_of(alone), joint_batches(2), alone)
    model = sharded(net(Fragile))
    before = [full(p).clone() for p in model.parameters()]
    aligner = GradAlign(model, 0.05)

    def loss_fn(batch):
        model.fails = where if aligner.displaced == displaced else None
        return loss_of(model)(batch)

    with pytest.raises(KeyError, match="planted"):
        aligner.backward(loss_fn, batches_of(rank))
    assert all(hasattr(p, "placements") for p in model.parameters())
    assert all(torch.equal(full(p), b) for p, b in zip(model.parameters(), before, strict=True))
    assert all(p.grad is None for p in model.parameters())
    model.fails = None
    return [difference(run_steps(aligner, loss_of(model), batches_of(rank), model), expected) for _ in range(2)]


@pytest.mark.parametrize("displaced", [False, True])
@pytest.mark.parametrize("where", ["forward", "backward"])
def test_a_step_after_an_exception_on_all_ranks_is_right(two_ranks, where, displaced):
    assert max(map(max, two_ranks.run(failing, where, displaced))) < TOLERANCE


def failing_on_one_rank(rank, displaced):
    """Rank 1 raises; the mesh's group waits for 3 s."""
    group = dist.new_group(timeout=datetime.timedelta(seconds=3))
    # The name keeps DTensor's caches from taking this mesh, and its group, for the one that other tests use.
    model = sharded(net(), DeviceMesh.from_group(group, "cpu", mesh_dim_names=("short",)))
    before = [p.to_local().clone() for p in model.parameters()]
    aligner = GradAlign(model, 0.05)

    def loss_fn(batch):
        if rank == 1 and aligner.displaced == displaced:
            raise KeyError("planted")
        return loss_of(model)(batch)

    start, caught = time.monotonic(), None
    try:
        aligner.backward(loss_fn, batches_of(rank))
    except (KeyError, RuntimeError) as error:
        caught = type(error)
    assert all(torch.equal(p.to_local(), b) for p, b in zip(model.parameters(), before, strict=True))
    assert all(p.grad is None for p in model.parameters())
    return caught, time.monotonic() - start


@pytest.mark.parametrize("displaced", [False, True])
def test_an_exception_on_one_rank_leaves_every_rank_at_theta(two_ranks, displaced):
    (other, seconds), (own, _) = two_ranks.run(failing_on_one_rank, displaced)
    assert own is KeyError
    assert issubclass(other, RuntimeError)
    assert seconds < 20


def weightless_and_plain(rank, num):
    results = []
    for aligned in (False, True):
        model = sharded(net())
        if aligned:
            GradAlign(model, 0.0).backward(loss_of(model), batches_of(rank))
        else:
            for batch in batches_of(rank):
                (loss_of(model)(batch) / K).backward()
        results.append(gradients(model)[0])
    assert torch.equal(*results)


def test_weight_zero_is_bit_identical_to_the_plain_loop(two_ranks):
    two_ranks.run(weightless_and_plain, 2)


def mixed_precision(rank):
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=True)
    model = sharded(net().float(), mp_policy=policy)
    batches = [(x.float(), y) for x, y in batches_of(rank)]
    aligner = GradAlign(model, 0.05)
    aligner.backward(loss_of(model), batches)
    plain = sharded(net().float())
    other = GradAlign(plain, 0.05)
    other.backward(loss_of(plain), batches)
    return aligner.stats.radius, other.stats.radius, aligner.stats.loss.dtype


def test_a_policy_of_16_bits_has_the_radius_of_16_bits(two_ranks):
    assert two_ranks.run(mixed_precision) == [(RADIUS_LOW_PRECISION, RADIUS, torch.bfloat16)] * 2


def term_reduced_in(dtype, rank, **options):
    """The term of a float32 model whose gradients are cast to a dtype before they are reduced, and the radius."""
    model = sharded(net().float(), mp_policy=MixedPrecisionPolicy(reduce_dtype=dtype))
    batches, found = [(x.float(), y) for x, y in batches_of(rank)], []
    for weight in (0.0, 0.05):
        aligner = GradAlign(model, weight, objective="variance", **options)
        aligner.backward(loss_of(model), batches)
        found.append(gradients(model)[0])
        model.zero_grad()
    return found[0] - found[1], aligner.stats.radius


def reduced_in_16_bits(rank):
    """The radius, and the errors of the term at it and at the one of 32 bits."""
    expected, _ = term_reduced_in(None, rank, radius=RADIUS, difference="central")
    default, radius = term_reduced_in(torch.bfloat16, rank)
    shorter, _ = term_reduced_in(torch.bfloat16, rank, radius=RADIUS)
    return radius, error(default, expected), error(shorter, expected)


def test_gradients_that_are_reduced_in_16_bits_have_the_radius_of_16_bits(two_ranks):
    """The rounding of the reduction is divided by the radius."""
    for radius, default, shorter in two_ranks.run(reduced_in_16_bits):
        assert radius == RADIUS_LOW_PRECISION
        assert default < shorter / 2


def overflow(rank, weight, kind):
    model = sharded(net().float())
    optimizer = kind(model.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    before = [full(p).clone() for p in model.parameters()]
    batches = [
        (x.float() * (float("inf") if rank == 1 and i == 0 else 1), y) for i, (x, y) in enumerate(batches_of(rank))
    ]
    GradAlign(model, weight, scaler=scaler).backward(loss_of(model), batches)
    scaler.step(optimizer)
    scaler.update()
    same = all(torch.equal(full(p), b) for p, b in zip(model.parameters(), before, strict=True))
    return same, scaler.get_scale()


@pytest.mark.parametrize("weight", [0.0, 0.05])
@pytest.mark.parametrize("kind", [torch.optim.SGD, SGD])
def test_an_overflow_on_one_rank_makes_all_skip_the_step(two_ranks, weight, kind):
    assert two_ranks.run(overflow, weight, kind) == [(True, 2.0)] * 2


def counts(rank, options, k):
    """Reductions of scalars in a step that is not the first, and gathers and scatters against the plain loop's."""
    model = sharded(net())
    batches, found = batches_of(rank, k), []
    for weight in (0.0, 0.05):
        aligner = GradAlign(model, weight, **options)
        run_steps(aligner, loss_of(model), batches, model)
        model.zero_grad()
        with Collectives() as collectives:
            aligner.backward(loss_of(model), batches)
        found.append(collectives.counts)
    plain, aligned = found
    return plain, aligned


@pytest.mark.parametrize(("objective", "expected"), [("dot", 3), ("norm", 3), ("variance", 5)])
def test_collectives_of_a_step(two_ranks, objective, expected):
    k, m = 8, 2
    for plain, aligned in two_ranks.run(counts, {"objective": objective}, k):
        assert plain.pop("allreduce_") == 1
        assert aligned.pop("allreduce_") == expected
        assert set(plain) == set(aligned)
        assert len(plain) == 2
        assert {name: aligned[name] * k for name in plain} == {name: plain[name] * (k + m) for name in plain}


class Wide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(512, 512, bias=False) for _ in range(4))

    def forward(self, x):
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x


def live_bytes(model):
    """Bytes of all large tensors that Python, or a `.grad`, holds now."""
    gc.collect()
    held = {}
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    for t in [*gc.get_objects(), *(getattr(g, "_local_tensor", g) for g in grads)]:
        if type(t) in (torch.Tensor, nn.Parameter):
            held[t.untyped_storage()._cdata] = t.untyped_storage().nbytes()
    return sum(size for size in held.values() if size >= 2**18)  # of parameters


def memory(rank, options):
    """Peaks of a plain and an aligned step, in copies of this rank's shards, looked at in every backward."""
    peaks = []
    for weight in (0.0, 0.05):
        model = Wide()
        for layer in model.layers:
            fully_shard(layer)
        fully_shard(model)
        aligner, seen = GradAlign(model, weight, check_replay=False, **options), []

        def loss_fn(x, model=model, seen=seen):
            loss = model(x).square().mean()
            loss.register_hook(lambda _: seen.append(live_bytes(model)))
            return loss

        start = live_bytes(model)
        aligner.backward(loss_fn, list(torch.randn(4, 2, 512)))
        shards = sum(p.to_local().nbytes for p in model.parameters())
        peaks.append((max(seen) - start) / shards)
    return peaks[1] - peaks[0]


def test_lean_split_takes_one_more_copy_of_the_shards(two_ranks):
    for extra in two_ranks.run(memory, {}):
        assert 0.9 < extra < 1.1


def refusals(rank):
    batches = batches_of(rank)
    model = net()
    fully_shard(model, ignored_params={model.scale})
    with pytest.raises(ValueError, match="got some that fully_shard was told to ignore"):
        GradAlign(model, 0.1)
    model = sharded(net())
    model(batches[0][0])
    with pytest.raises(ValueError, match="got one inside it; give the root"):
        GradAlign(model.head, 0.1).backward(loss_of(model), batches)
    model = sharded(net())
    with pytest.raises(ValueError, match="which calls autograd by itself"):
        GradAlign(model, 0.1, estimator="exact").backward(loss_of(model), batches)
    model = net()
    aligner = GradAlign(model, 0.1)
    sharded(model)
    with pytest.raises(TypeError, match="got a DTensor that was not one when GradAlign"):
        aligner.backward(loss_of(model), batches)
    model, other = sharded(net()), sharded(net())
    with pytest.raises(ValueError, match="got one that also trains"):
        GradAlign(model, 0.1).backward(lambda b: loss_of(model)(b) + loss_of(other)(b), batches)


def test_refusals_say_what_to_do(two_ranks):
    two_ranks.run(refusals)


def older_torch(rank):
    """One whose fully_shard cannot go on after an exception; DTensors without it need nothing of the kind."""
    from torch.distributed.fsdp import FSDPModule

    kept = FSDPModule.reset_iter_state
    del FSDPModule.reset_iter_state
    try:
        with pytest.raises(
            ValueError, match=r"reset_iter_state, torch 2.13\); got .*; update torch, or use Distributed"
        ):
            GradAlign(sharded(net()), 0.1)
        mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("tp",))
        GradAlign(tensor_parallel(net(Sequence), mesh), 0.1)
        SGD(sharded(net()).parameters(), 0.1)
    finally:
        FSDPModule.reset_iter_state = kept


def test_a_torch_that_cannot_begin_anew_is_refused(two_ranks):
    two_ranks.run(older_torch)


def differing(rank):
    """A parameter that every rank of a tensor parallel plan has, with another gradient on each."""
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("tp",))
    model = tensor_parallel(net(Sequence), mesh)
    with pytest.raises(RuntimeError, match="got 6 that differ between them|got [0-9]+ that differ between them"):
        GradAlign(model, 0.05).backward(loss_of(model), batches_of(rank))


def test_copies_that_drift_apart_are_refused(two_ranks):
    two_ranks.run(differing)
