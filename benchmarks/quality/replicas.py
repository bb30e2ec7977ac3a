"""Many runs of one arm at once: seeds and settings as two leading dimensions of the parameters.

The methods are written here once more, from their equations, on tensors (seeds, settings, parameters), since a step of a small
model is mostly the time of the interpreter. tests/benchmarks/quality holds every arm to the same run through the library
(`training.run`). For losses without random numbers and models without buffers, whose batches have one shape in all seeds.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.utils._pytree import tree_leaves, tree_map

from benchmarks.quality.arms import ARMS, first_layer_of
from benchmarks.quality.task import Batch, Task
from benchmarks.quality.training import Evaluations, Job, Metrics, finite_or, in_turn, ramp, row_of

RADIUS = 0.01
Gradient = Callable[[Tensor], Tensor]  # of one micro-batch: (seeds, settings, parameters) -> the same


class Losses:
    """The loss of each micro-batch of a step as a function of the flat parameters of one run.

    Args:
        model: gives the shapes.
        loss_fn: (model, micro-batch) -> loss.
    """

    def __init__(self, model: nn.Module, loss_fn: Callable[[nn.Module, Batch], Tensor]) -> None:
        self._host = _Loss(copy.deepcopy(model), loss_fn)
        for layer in self._host.modules():
            if type(layer) is nn.Linear:
                layer.forward = partial(_linear, layer)  # type: ignore[method-assign]
        self._names = [name for name, p in self._host.named_parameters() if p.requires_grad]
        self._shapes = [p.shape for p in self._host.parameters() if p.requires_grad]
        name, self._last = [(name, m) for name, m in self._host.named_modules() if isinstance(m, nn.Linear)][-1]
        self._in_last = [parameter.rpartition(".")[0] == name for parameter in self._names]
        first = {id(p) for p in first_layer_of(model).parameters()}
        self._in_first = [id(p) in first for p in model.parameters() if p.requires_grad]

    def loss(self, flat: Tensor, batch: Batch) -> Tensor:
        """L(theta)."""
        parts = flat.split([shape.numel() for shape in self._shapes])
        # Copies, since parts of rows have gaps between settings, and one product of matrices needs none.
        values = {n: part.clone().view(shape) for n, part, shape in zip(self._names, parts, self._shapes, strict=True)}
        return functional_call(self._host, values, (batch,))

    def last(self, flat: Tensor) -> Tensor:
        """1 for the parameters of the last linear layer, 0 for the others."""
        return self._indicator(self._in_last, flat)

    def first(self, flat: Tensor) -> Tensor:
        """1 for the parameters of the first layer, 0 for the others."""
        return self._indicator(self._in_first, flat)

    def _indicator(self, inside: Sequence[bool], flat: Tensor) -> Tensor:
        pairs = zip(self._shapes, inside, strict=True)
        return torch.cat([torch.full((shape.numel(),), float(is_in)) for shape, is_in in pairs]).to(flat)

    def irm(self, flat: Tensor, batch: Batch) -> Tensor:
        """(d/dw L(w z))^2 at w = 1, z the last layer's output: scaling z is scaling that layer."""
        return (flat * self.last(flat) * grad(self.loss)(flat, batch)).sum().square()

    def variance(self, flat: Tensor, batch: Batch) -> Tensor:
        """Over samples, of the gradients of the last layer's weight and bias: those of a sample are delta h^T and delta."""
        n = len(tree_leaves(batch)[0])

        def of_output(moved: Tensor) -> tuple[Tensor, Tensor]:
            seen: list[Tensor] = []

            def move(module: nn.Module, inputs: tuple[Tensor], z: Tensor) -> Tensor:
                seen.append(inputs[0])
                return z + moved

            hook = self._last.register_forward_hook(move)
            try:
                return self.loss(flat, batch), seen[0]
            finally:
                hook.remove()

        mean_delta, h = grad(of_output, has_aux=True)(flat.new_zeros(n, self._last.out_features))
        delta = n * mean_delta
        if self._last.bias is not None:
            h = torch.cat([h, h.new_ones(n, 1)], 1)
        squares, mean = (delta.square().mT @ h.square()) / n, (delta.mT @ h) / n
        return ((squares - mean.square()) * n / (n - 1)).reshape(-1)


class _Loss(nn.Module):
    """The loss as a module that holds the model."""

    def __init__(self, model: nn.Module, loss_fn: Callable[[nn.Module, Batch], Tensor]) -> None:
        super().__init__()
        self.model, self.loss_fn = model, loss_fn

    def forward(self, batch: Batch) -> Tensor:
        return self.loss_fn(self.model, batch)


