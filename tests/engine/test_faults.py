"""A loss_fn that is no function of its micro-batch and the model is refused, or differentiated right."""

from __future__ import annotations

import contextlib
import copy
import itertools
import warnings
from collections.abc import Mapping
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import gradalign
from gradalign import GradAlign
from gradalign.engine.replay import RandomWatch

K = 8


def perceptron(dtype=torch.float32):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 2)).to(dtype)


def batches(dtype=torch.float32):
    torch.manual_seed(2)
    return [(torch.randn(4, 8, dtype=dtype), torch.randint(2, (4,))) for _ in range(K)]


def cross_entropy(model, x, y):
    return nn.functional.cross_entropy(model(x), y)


def aligned(model, loss_fn, data, models=None, **options):
    options = {"objective": "variance", **options}
    GradAlign(models or model, 0.03, **options).backward(loss_fn, data)
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def off(found, right):
    return float((found - right).norm() / right.norm())


def in_batch(write, wrap=lambda x, y: (x, y)):
    def run(model, data):
        def loss_fn(batch):
            write(batch)
            x, y = (batch.x, batch.y) if hasattr(batch, "x") else batch.values() if isinstance(batch, dict) else batch
            return cross_entropy(model, *((x["inner"],) if isinstance(x, dict) else (x,)), y)

        aligned(model, loss_fn, [wrap(x.clone(), y) for x, y in data])

    return run


def scale_(x):
    x.sub_(0.3).div_(0.7)


WRITES = {
    "a tuple": in_batch(lambda b: scale_(b[0])),
    "an attribute": in_batch(lambda b: scale_(b.x), lambda x, y: SimpleNamespace(x=x, y=y)),
    "a nested dict": in_batch(lambda b: scale_(b["x"]["inner"]), lambda x, y: {"x": {"inner": x}, "y": y}),
}


@pytest.mark.parametrize("where", WRITES)
def test_a_write_into_the_micro_batch_is_refused(where):
    model = perceptron()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError, match=r"got a write into a tensor of shape \(4, 8\); clone it first"):
        WRITES[where](model, batches())
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_an_inference_tensor_in_the_batch_is_left_alone():
    model, data = perceptron(), batches()
    with torch.inference_mode():
        inputs = [(x.clone(), y) for x, y in data]
    found = aligned(model, lambda b: cross_entropy(model, b[0].clone(), b[1]), inputs)
    model.zero_grad()
    assert torch.equal(found, aligned(model, lambda b: cross_entropy(model, *b), data))


def hidden_state(model, data):
    rnn = nn.GRU(8, 4, batch_first=True)
    state = SimpleNamespace(h=torch.zeros(1, 4, 4))

    def loss_fn(b):
        out, h = rnn(b[0][:, None, :], state.h.detach())
        state.h = h
        return out.square().mean()

    aligned(rnn, loss_fn, data)


def an_iterator(model, data):
    source = itertools.cycle(data)
    aligned(model, lambda _: cross_entropy(model, *next(source)), list(range(K)))


def an_own_generator(model, data):
    noise = torch.Generator().manual_seed(0)
    aligned(model, lambda b: cross_entropy(model, b[0] + torch.randn(b[0].shape, generator=noise), b[1]), data)


class Centre(nn.Module):
    """A criterion with a running centre of the logits."""

    def __init__(self):
        super().__init__()
        self.register_buffer("centre", torch.zeros(2))

    def forward(self, logits, y):
        self.centre.mul_(0.5).add_(logits.detach().mean(0), alpha=0.5)
        return nn.functional.cross_entropy(logits - self.centre, y)


def a_criterion_with_a_buffer(model, data):
    criterion = Centre()
    aligned(model, lambda b: criterion(model(b[0]), b[1]), data)


def writes_through_data(model, data):
    aligned(model, lambda b: (scale_(b[0].data), cross_entropy(model, *b))[1], [(x.clone(), y) for x, y in data])


