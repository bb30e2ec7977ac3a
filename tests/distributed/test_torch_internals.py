"""`engine.torch_internals` is the only place that uses undocumented entry points of torch, and torch still has them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from support.networks import Counting
from support.rank_cases import batches_of, loss_of, net, sharded
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from gradalign.engine import torch_internals as internals

PACKAGE = Path(internals.__file__).parents[1]
# What the module takes from torch's engines beside their documented methods.
NAMES = {
    "find_unused_parameters",
    "static_graph",
    "gradient_as_bucket_view",
    "mixed_precision",
    "buffer_hook",
    "_comm_hooks",
    "_get_ddp_logging_data",
    "parameters_to_ignore",
    "_join_config",
    "will_sync_module_buffers",
    "_sync_buffers",
    "require_forward_param_sync",
    "require_backward_grad_sync",
    "_check_reducer_finalized",
    "reset_iter_state",
    "fsdp_params",
    "unsharded_accumulated_grad",
    "_unsharded_param",
    "_get_fsdp_state",
    "_is_root",
    "_partial_reduce_output",
    "reduce_grads",
    "all_reduce_grads",
    "_state_ctx",
    "is_last_backward",
    "mp_policy",
    "_fsdp_param_groups",
    "_local_tensor",
    "compute_local_shape_and_global_offset",
}


def used(path):
    """Which of the names a file takes from an object, or asks for by `getattr` and `hasattr`."""
    text = path.read_text()
    return {name for name in NAMES if re.search(rf'\.{name}\b|attr\([^)]*"{name}"|import .*\b{name}\b', text)}


def test_undocumented_names_stand_in_one_module():
    assert used(Path(internals.__file__)) == NAMES
    others = {path.name: used(path) for path in PACKAGE.rglob("*.py") if path.name != "torch_internals.py"}
    assert {name: found for name, found in others.items() if found} == {}


class Buffered(Counting):
    """A layer, and a buffer that every forward moves."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 3)


def options_of_the_wrapper(rank):
    def wrapped(**options):
        return DistributedDataParallel(net(Buffered), **options)

    plain = wrapped()
    for read, options in (
        (internals.cannot_skip_a_reduction, {"find_unused_parameters": True}),
        (internals.cannot_skip_a_reduction, {"static_graph": True}),
        (internals.shares_gradient_memory, {"gradient_as_bucket_view": True}),
    ):
        assert not read(plain)
        assert read(wrapped(**options))
    assert not internals.has_mixed_precision(plain)
    casting = wrapped()
    casting.mixed_precision = object()  # one that works needs a GPU
    assert internals.has_mixed_precision(casting)
    hooked = wrapped()
    hooked._register_buffer_comm_hook(None, lambda *_: None)
    assert (internals.has_buffer_hook(plain), internals.has_buffer_hook(hooked)) == (False, True)
    registered = [wrapped() for _ in range(5)]
    assert [internals.comm_hook(model) for model in registered] == [None] * 5
    registered[1].register_comm_hook(None, default_hooks.allreduce_hook)
    registered[2].register_comm_hook(None, default_hooks.fp16_compress_hook)
    registered[3]._register_builtin_comm_hook(dist.BuiltinCommHookType.ALLREDUCE)
    registered[4]._register_builtin_comm_hook(dist.BuiltinCommHookType.FP16_COMPRESS)
    names = [None, None, "fp16_compress_hook", None, "BuiltinCommHookType.FP16_COMPRESS"]
    assert [internals.comm_hook(model) for model in registered] == names
    model = net(Buffered)
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, ["linear.bias"])
    assert internals.ignored_names(DistributedDataParallel(model)) == {"linear.bias"}
    assert not internals.inside_join(plain)
    with dist.algorithms.Join([plain], throw_on_early_termination=True):
        assert internals.inside_join(plain)
        plain(batches_of(rank)[0][0]).sum().backward()


