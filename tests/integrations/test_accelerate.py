"""`accumulate` in a loop of Accelerate: its own accumulation bit for bit without a weight, and exact resume."""

from __future__ import annotations

import gc
import re
import types
import warnings
import weakref

import pytest
import torch
from accelerate import Accelerator, skip_first_batches
from accelerate.state import AcceleratorState, GradientState
from support.dataset import Rows
from support.recipes import recipe
from torch import nn

import gradalign
from gradalign.integrations.accelerate import accumulate

K = 3


@pytest.fixture(autouse=True)
def _one_accelerator():
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    yield
    AcceleratorState._reset_state(True)
    GradientState._reset_state()


def make_net(dropout=0.2):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(8, 16), nn.Dropout(dropout), nn.Tanh(), nn.Linear(16, 1))


class Run:
    """Net, optimizer and loader, prepared."""

    def __init__(self, options=None, batches=7, scaler=None, k=K, data=None, dropout=0.2):
        self.accelerator = Accelerator(cpu=True, gradient_accumulation_steps=k)
        net = make_net(dropout)
        loader = torch.utils.data.DataLoader(Rows(batches * 4) if data is None else data, batch_size=4)
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
        self.accelerator.scaler = scaler
        self.net, self.optimizer, self.loader = self.accelerator.prepare(net, optimizer, loader)
        self.aligner = None if options is None else gradalign.GradAlign(net, **options)
        self.losses, self.passes = [], []

    def loss(self, x):
        return self.net(x).square().mean()

    def batch(self, x):
        """One block, plain or aligned."""
        if self.aligner is None:
            with self.accelerator.accumulate(self.net):
                loss = self.loss(x)
                self.accelerator.backward(loss)
                self.step()
        else:
            with accumulate(self.accelerator, self.aligner) as step:
                loss = step.backward(lambda: self.loss(x))
                self.step()
        self.losses.append(float(loss.detach()))

    def step(self):
        if self.accelerator.sync_gradients:
            self.accelerator.clip_grad_norm_(self.net.parameters(), 1.0)
            if self.aligner is not None and self.aligner.stats is not None:
                self.passes.append(self.aligner.stats.passes)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def epoch(self, loader=None):
        for x in self.loader if loader is None else loader:
            self.batch(x)

    def params(self):
        return torch.cat([p.detach().flatten() for p in self.net.parameters()])