def an_average_of_the_student(model, data):
    """A teacher that is not among the models, and has settled by the end of the step."""
    teacher = copy.deepcopy(model).requires_grad_(False)
    with torch.no_grad():
        for p in teacher.parameters():
            p.mul_(2)

    def loss_fn(b):
        with torch.no_grad():
            for t, s in zip(teacher.parameters(), model.parameters(), strict=True):
                t.mul_(0.5).add_(s, alpha=0.5)
        return cross_entropy(model, *b) + (model(b[0]) - teacher(b[0])).square().mean()

    aligned(model, loss_fn, data)


STATE = [
    an_average_of_the_student,
    hidden_state,
    an_iterator,
    an_own_generator,
    a_criterion_with_a_buffer,
    writes_through_data,
]


@pytest.mark.parametrize("case", STATE, ids=lambda case: case.__name__)
def test_state_outside_the_models_is_refused(case):
    model = perceptron()
    with pytest.raises(
        RuntimeError, match=r"(expected the same loss when a micro-batch is evaluated again|got a write)"
    ):
        case(model, batches())
    assert all(p.grad is None for p in model.parameters())


def test_a_criterion_among_the_models_is_right():
    model, criterion, data = perceptron(torch.float64), Centre().double(), batches(torch.float64)
    model_2 = copy.deepcopy(model)
    found = aligned(model, lambda b: criterion(model(b[0]), b[1]), data, models=[model, criterion])
    small = Centre().double()
    right = aligned(
        model_2, lambda b: small(model_2(b[0]), b[1]), data, models=[model_2, small], difference="central", radius=1e-4
    )
    assert off(found, right) < 0.005
    assert torch.equal(criterion.centre, small.centre)


@pytest.mark.parametrize("estimator", ["split", "prefix"])
def test_closures_over_a_loop_variable_are_checked_while_it_holds(estimator):
    def run(loss_fn, model):
        aligner = GradAlign(model, 0.03, estimator=estimator)
        with aligner.accumulate(K) as step:
            for batch in batches():
                step.backward(lambda: loss_fn(batch))  # noqa: B023
        return aligner

    model = perceptron()
    assert run(lambda b: cross_entropy(model, *b), model).num_steps == 1
    source = itertools.cycle(batches()[:5])
    model = perceptron()
    with pytest.raises(RuntimeError, match="expected the same loss when a micro-batch is evaluated again"):
        run(lambda _: cross_entropy(model, *next(source)), model)
    assert all(p.grad is None for p in model.parameters())


class Computed(Mapping):
    """A batch that computes its values, differently each time."""

    def __init__(self, batch):
        self.batch = batch

    def __getitem__(self, key):
        return self.batch[0] + torch.randn(4, 8) if key == "x" else self.batch[1]

    def __iter__(self):
        return iter("xy")

    def __len__(self):
        return 2


def cyclic(x, y):
    batch = {"x": x, "y": y, "text": [["word"] * 3], "numbers": [*range(1000)]}
    batch["meta"] = {"owner": batch}
    return batch


@pytest.mark.parametrize("wrap", [lambda x, y: Computed((x, y)), cyclic], ids=["computed", "cyclic"])
def test_a_batch_is_only_looked_at_where_that_changes_nothing(wrap):
    def run(check):
        torch.manual_seed(5)
        model = perceptron()
        aligner = GradAlign(model, 0.03, objective="variance", check_replay=check)
        if not check:
            aligner._progress = aligner._progress._replace(inspected=True, num_steps=3)
        aligner.backward(lambda b: cross_entropy(model, b["x"], b["y"]), [wrap(x, y) for x, y in batches()])
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    assert torch.equal(run(True), run(False))


def replace_attribute(b):
    b.x = b.x / 2


def replace_entry(b):
    b["x"]["inner"] = b["x"]["inner"] / 2


@pytest.mark.parametrize(
    "run",
    [
        in_batch(replace_attribute, lambda x, y: SimpleNamespace(x=x, y=y)),
        in_batch(replace_entry, lambda x, y: {"x": {"inner": x}, "y": y}),
    ],
)
def test_a_tensor_of_the_batch_that_is_replaced_is_refused(run):
    with pytest.raises(RuntimeError, match="got a write into a tensor that it replaced"):
        run(perceptron(), batches())