class _Dense(torch.autograd.Function):
    """The identity, whose gradient comes without gaps: it, too, is one factor of a single product."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        return grad_output.clone(memory_format=torch.contiguous_format)


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """x W^T + b with the weights on the left: those of all settings then meet a shared x in one product of matrices."""
    y = _Dense.apply(layer.weight @ x.mT).mT
    return y if layer.bias is None else y + layer.bias


def batched(function: Callable[[Tensor, Batch], Tensor]) -> Callable[[Tensor, Batch], Tensor]:
    """Over seeds (the first dimension of parameters and batch) and settings (the second of the parameters)."""
    return vmap(vmap(function, (0, None)), (0, 0))


def norm(x: Tensor) -> Tensor:
    """Of each run."""
    return x.norm(dim=-1, keepdim=True)


def unit(x: Tensor) -> Tensor:
    """x / ||x||, and 0 for 0."""
    return x / norm(x).clamp_min(torch.finfo(x.dtype).tiny)


# The methods: (gradients of the micro-batches, theta, value, step, measured) -> what the optimizer gets. They displace, and
# measure agreement, where `measured` is 1.


def plain(
    gradients: Sequence[Gradient], theta: Tensor, value: Tensor, step: int, measured: Tensor | float = 1.0
) -> Tensor:
    """The mean gradient."""
    return torch.stack([g(theta) for g in gradients]).mean(0)


def sam(
    gradients: Sequence[Gradient], theta: Tensor, value: Tensor, step: int, measured: Tensor | float = 1.0
) -> Tensor:
    """gbar at theta + rho gbar / ||gbar||."""
    uphill = unit(plain(gradients, theta, value, step) * measured)
    return plain(gradients, theta + value * uphill, value, step)


def inner(
    gradients: Sequence[Gradient], theta: Tensor, value: Tensor, step: int, measured: Tensor | float = 1.0
) -> list[Tensor]:
    """The gradients along steps of SGD, one a micro-batch."""
    found: list[Tensor] = []
    for g in gradients:
        found.append(g(theta - value * measured * torch.stack(found).sum(0) if found else theta))
    return found


def reptile(
    gradients: Sequence[Gradient], theta: Tensor, value: Tensor, step: int, measured: Tensor | float = 1.0
) -> Tensor:
    """The mean gradient along inner steps."""
    return torch.stack(inner(gradients, theta, value, step, measured)).mean(0)


def fomaml(
    gradients: Sequence[Gradient], theta: Tensor, value: Tensor, step: int, measured: Tensor | float = 1.0
) -> Tensor:
    """The last gradient along inner steps."""
    return inner(gradients, theta, value, step, measured)[-1]


def agreement(objective: str, normalize: str, split: bool) -> Callable[..., Tensor]:
    """gbar - weight term, as in docs/design.md: leave_one_out, or split with half of the micro-batches as rotating probes."""

    def step_gradient(
        gradients: Sequence[Gradient], theta: Tensor, value: Tensor, step: int, measured: Tensor | float = 1.0
    ) -> Tensor:
        own = [g(theta) for g in gradients]
        mean, k = torch.stack(own).mean(0), len(own)
        m = min(k - 1, max(1, round(k / 2))) if split else k
        probes = {(step * m + j) % k for j in range(m)} if split else set(range(k))
        term = torch.zeros_like(theta)
        for i in sorted(probes):
            others = [own[j] for j in range(k) if j != i and not (split and j in probes)]
            v = displacement(objective, [g * measured for g in others], own[i] * measured)
            length = 1.0 if normalize == "direction" else 2 * norm(v)
            term += length * (gradients[i](theta + RADIUS * unit(v)) - own[i]) / RADIUS / m
        if normalize == "gradient":
            term = unit(term) * norm(mean)
        return mean - value * term

    return step_gradient


def displacement(objective: str, others: Sequence[Tensor], g: Tensor) -> Tensor:
    """v_i of docs/objectives.md."""
    a = torch.stack(list(others)).mean(0)
    if objective == "cosine":
        u, own = torch.stack([unit(x) for x in others]).mean(0), unit(g)
        return (u - (u * own).sum(-1, keepdim=True) * own) / norm(g).clamp_min(torch.finfo(g.dtype).tiny)
    return {"dot": a, "norm": -a, "variance": a - g}[objective]


FIRST_LAYER = ", first layer"
METHODS: dict[str, Callable[..., Tensor]] = {
    "plain": plain,
    "SAM": sam,
    "Reptile": reptile,
    "FOMAML": fomaml,
    "dot": agreement("dot", "gradient", False),
    "norm": agreement("norm", "direction", False),
    "variance": agreement("variance", "direction", False),
    "cosine": agreement("cosine", "none", False),
    "cosine, split": agreement("cosine", "none", True),
}
NOT_RAMPED = ("plain", "SAM", "Reptile", "FOMAML")


def penalised(losses: Losses, arm: str, theta: Tensor, batches: Sequence[Batch], value: Tensor) -> Tensor:
    """The gradient of mean L + weight penalty, Fishr's or IRMv1's penalty; divided: of that over max(1, weight)."""
    irm, divided = arm.startswith("IRMv1"), arm.endswith("divided")

    def objective(flat: Tensor, batches: list[Batch], weight: Tensor) -> Tensor:
        mean = torch.stack([losses.loss(flat, b) for b in batches]).mean()
        if irm:
            penalty = torch.stack([losses.irm(flat, b) for b in batches]).mean()
        else:
            variances = torch.stack([losses.variance(flat, b) for b in batches])
            penalty = (variances - variances.mean(0)).square().sum(1).mean()
        total = mean + weight.squeeze() * penalty
        return total / weight.squeeze().clamp_min(1) if divided else total

    return vmap(vmap(grad(objective), (0, None, 0)), (0, 0, 0))(theta, list(batches), value)


class Optimizer:
    """SGD or AdamW (betas 0.9 and 0.999, eps 1e-8) with a lr and a weight decay for each run."""

    def __init__(self, kind: str, lr: Tensor, decay: Tensor) -> None:
        self.kind, self.lr, self.decay = kind, lr, decay
        self.step_count, self.first, self.second = 0, torch.zeros(()), torch.zeros(())

    def step(self, theta: Tensor, gradient: Tensor) -> Tensor:
        """The next parameters."""
        if self.kind == "sgd":
            return theta - self.lr * (gradient + self.decay * theta)
        self.step_count += 1
        self.first = 0.9 * self.first + 0.1 * gradient
        self.second = 0.999 * self.second + 0.001 * gradient.square()
        mean, square = self.first / (1 - 0.9**self.step_count), self.second / (1 - 0.999**self.step_count)
        return theta * (1 - self.lr * self.decay) - self.lr * mean / (square.sqrt() + 1e-8)


def run_all(task: Task, jobs: Sequence[Job], with_curve: bool) -> list[dict[str, Any]]:
    """The rows of jobs that differ in seed, lr and value only: every setting on every seed.

    Their seconds are not recorded: those of one run among many are no figure of a method.
    """
    seeds = list(dict.fromkeys(job.seed for job in jobs))
    settings = list(dict.fromkeys((job.lr, job.value) for job in jobs))
    problems = [task.problem(seed, jobs[0].mixed) for seed in seeds]
    arm, steps = ARMS[jobs[0].arm], jobs[0].steps
    losses = Losses(problems[0].model, problems[0].loss_fn)
    gradient = batched(grad(losses.loss))
    theta = torch.stack([_flat(p.model) for p in problems])[:, None].repeat(1, len(settings), 1)
    lr, value = (
        torch.tensor(column)[None, :, None].expand(len(seeds), -1, 1) for column in zip(*settings, strict=True)
    )
    optimizer = Optimizer(
        task.optimizer, lr, value if arm.decay else torch.tensor(0.0 if task.optimizer == "sgd" else 0.01)
    )
    # Now, before `_evaluated` writes into these models.
    untrained: list[Callable[[], Metrics]] = [partial(dict[str, float], p.evaluate(p.model)) for p in problems]
    evaluations: list[list[Evaluations]] = [[[] for _ in settings] for _ in seeds]
    name = "plain" if arm.make is ARMS["plain"].make else arm.name.removesuffix(FIRST_LAYER)
    where = losses.first(theta) if arm.name.endswith(FIRST_LAYER) else 1.0
    for step in range(steps):
        of_seeds = [in_turn(p, seed, step) for p, seed in zip(problems, seeds, strict=True)]
        batches = tree_map(lambda *parts: torch.stack(parts), *of_seeds)
        weight = value * (1.0 if name in NOT_RAMPED else ramp(task.ramp, step))
        if arm.needs_sources:
            filled = penalised(losses, name, theta, batches, weight)
        else:
            of_batch = [lambda at, b=b: gradient(at, b) for b in batches]
            filled = METHODS[name](of_batch, theta, weight, step, where)
        theta = optimizer.step(theta, filled)
        if (step + 1) % task.evaluate_every == 0 or step + 1 == steps:
            for i, p in enumerate(problems):
                for j in range(len(settings)):
                    metrics = _evaluated(p, theta[i, j])
                    evaluations[i][j].append((step + 1, finite_or(metrics, untrained[i])))
    k = len(problems[0].micro_batches(0))
    rows = {}
    for i, seed in enumerate(seeds):
        for j, setting in enumerate(settings):
            job = jobs[0]._replace(seed=seed, lr=setting[0], value=setting[1])
            rows[job] = row_of(job, evaluations[i][j], arm.passes(k) * steps, with_curve) | {"engine": "replicas"}
    return [rows[job] for job in jobs]


def _flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters() if p.requires_grad])


def _evaluated(problem: Any, flat: Tensor) -> dict[str, float] | None:
    """The metrics at these parameters; None where they are not finite."""
    if not bool(flat.isfinite().all()):
        return None
    params = [p for p in problem.model.parameters() if p.requires_grad]
    with torch.no_grad():
        for p, part in zip(params, flat.split([p.numel() for p in params]), strict=True):
            p.copy_(part.view_as(p))
    return problem.evaluate(problem.model)