def passes_of_the_wrapper(rank):
    """Which passes average gradients, and which broadcast buffers."""
    model, (x, _) = DistributedDataParallel(net(Buffered)), batches_of(rank)[0]
    for gradients in (False, True):
        for buffers in (False, True):
            model.module.count.fill_(10.0 * rank)
            with internals.averaging([model], gradients, buffers):
                model(x).sum().backward()
            same = [torch.equal(*both) for both in zip(*gathered(model), strict=True)]
            assert same == [gradients, buffers]
            model.zero_grad()
    internals.broadcast_in_forward(model, True)
    assert internals.broadcasts_in_forward(model)
    internals.broadcast_in_forward(model, False)
    assert not internals.broadcasts_in_forward(model)
    for flag, expected in ((False, 10.0 * rank), (True, 0.0)):
        model.module.count.fill_(10.0 * rank)
        internals.broadcast_in_forward(model, flag)
        internals.broadcast_buffers(model)
        assert float(model.module.count) == expected


def gathered(model):
    """The weight's gradient and the buffer, of each of two ranks."""
    own = (model.module.linear.weight.grad, model.module.count)
    several = [[torch.empty_like(t) for _ in range(2)] for t in own]
    for out, t in zip(several, own, strict=True):
        dist.all_gather(out, t)
    return list(zip(*several, strict=True))


def passes_of_shards(rank):
    """What is held back, what is reduced, what is gathered, and how it is let go."""
    model, batch = sharded(net()), batches_of(rank)[0]
    modules = [model, model.head]
    assert internals.can_begin_anew()
    assert internals.is_root(model) is None
    assert internals.gathered_params(modules) == []
    loss = loss_of(model)(batch)
    assert (internals.is_root(model), internals.is_root(model.head)) == (True, False)
    shapes = {p.shape for p in internals.gathered_params(modules)}
    assert shapes >= {(6, 5), (6, 6), (1,), (3, 6)}
    loss.backward()
    expected = model.encode.weight.grad.full_tensor()
    model.zero_grad()

    model.set_requires_gradient_sync(False)
    model.set_is_last_backward(False)
    with internals.reducing(modules):
        loss_of(model)(batch).backward()
    assert torch.equal(model.encode.weight.grad.full_tensor(), expected)
    assert not internals.holds_back(modules)
    model.zero_grad()
    loss_of(model)(batch).backward()
    assert model.encode.weight.grad is None
    assert internals.holds_back(modules)
    internals.begin_anew(modules)
    assert not internals.holds_back(modules)
    model.set_requires_gradient_sync(True)
    model.set_is_last_backward(True)
    loss_of(model)(batch).backward()
    assert torch.equal(model.encode.weight.grad.full_tensor(), expected)


def held_back_on_a_hybrid_mesh(rank):
    """What is scattered and not yet added over replicas."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    model = sharded(net(), mesh)
    model.set_requires_all_reduce(False)
    loss_of(model)(batches_of(rank)[0]).backward()
    assert internals.holds_back([model])
    internals.begin_anew([model, model.head])
    assert not internals.holds_back([model])
    with internals.reducing([model, model.head]):
        loss_of(model)(batches_of(rank)[0]).backward()
    assert not internals.holds_back([model])
    assert model.encode.weight.grad is not None


def shards_of_a_parameter(rank):
    from torch.distributed.fsdp import MixedPrecisionPolicy

    model = sharded(net(), mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
    assert internals.forward_dtypes([model]) == {torch.bfloat16}
    reducing = sharded(net(), mp_policy=MixedPrecisionPolicy(reduce_dtype=torch.bfloat16))
    assert (internals.forward_dtypes([reducing]), internals.reduce_dtypes([reducing])) == (set(), {torch.bfloat16})
    assert internals.reduce_dtypes([model]) == set()
    assert internals.forward_dtypes([sharded(net())]) == set()
    weight = model.encode.weight
    local = internals.held(weight)
    assert local is internals.held(weight)
    version = local._version
    local.add_(0)
    assert local._version == version + 1
    assert internals.local_slices(weight) == (slice(3 * rank, 3 * rank + 3), slice(0, 5))
    assert torch.equal(weight.full_tensor()[internals.local_slices(weight)], local)


@pytest.mark.parametrize(
    "check", [options_of_the_wrapper, passes_of_the_wrapper, passes_of_shards, shards_of_a_parameter]
)
def test_torch_has_the_entry_points(two_ranks, check):
    two_ranks.run(check)


def test_torch_has_those_of_a_hybrid_mesh(four_ranks):
    four_ranks.run(held_back_on_a_hybrid_mesh)