def test_a_frozen_embedding_with_max_norm_is_no_fault():
    model = nn.Sequential(nn.Embedding(5, 3, max_norm=1.0), nn.Flatten(), nn.Linear(6, 2))
    model[0].requires_grad_(False)
    with torch.no_grad():
        model[0].weight.fill_(2.0)
    data = [torch.randint(5, (4, 2)) for _ in range(4)]
    aligner = GradAlign(model, 0.03)
    aligner.backward(lambda x: model(x).square().mean(), data)
    assert aligner.num_steps == 1
    assert float(model[0].weight.norm(dim=1).min()) < 1.01  # renormalised, as in the plain loop


def test_frozen_weights_that_move_in_memory_are_no_fault():
    base, head, data = nn.Linear(8, 4).requires_grad_(False), nn.Linear(4, 2), batches()

    def reload(module, _):
        for p in module.parameters():
            p.data = p.data.clone()

    base.register_forward_pre_hook(reload)
    aligner = GradAlign([base, head], 0.03)
    aligner.backward(lambda b: nn.functional.cross_entropy(head(base(b[0])), b[1]), data)
    assert aligner.num_steps == 1
    assert all(p.grad is not None for p in head.parameters())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_step_without_gradients_says_so(mode):
    model, data = perceptron(), batches()
    aligner = GradAlign(model, 0.03)
    with (
        mode(),
        pytest.raises(ValueError, match=r"one that does not require grad.*torch.no_grad\(\) or inference_mode"),
    ):
        aligner.backward(lambda b: cross_entropy(model, *b), data)


def test_an_error_of_the_last_micro_batch_that_is_swallowed_is_told_at_the_end():
    model, data = perceptron(), batches()
    aligner = GradAlign(model, 0.03)
    aligner._watch.note = lambda *_, **__: 1 / 0

    def swallowing():
        with aligner.accumulate(K) as step:
            for b in data:
                with contextlib.suppress(ZeroDivisionError):
                    step.backward(lambda b=b: cross_entropy(model, *b))

    with pytest.raises(ValueError, match=r"expected k = 8 calls of step.backward"):
        swallowing()
    assert all(p.grad is None for p in model.parameters())


def test_sparse_tensors_in_a_micro_batch_are_no_fault():
    model, data = perceptron(), batches()
    found = aligned(
        model,
        lambda b: cross_entropy(model, b["x"].to_dense(), b["y"]),
        [{"x": x.to_sparse(), "y": y} for x, y in data],
    )
    model.zero_grad()
    assert off(found, aligned(model, lambda b: cross_entropy(model, *b), data)) < 1e-5


def test_the_replay_check_can_be_turned_off_and_runs_once():
    model, data = perceptron(), batches()
    calls = []

    def loss_fn(b):
        calls.append(1)
        return cross_entropy(model, *b)

    aligner = GradAlign(model, 0.03)
    for expected in (K + 2 + 3, K + 2):  # once more, and on both sides of theta
        calls.clear()
        aligner.backward(loss_fn, data)
        model.zero_grad()
        assert len(calls) == expected
        assert aligner.stats.passes == K + 2
    calls.clear()
    GradAlign(model, 0.03, check_replay=False).backward(loss_fn, data)
    assert len(calls) == K + 2
    model.zero_grad()
    calls.clear()
    GradAlign(model, 0.0).backward(loss_fn, data)
    assert len(calls) == K


def test_the_replay_check_leaves_random_numbers_auxiliaries_and_buffers_alone():
    def run(check):
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Dropout(0.3), nn.Linear(16, 2))
        seen = []
        aligner = GradAlign(model, 0.03, check_replay=check)

        def loss_fn(b):
            if not aligner.displaced:
                seen.append(1)
            return cross_entropy(model, *b), len(seen)

        loss, aux = aligner.backward(loss_fn, batches(), has_aux=True)
        grads = [p.grad for p in model.parameters()]
        return [loss, *grads, *model.buffers(), torch.get_rng_state()], aux

    (with_check, aux), (without, _) = run(True), run(False)
    assert all(map(torch.equal, with_check, without))
    assert aux == list(range(1, K + 1))