@pytest.mark.parametrize("loss_scale", [None, 256.0])
@pytest.mark.parametrize("k", [2, 3])
def test_weight_0_is_accelerates_own_accumulation_bit_for_bit(loss_scale, k):
    runs = []
    for options in (None, {"weight": 0.0}):
        scaler = None if loss_scale is None else torch.amp.GradScaler("cpu", init_scale=loss_scale, growth_interval=2)
        runs.append(Run(options, scaler=scaler, k=k))
        for _ in range(2):
            runs[-1].epoch()
    plain, aligned = runs
    assert torch.equal(plain.params(), aligned.params())
    assert plain.losses == aligned.losses
    assert aligned.aligner.num_steps == 2 * (7 // k)  # the last batch of an epoch is trained plainly


@pytest.mark.parametrize("objective", ["variance", "dot"])
def test_a_step_is_that_of_an_own_loop(objective):
    options = {"weight": 0.1, "objective": objective}
    run = Run(options, batches=6)
    for number, x in enumerate(run.loader):
        if number == 0:
            torch.manual_seed(4)  # the loader has drawn a number too
        run.batch(x)
    net = make_net()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    aligner = gradalign.GradAlign(net, **options)
    torch.manual_seed(4)
    batches = Rows(24).x.split(4)
    for start in (0, K):
        with aligner.accumulate(K, reduction="sum") as step:
            for x in batches[start : start + K]:
                step.backward(lambda x=x: net(x).square().mean() / K)
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    assert torch.equal(run.params(), torch.cat([p.detach().flatten() for p in net.parameters()]))
    assert run.passes == [K + 1] * 2


def test_a_resumed_run_is_bit_identical(tmp_path):
    options = {"weight": lambda step: 0.05 * (step + 1), "objective": "variance", "every": 2}
    whole = Run(options, batches=18, dropout=0.0)  # a loader that is begun again draws a number
    whole.accelerator.register_for_checkpointing(whole.aligner)
    for number, x in enumerate(whole.loader):
        if number == 9:
            whole.accelerator.save_state(str(tmp_path))
        whole.batch(x)
    again = Run(options, batches=18, dropout=0.0)
    again.accelerator.register_for_checkpointing(again.aligner)
    again.accelerator.load_state(str(tmp_path))
    assert again.aligner.num_steps == 3
    again.epoch(skip_first_batches(again.loader, 9))
    assert torch.equal(whole.params(), again.params())
    assert str(whole.optimizer.state_dict()) == str(again.optimizer.state_dict())
    assert whole.aligner.state_dict() == again.aligner.state_dict() == {"num_steps": 6}


def test_a_loader_that_is_left_early_and_begun_anew():
    run = Run({"weight": 0.1}, batches=7)
    for number, x in enumerate(run.loader):
        run.batch(x)
        if number == 2:
            break
    assert run.aligner.num_steps == 1
    run.epoch()
    run.epoch()
    assert run.aligner.num_steps >= 4
    assert all(p.grad is None for p in run.net.parameters())


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        yield from Rows(20).x


def test_a_stream_that_ends_in_between_is_refused():
    run = Run({"weight": 0.1}, data=Stream())
    with pytest.raises(
        RuntimeError, match="expected 3 micro-batches; got 2 before the data loader, whose length is not known"
    ):
        run.epoch()
    assert run.aligner.num_steps == 1
    assert all(p.grad is None for p in run.net.parameters())


def test_an_exception_leaves_everything_as_before():
    run = Run({"weight": 0.1})
    x = Rows(4).x
    before = run.params()

    def block(error):
        with accumulate(run.accelerator, run.aligner) as step:
            step.backward(lambda: run.loss(x))
            raise error

    with pytest.raises(ZeroDivisionError):
        block(ZeroDivisionError)
    assert torch.equal(run.params(), before)
    assert all(p.grad is None for p in run.net.parameters())


def test_blocks_with_another_number_of_calls_are_refused():
    run = Run({"weight": 0.1})
    x = Rows(4).x
    steps = []

    def block(calls):
        with accumulate(run.accelerator, run.aligner) as step:
            steps.append(step)
            for _ in range(calls):
                step.backward(lambda: run.loss(x))

    with pytest.raises(RuntimeError, match="expected one call in each block"):
        block(2)
    with pytest.raises(RuntimeError, match="expected one call of step.backward in each block; got none"):
        block(0)
    with pytest.raises(RuntimeError, match="expected one call in each block"):
        steps[0].backward(lambda: run.loss(x))


@pytest.mark.parametrize(
    ("kind", "num", "message"),
    [
        ("DEEPSPEED", 1, "expected training without DeepSpeed; got DeepSpeed"),
        ("FSDP", 2, "got FSDP, .* fully_shard in your own loop"),
        ("MULTI_CPU", 2, "expected that of a module in DistributedDataParallel, .* after model = accelerator.prepare"),
    ],
)
def test_shards_engines_and_unwrapped_models_are_refused(kind, num, message):
    accelerator = types.SimpleNamespace(distributed_type=types.SimpleNamespace(value=kind), num_processes=num)
    run = Run({"weight": 0.1})
    with pytest.raises(TypeError, match=message), accumulate(accelerator, run.aligner):
        pass


def test_no_accumulation_is_refused():
    run = Run({"weight": 0.1}, k=1)
    with (
        pytest.raises(ValueError, match="gradient_accumulation_steps: expected at least 2.*; got 1"),
        accumulate(run.accelerator, run.aligner),
    ):
        pass


def test_the_window_does_not_keep_the_aligner_alive():
    run = Run({"weight": 0.1}, batches=4)
    run.epoch()
    kept = weakref.ref(run.aligner)
    del run
    gc.collect()
    assert kept() is None


def test_a_prepared_optimizer_is_unwrapped():
    net = make_net().bfloat16()
    accelerator = Accelerator(cpu=True)
    own = gradalign.optim.AdamW(net.parameters(), master_weights=True)
    model, prepared = accelerator.prepare(net, own)
    aligner = gradalign.GradAlign(model, 0.1, optimizer=prepared)
    aligner.backward(lambda x: model(x).float().square().mean(), list(torch.randn(4, 4, 8).bfloat16()))
    assert aligner._optimizer is own
    with pytest.raises(TypeError, match="expected an optimizer of gradalign.optim; got AcceleratedOptimizer"):
        gradalign.GradAlign(model, 0.1, optimizer=accelerator.prepare(torch.optim.AdamW(net.parameters())))


def test_the_recipe_of_the_docs(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    loader = torch.utils.data.DataLoader(Rows(64), batch_size=4)
    net = make_net()
    before = [p.clone() for p in net.parameters()]
    _, aligner = recipe("Accelerate")["train"](net, lambda model, x: model(x).square().mean(), loader)
    assert aligner.num_steps == 2
    assert aligner.stats.passes == 10
    assert not any(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


@pytest.mark.parametrize("options", [{"objective": "variance"}, {"objective": "dot"}, {"estimator": "prefix"}], ids=str)
def test_the_loss_is_that_of_the_base_pass(options):
    run = Run({"weight": 0.1, "radius": 0.3, **options}, batches=3, dropout=0.0)
    with torch.no_grad():
        expected = [float(run.net(x).square().mean()) for x in Rows(12).x.split(4)]
    run.epoch()
    assert run.losses == pytest.approx(expected, rel=1e-6)
    assert run.losses[0] == expected[0]


@pytest.mark.parametrize("left_after", [3, 4, 5, 6])
def test_epochs_that_are_left_early_are_aligned_as_far_as_they_go(left_after):
    run = Run({"weight": 0.1}, batches=7)
    for _ in range(3):
        for number, x in enumerate(run.loader, 1):
            run.batch(x)
            if number == left_after:
                break
    assert run.aligner.num_steps == left_after  # a window goes on in the next epoch
    run.epoch()
    assert run.aligner.num_steps == left_after + 2


def test_a_checkpoint_that_is_loaded_into_an_open_window_keeps_its_buffers():
    run = Run({"weight": 0.1}, batches=6)
    run.net.register_buffer("count", torch.tensor(4))
    blocks = iter(run.loader)
    run.batch(next(blocks))
    state = {name: value + 1 for name, value in run.net.state_dict().items()}
    run.net.load_state_dict(state)
    with pytest.raises(RuntimeError, match="expected .grad and parameters to be left alone"):
        run.batch(next(blocks))
    assert all(torch.equal(value, state[name]) for name, value in run.net.state_dict().items())
    assert all(p.grad is None for p in run.net.parameters())


def test_weights_that_an_evaluation_swaps_within_a_window_are_named():
    run = Run({"weight": 0.1}, batches=6)
    blocks = iter(run.loader)
    run.batch(next(blocks))
    run.net.load_state_dict(run.net.state_dict())
    with pytest.raises(RuntimeError, match="got changed parameters; .* swaps weights .* run it between two windows"):
        run.batch(next(blocks))


@pytest.mark.parametrize("k", [2, 8])
def test_another_number_of_micro_batches_within_a_window_is_named(k):
    run = Run({"weight": 0.1}, batches=9)
    blocks = iter(run.loader)
    run.batch(next(blocks))
    run.accelerator.gradient_accumulation_steps = k
    with pytest.raises(RuntimeError, match=f"expected gradient_accumulation_steps to stay .*; got {k} after 1 of its"):
        run.batch(next(blocks))
    assert all(p.grad is None for p in run.net.parameters())


def test_gradients_that_were_cleared_within_a_window_are_no_swapped_weights():
    run = Run({"weight": 0.1}, batches=6)
    blocks = iter(run.loader)
    run.batch(next(blocks))
    run.net.zero_grad()
    with pytest.raises(RuntimeError, match="got changed .grad; clip") as caught:
        run.batch(next(blocks))
    assert "swaps weights" not in str(caught.value)


def test_batches_that_are_passed_over_are_named_where_the_loader_ends():
    run = Run({"weight": 0.1}, batches=7)
    some = (x for number, x in enumerate(run.loader) if number not in (1, 3))
    with pytest.raises(RuntimeError, match="got 2 before the data loader ended, of whose 7 batches not all .*continue"):
        run.epoch(some)
    assert all(p.grad is None for p in run.net.parameters())


PLAIN = "expected windows of fewer micro-batches, .* only where the data loader ends; got one before"


@pytest.mark.parametrize("how", ["evaluation left early", "block around"])
def test_windows_that_are_trained_plainly_before_the_end_are_warned_of_once(how):
    run = Run({"weight": 0.1}, batches=9)
    evaluation = run.accelerator.prepare(torch.utils.data.DataLoader(Rows(8), batch_size=4))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for x in run.loader:
            if how == "block around":
                with run.accelerator.accumulate(run.net):
                    run.batch(x)
            else:
                run.batch(x)
                next(iter(evaluation))
    (warning,) = [w for w in caught if issubclass(w.category, UserWarning) and "accumulate" in str(w.message)]
    assert warning.filename == __file__
    assert re.search(PLAIN, str(warning.message))


@pytest.mark.parametrize("left_after", [3, 4, 7])
def test_windows_at_the_end_of_a_loader_are_not_warned_of(left_after):
    run = Run({"weight": 0.1}, batches=7)
    evaluation = run.accelerator.prepare(torch.utils.data.DataLoader(Rows(8), batch_size=4))
    for _ in range(2):
        for number, x in enumerate(run.loader, 1):
            run.batch(x)
            list(evaluation)
            if number == left_after:
                break


def both(accelerators, nets, aligners, x):
    for accelerator, net, aligner in zip(accelerators, nets, aligners, strict=True):
        with accumulate(accelerator, aligner) as step:
            step.backward(lambda net=net: net(x).square().mean())
        if accelerator.sync_gradients:
            net.zero_grad()


def test_two_aligners_need_an_accelerator_each():
    nets = [make_net(), make_net()]
    aligners = [gradalign.GradAlign(net, weight=0.1) for net in nets]
    accelerators = [Accelerator(cpu=True, gradient_accumulation_steps=K) for _ in nets]
    for x in accelerators[0].prepare(torch.utils.data.DataLoader(Rows(28), batch_size=4)):
        both(accelerators, nets, aligners, x)
    assert [aligner.num_steps for aligner in aligners] == [2, 2]
    x = Rows(4).x
    both(accelerators[:1] * 2, nets, aligners, x)
    with pytest.raises(RuntimeError, match="got 2: two aligners, .* make an Accelerator for each aligner"):
        both(accelerators[:1] * 2, nets, aligners, x)
    assert all(p.grad is None for p in nets[0].parameters())


def short_passes(run, loaders):
    """The warnings of passes without a whole window, in a run over these loaders."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for loader in loaders:
            run.epoch(loader)
    return [w for w in caught if "none of which has k" in str(w.message)]


def test_passes_without_a_whole_window_are_warned_of_once():
    run = Run({"weight": 0.1}, batches=2)
    (warning,) = short_passes(run, [run.loader] * 3)
    assert warning.filename == __file__
    assert re.match(
        "gradient_accumulation_steps: expected windows of k = 3 .*; got epochs of 2, .* nothing of them is aligned; lower",
        str(warning.message),
    )
    assert run.aligner.num_steps == 0


def test_a_short_loader_beside_one_that_is_aligned_is_not_warned_of():
    """An evaluation's, for instance, or the second of two data sets."""
    run = Run({"weight": 0.1}, batches=3)
    short = run.accelerator.prepare(torch.utils.data.DataLoader(Rows(8), batch_size=4))
    assert short_passes(run, [run.loader, short]) == []
    assert run.aligner.num_steps == 1


@pytest.mark.parametrize(("weight", "batches"), [(0.0, 2), (0.1, 3), (0.1, 4)])
def test_passes_with_a_whole_window_or_no_weight_are_not_warned_of(weight, batches):
    run = Run({"weight": weight}, batches=batches)
    assert short_passes(run, [run.loader] * 2) == []


@pytest.mark.parametrize("data", [None, Rows(20)], ids=["batch sampler", "iterable"])
def test_what_is_left_of_a_resumed_pass_is_no_short_one(data):
    if data is not None:
        data = type("Sized", (Stream,), {"__len__": lambda self: 20})()
    run = Run({"weight": 0.1}, batches=5, data=data)
    assert short_passes(run, [skip_first_batches(run.loader, 3)]) == []
    assert short_passes(run, [run.loader]) == []
