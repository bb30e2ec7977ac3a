"""The norms of LAMB that are taken before its step."""

from __future__ import annotations

import pytest
import torch

from gradalign.backends import dispatch
from gradalign.backends.signatures import LAMBOptions
from gradalign.optim import trust_ratio
from gradalign.optim.batch import Batch

OPTIONS = LAMBOptions(beta1=0.9, beta2=0.99, eps=1e-3)
FACTOR, DECAY, STEPS = 0.5, 0.3, 4.0


def batch_of(numel, dtype, master):
    """One parameter with moments, in the middle of a run."""
    generator = torch.Generator().manual_seed(0)
    p, g, m = (torch.randn(numel, generator=generator).to(dtype) for _ in range(3))
    v = torch.rand(numel, generator=generator).to(dtype)
    state = {"exp_avg": [m], "exp_avg_sq": [v], "step": [torch.tensor(STEPS)]}
    if master:
        state["master"] = [p.float() + 1e-4]
    return Batch({}, [p], [g], state, [p], [g])


def expected(batch):
    """[theta . theta, u . u] from the equation, in float64; moments are rounded as they will be stored."""
    theta = (batch.states("master") or batch.params)[0].double()
    m, v = batch.states("exp_avg")[0], batch.states("exp_avg_sq")[0]
    g = batch.grads[0].double() * FACTOR
    m = (OPTIONS.beta1 * m.double() + (1 - OPTIONS.beta1) * g).to(m.dtype).double()
    v = (OPTIONS.beta2 * v.double() + (1 - OPTIONS.beta2) * g**2).to(v.dtype).double()
    t = STEPS + 1
    r = (m / (1 - OPTIONS.beta1**t)) / ((v / (1 - OPTIONS.beta2**t)).sqrt() + OPTIONS.eps)
    return torch.stack((theta @ theta, (r + DECAY * theta) @ (r + DECAY * theta)))


# More than one piece; the pieces of a shard may be empty.
@pytest.mark.parametrize("numel", [0, 7, 300_001])
@pytest.mark.parametrize(("dtype", "master"), [(torch.float32, False), (torch.bfloat16, False), (torch.bfloat16, True)])
def test_squares_are_those_of_the_step_to_come_and_nothing_is_written(backend, numel, dtype, master):
    batch = batch_of(numel, dtype, master)
    tensors = [*batch.params, *batch.grads, *(t for ts in batch.state.values() for t in ts)]
    before = [t.clone() for t in tensors]
    module = dispatch.backend(backend, "cpu", batch.dtypes | {torch.float32})
    factor, decay = (torch.tensor(value, dtype=torch.float64) for value in (FACTOR, DECAY))
    found = trust_ratio.squares(batch, module, factor, decay, OPTIONS)
    # bfloat16 moments: the last bit of a few falls the other way in float32.
    tolerance = 1e-3 if dtype == torch.bfloat16 and not master else 1e-4
    assert torch.allclose(found, expected(batch), rtol=tolerance)
    assert all(map(torch.equal, tensors, before))


def test_the_ratio_is_one_where_a_norm_is_zero():
    squares = torch.tensor([[4.0, 1.0], [0.0, 1.0], [1.0, 0.0], [torch.nan, 1.0]], dtype=torch.float64)
    assert trust_ratio.ratios(squares).tolist() == [2.0, 1.0, 1.0, 1.0]