def test_frozen_parameters_that_a_forward_moves_are_refused():
    model, data = perceptron(), batches()
    teacher = copy.deepcopy(model).requires_grad_(False)

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.student, self.teacher = model, teacher

        def forward(self, x):
            with torch.no_grad():
                for t, s in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
                    t.mul_(0.5).add_(s, alpha=0.5)
            return (self.student(x) - self.teacher(x)).square().mean() + self.student(x).square().mean()

    both = Both()
    moved = copy.deepcopy(both)
    with pytest.raises(
        RuntimeError, match=r"got a write into teacher\.0\.weight, teacher\.0\.bias, teacher\.2\.weight"
    ):
        GradAlign(both, 0.03, objective="variance").backward(lambda b: both(b[0]), data)
    moved(data[0][0])
    assert all(map(torch.equal, both.teacher.parameters(), moved.teacher.parameters()))  # as in the plain loop
    GradAlign(both, 0.0).backward(lambda b: both(b[0]), data)


def test_a_leaf_outside_the_model_is_refused():
    model, data = perceptron(), batches()
    s = torch.zeros(2, requires_grad=True)

    def loss_fn(b):
        return (s.exp() * cross_entropy(model, *b)).sum() - s.sum()

    with pytest.raises(
        ValueError, match=r"also trains tensors made outside loss_fn \(shapes \(2,\)\).*model=\[net, module\]"
    ):
        aligned(model, loss_fn, data)


