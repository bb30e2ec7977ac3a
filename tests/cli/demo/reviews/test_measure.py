import functools
import itertools

import pytest
import torch
from support.toy_demo import toy_arm, toy_batches, toy_model

from gradalign.cli.demo.backward import aligned_backward, plain_backward
from gradalign.cli.demo.reviews.arm import mean_loss
from gradalign.cli.demo.reviews.measure import alignment, peak_memory


def gradients(model, batches):
    model.eval()
    rows = []
    for batch in batches:
        grads = torch.autograd.grad(mean_loss(model, batch), list(model.parameters()))
        rows.append(torch.cat([g.flatten() for g in grads]).double())
    return rows


def test_alignment_is_that_of_all_pairs_of_gradients():
    model, batches = toy_model(), toy_batches(5)
    pairs = list(itertools.combinations(gradients(model, batches), 2))
    found = alignment(model, batches)
    assert found["dot"] == pytest.approx(sum(float(a @ b) for a, b in pairs) / 10, rel=1e-5)
    assert found["cosine"] == pytest.approx(sum(float(a @ b / (a.norm() * b.norm())) for a, b in pairs) / 10, rel=1e-5)
    norm = float(sum(gradients(model, batches)).norm()) / 5
    assert found["grad_norm"] == pytest.approx(norm, rel=1e-5)


def test_alignment_leaves_the_model_as_it_was():
    model, batches = toy_model().train(), toy_batches(5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    alignment(model, batches)
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_peak_memory_counts_copies_of_the_parameters():
    model = toy_model()
    model.embedding = torch.nn.Embedding(50_000, 8)  # 1.6 MB, far more than the activations
    copy = sum(p.nbytes for p in model.parameters())
    peaks = {
        name: peak_memory(functools.partial(toy_arm, make, model=model), toy_batches(4), torch.device("cpu"))
        for name, make in (("plain", plain_backward), ("aligned", aligned_backward(0.001, 2)))
    }
    # At least the model, its gradient and two moments; above that, temporary tensors of the optimizer step and the passes.
    assert 4 * copy <= peaks["plain"] < 7.5 * copy
    assert peaks["plain"] - 0.1 * copy <= peaks["aligned"] < peaks["plain"] + 1.5 * copy