def test_leaves_made_inside_loss_fn_are_left_alone():
    model, data = perceptron(torch.float64), batches(torch.float64)

    def penalised(b):
        x = b[0].clone().requires_grad_()
        (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        return cross_entropy(model, *b) + slope.square().mean()

    found = aligned(model, penalised, data, difference="central", radius=1e-4, estimator="leave_one_out")
    model.zero_grad()
    assert off(found, aligned(model, penalised, data, estimator="exact")) < 1e-6


@pytest.mark.parametrize(("begins", "found"), [(2, 2), (3, 4), (5, 8)])
def test_a_leaf_outside_the_model_that_shows_late_is_refused_at_the_next_power_of_two(begins, found):
    model, data = perceptron(), batches()
    s = torch.zeros((), requires_grad=True)
    aligner = GradAlign(model, 0.03, objective="variance", check_replay=False)

    def loss_fn(b):
        loss = cross_entropy(model, *b)
        return loss * s.exp() if aligner.num_steps >= begins else loss

    def steps():
        for _ in range(10):
            aligner.backward(loss_fn, data)
            model.zero_grad()

    with pytest.raises(ValueError, match="also trains tensors made outside loss_fn"):
        steps()
    assert aligner.num_steps == found


def test_leaves_made_inside_loss_fn_are_left_alone_in_later_steps():
    model, data = perceptron(), batches()
    aligner = GradAlign(model, 0.03)

    def adversarial(b):
        delta = torch.zeros_like(b[0], requires_grad=True)
        cross_entropy(model, b[0] + delta, b[1]).backward(inputs=[delta])
        with torch.no_grad():
            delta.add_(delta.grad.sign(), alpha=0.1)
        return cross_entropy(model, b[0] + delta, b[1])

    for _ in range(5):
        aligner.backward(adversarial, data)
        model.zero_grad()
    assert aligner.num_steps == 5


@pytest.mark.parametrize("where", ["second micro-batch", "third step"])
def test_a_foreign_parameter_that_shows_late_is_refused(where):
    model, head, data = perceptron(), nn.Linear(2, 2), batches()
    count = itertools.count()
    aligner = GradAlign(model, 0.03, objective="variance", check_replay=False)
    begins = {"second micro-batch": 1, "third step": 2 * (K + 2)}[where]

    def loss_fn(b):
        logits = model(b[0])
        return nn.functional.cross_entropy(head(logits) if next(count) >= begins else logits, b[1])

    def steps():
        for _ in range(4):
            aligner.backward(loss_fn, data)
            model.zero_grad()

    with pytest.raises(ValueError, match="give every module that is trained.*frozen modules with state"):
        steps()


@pytest.mark.parametrize(
    ("method", "message"),
    [("exact", "reentrant checkpoint.*use_reentrant=False"), ("MAML", "expected a loss_fn without checkpoints")],
)
def test_a_reentrant_checkpoint_is_refused_where_gradients_are_differentiated(method, message):
    model, data = perceptron(), batches()

    def loss_fn(b):
        x = b[0].clone().requires_grad_()
        return nn.functional.cross_entropy(checkpoint(model, x, use_reentrant=True), b[1])

    made = GradAlign(model, 0.1, estimator="exact") if method == "exact" else gradalign.baselines.MAML(model, 0.1)
    with pytest.raises(RuntimeError, match=f"{method}: .*{message}"):
        made.backward(loss_fn, data)


@pytest.mark.parametrize("retain", [False, True])
def test_features_computed_outside_are_refused(retain):
    model, head, data = perceptron(), nn.Linear(2, 2), batches()
    h = model(data[0][0])
    both = GradAlign([model, head], 0.03, objective="variance")
    backward = (lambda loss: loss.backward(retain_graph=True)) if retain else None
    with pytest.raises(RuntimeError, match="compute them inside loss_fn"):
        both.backward(lambda b: nn.functional.cross_entropy(head(h), b[1]), data, backward=backward)


def test_another_thread_is_seen_in_steps_of_which_a_part_is_looked_at(monkeypatch):
    model, data = perceptron(), batches()
    aligner = GradAlign(model, 0.03)
    note = RandomWatch.note
    warned = []
    for step in range(9):
        if step == 1:
            monkeypatch.setattr(RandomWatch, "note", lambda watch: (note(watch), torch.rand(())))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            aligner.backward(lambda b: cross_entropy(model, *b), data)
        warned += [step] * any("another thread draws from it" in str(w.message) for w in caught)
        model.zero_grad()
    assert warned == [1, 2, 4, 8]


@pytest.mark.parametrize("drawing", [False, True])
@pytest.mark.parametrize("estimator", ["split", "prefix", "leave_one_out", "symmetric"])
@pytest.mark.parametrize("difference", ["forward", "central"])
def test_another_thread_that_draws_between_passes_is_warned_of(estimator, difference, drawing, monkeypatch):
    model, data = nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.2), nn.Linear(16, 2)), batches()
    note = RandomWatch.note
    if drawing:  # as another thread would, after a base pass
        monkeypatch.setattr(RandomWatch, "note", lambda watch: (note(watch), torch.rand(())))
    aligner = GradAlign(model, 0.03, estimator=estimator, difference=difference)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        aligner.backward(lambda b: cross_entropy(model, *b), data)
    assert any("another thread draws from it" in str(w.message) for w in caught) == drawing


def test_params_that_were_replaced_are_refused():
    model, data = perceptron(), batches()
    aligner = GradAlign(model, 0.03, params=list(model[2].parameters()))
    aligner.backward(lambda b: cross_entropy(model, *b), data)
    model.zero_grad()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    with pytest.raises(ValueError, match="params: expected parameters that the model still has; got 2"):
        aligner.backward(lambda b: cross_entropy(model, *b), data)


def test_fp32_adapters_on_a_16_bit_base_take_its_radius():
    base = nn.Linear(8, 2, dtype=torch.bfloat16).requires_grad_(False)
    down, up = nn.Linear(8, 2), nn.Linear(2, 2)

    def loss_fn(b):
        x, y = b
        return nn.functional.cross_entropy(base(x.bfloat16()).float() + up(torch.tanh(down(x))), y)

    def radius(*modules):
        aligner = GradAlign(modules, 0.03)
        aligner.backward(loss_fn, batches())
        for module in modules:
            module.zero_grad()
        return aligner.stats.radius

    assert radius(base, down, up) == 0.03
    assert radius(down, up) == 0.01


def test_an_embedding_with_max_norm_is_refused_by_momentum():
    model = nn.Sequential(nn.Embedding(5, 3, max_norm=1.0), nn.Flatten(), nn.Linear(6, 1))
    with torch.no_grad():
        model[0].weight.fill_(2.0)
    data = [torch.randint(5, (4, 2)) for _ in range(4)]
    with pytest.raises(RuntimeError, match="momentum.*expected a forward that leaves parameters alone"):
        GradAlign(model, 0.03, estimator="momentum").backward(lambda x: model(x).square().mean(), data)


def clamped(value):
    return lambda g: g.clamp(-value, value)


def test_tune_refuses_what_training_would_refuse():
    model, data = perceptron(), batches()
    with pytest.raises(RuntimeError, match="got a write into a tensor"):
        gradalign.tune(model, lambda b: (scale_(b[0]), cross_entropy(model, *b))[1], data, radii=[0.01])
    source = itertools.cycle(data[:5])
    with pytest.raises(RuntimeError, match="expected the same loss when a micro-batch is evaluated again"):
        gradalign.tune(model, lambda b: cross_entropy(model, *next(source)), list(range(K)), radii=[0.01])
    assert all(p.grad is None for p in model.parameters())


class Clamped(torch.autograd.Function):
    """The identity, whose gradient is clamped: nothing shows that outside."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return g.clamp(-0.05, 0.05)


@pytest.mark.parametrize("estimator", ["prefix", "symmetric", "leave_one_out"])
def test_a_clamp_inside_backward_sees_gradients_of_the_usual_size(estimator):
    def run(clamp):
        model = perceptron()

        def loss_fn(b):
            logits = model(b[0])
            return nn.functional.cross_entropy(Clamped.apply(logits) if clamp else logits, b[1])

        return aligned(model, loss_fn, batches(), objective="dot", estimator=estimator)

    assert off(run(True), run(False)) < 1e-3


@pytest.mark.parametrize("objective", ["dot", "variance", "cosine"])
@pytest.mark.parametrize("estimator", ["split", "prefix", "leave_one_out"])
def test_a_hook_that_the_plain_loop_never_reaches_changes_nothing(objective, estimator):
    def run(hook):
        model = perceptron()
        if hook:
            for p in model.parameters():
                p.register_hook(clamped(0.2))
        return aligned(model, lambda b: cross_entropy(model, *b), batches(), objective=objective, estimator=estimator)

    assert off(run(True), run(False)) < 1e-3


@pytest.mark.parametrize("difference", ["forward", "central"])
@pytest.mark.parametrize("estimator", ["split", "prefix", "leave_one_out", "symmetric"])
def test_hooks_see_gradients_as_large_as_those_of_the_plain_loop(estimator, difference):
    def largest(weight):
        model, seen = perceptron(), []
        for p in model.parameters():
            p.register_hook(lambda g: seen.append(float(g.abs().max())))
        options = {"objective": "dot", "estimator": estimator, "difference": difference}
        GradAlign(model, weight, **options).backward(lambda b: cross_entropy(model, *b), batches())
        return max(seen)

    assert largest(0.03) < 1.1 * largest(0.0)


def test_half_precision_losses_stay_as_small_as_those_of_the_plain_loop():
    def settled(weight, objective):
        model = perceptron()
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**30, growth_interval=1000)
        aligner = GradAlign(model, weight, objective=objective, scaler=scaler)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)

        def loss_fn(b):
            with torch.autocast("cpu", torch.float16):
                return cross_entropy(model, *b)

        for _ in range(25):
            aligner.backward(loss_fn, batches())
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        return scaler.get_scale()

    plain = settled(0.0, "variance")
    assert settled(0.03, "variance") == plain
    # Lean split multiplies losses by up to 1 + weight k / (m radius) = 5.
    assert plain / 2**3 <= settled(0.03, "dot") <= plain


def test_a_call_under_inference_mode_leaves_an_aligner_that_works():
    model, data = perceptron(), batches()
    aligner = gradalign.GradAlign(model, 0.1)
    with torch.inference_mode(), pytest.raises(ValueError, match="does not require grad"):
        aligner.backward(lambda b: cross_entropy(model, *b), data)
    aligner.backward(lambda b: cross_entropy(model, *b), data)
    assert aligner.num_steps == 1
