"""Whole optimizer steps written out in plain torch, from equations and from nothing in the package.

The benchmarks time them against gradalign; tests/benchmarks checks them against double backward. Each is made of a model, a
loss and an optimizer, and has `step(micro_batches)`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

RADIUS = 0.01

LossFn = Callable[[Any], Tensor]
Tensors = list[Tensor]
Displace = Callable[[Tensors, Tensors], Tensors]
PutBack = Callable[[Tensors, Tensors], Any]


class ReferenceMethod(ABC):
    """Fills `.grad` in its own way, then steps.

    Args:
        model: what is trained.
        loss_fn: the loss of one micro-batch.
        optimizer: steps on `.grad`.
    """

    def __init__(self, model: nn.Module, loss_fn: LossFn, optimizer: torch.optim.Optimizer) -> None:
        self.model, self.loss_fn, self.optimizer = model, loss_fn, optimizer
        self.params = [p for p in model.parameters() if p.requires_grad]

    def step(self, micro_batches: list[Any]) -> None:
        """One optimizer step."""
        self.fill(micro_batches)
        self.optimizer.step()
        self.optimizer.zero_grad()

    @abstractmethod
    def fill(self, micro_batches: list[Any]) -> None:
        """Leave the method's gradient in `.grad`."""

    def accumulate(self, micro_batches: list[Any], coefficient: float) -> None:
        for batch in micro_batches:
            (self.loss_fn(batch) * coefficient).backward()


class TwoStepSAM(ReferenceMethod):
    """Sharpness-aware minimization as two calls, the way most code bases have it since davda54/sam.

        e = rho g / (||g|| + 1e-12),      .grad = g(theta + e)

    Foret et al. 2021, arXiv:2010.01412, equation 2. A copy of every parameter is kept, and becomes the
    parameter's data again. Dropout masks of the second pass are new ones.
    """

    def __init__(self, model: nn.Module, loss_fn: LossFn, optimizer: torch.optim.Optimizer, rho: float) -> None:
        super().__init__(model, loss_fn, optimizer)
        self.rho = rho
        self.kept: dict[nn.Parameter, Tensor] = {}

    @torch.no_grad()
    def first_step(self) -> None:
        norm = torch.stack([p.grad.norm(p=2) for p in self.params if p.grad is not None]).norm(p=2)
        scale = self.rho / (norm + 1e-12)
        for p in self.params:
            if p.grad is not None:
                self.kept[p] = p.data.clone()
                p.add_(p.grad * scale)
        self.optimizer.zero_grad()

    @torch.no_grad()
    def second_step(self) -> None:
        for p, value in self.kept.items():
            p.data = value
        self.kept = {}

    def fill(self, micro_batches: list[Any]) -> None:
        self.accumulate(micro_batches, 1 / len(micro_batches))
        self.first_step()
        self.accumulate(micro_batches, 1 / len(micro_batches))
        self.second_step()


class FiniteDifference(ReferenceMethod):
    """What gradalign's `split` (dot, direction, forward, m = k/4) computes, by hand.

        .grad = gbar - weight / m sum over the last m of (g_i(theta + radius a^) - g_i(theta)) / radius

    with a the mean gradient of the anchors. Autograd adds scaled losses, so that the arithmetic on parameters is a norm, a
    copy, a displacement and its undoing: in a loop over tensors ("loop"), by torch._foreach ("foreach"), or the loop under
    torch.compile ("compile"). Random numbers are replayed; buffers are not.
    """

    def __init__(
        self, model: nn.Module, loss_fn: LossFn, optimizer: torch.optim.Optimizer, weight: float, how: str
    ) -> None:
        super().__init__(model, loss_fn, optimizer)
        self.weight = weight
        self.displace, self.put_back = ARITHMETIC[how]()

    def fill(self, micro_batches: list[Any]) -> None:
        k = len(micro_batches)
        m = min(k - 1, max(1, round(k / 4)))
        anchors, probes = micro_batches[:-m], micro_batches[-m:]
        self.accumulate(anchors, 1 / k)
        moved: Tensors = [p for p in self.params if p.grad is not None]
        with torch.no_grad():
            backups = self.displace(moved, [p.grad for p in moved if p.grad is not None])
        state = self.random_state()
        c = self.weight / RADIUS
        self.accumulate(probes, -c / m)
        with torch.no_grad():
            self.put_back(moved, backups)
        self.set_random_state(state)
        self.accumulate(probes, 1 / k + c / m)

    def random_state(self) -> tuple[Tensor, Tensor | None]:
        device = self.params[0].device
        return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def set_random_state(self, state: tuple[Tensor, Tensor | None]) -> None:
        torch.set_rng_state(state[0])
        if state[1] is not None:
            torch.cuda.set_rng_state(state[1], self.params[0].device)


def _loop() -> tuple[Displace, PutBack]:
    def displace(params: Tensors, grads: Tensors) -> Tensors:
        norm = torch.stack([g.norm() for g in grads]).norm()
        backups = [p.clone() for p in params]
        for p, g in zip(params, grads, strict=True):
            p.add_(g * (RADIUS / norm))
        return backups

    def put_back(params: Tensors, backups: Tensors) -> None:
        for p, backup in zip(params, backups, strict=True):
            p.copy_(backup)

    return displace, put_back


def _foreach() -> tuple[Displace, PutBack]:
    def displace(params: Tensors, grads: Tensors) -> Tensors:
        norm = torch.stack(torch._foreach_norm(grads)).norm()
        backups = torch._foreach_clone(params) if hasattr(torch, "_foreach_clone") else [p.clone() for p in params]
        torch._foreach_add_(params, torch._foreach_mul(grads, RADIUS / norm))
        return list(backups)

    return displace, torch._foreach_copy_


def _compile() -> tuple[Displace, PutBack]:
    displace, put_back = _loop()
    return torch.compile(displace), torch.compile(put_back)


ARITHMETIC = {"loop": _loop, "foreach": _foreach, "compile": _compile}


class NaiveDoubleBackward(ReferenceMethod):
    """mean_i L_i - weight * mean over i != j of g_i . g_j as one expression, every pair in it, that autograd differentiates."""

    def __init__(self, model: nn.Module, loss_fn: LossFn, optimizer: torch.optim.Optimizer, weight: float) -> None:
        super().__init__(model, loss_fn, optimizer)
        self.weight = weight
        self.passes: int | None = None  # of a step: k, and k more through their gradients

    def fill(self, micro_batches: list[Any]) -> None:
        k = len(micro_batches)
        self.passes = 2 * k
        losses = [self.loss_fn(batch) for batch in micro_batches]
        gradients = [torch.autograd.grad(loss, self.params, create_graph=True) for loss in losses]
        dots = [
            sum((x * y).sum() for x, y in zip(gradients[i], gradients[j], strict=True))
            for i in range(k)
            for j in range(i)
        ]
        agreement = 2 * sum(dots) / (k * (k - 1))
        objective: Any = sum(losses) / k - self.weight * agreement
        objective.backward()


class FullHessian(ReferenceMethod):
    """The term over all pairs with every n x n Hessian from `torch.func.hessian`.

    .grad = gbar - weight / k sum_i H_i a_i^,      a_i the mean gradient of the micro-batches other than i
    """

    def __init__(self, model: nn.Module, loss_fn: LossFn, optimizer: torch.optim.Optimizer, weight: float) -> None:
        super().__init__(model, loss_fn, optimizer)
        self.weight = weight
        self.names = [name for name, p in model.named_parameters() if p.requires_grad]
        self.passes: int | None = None  # of a step: k gradients, and k n for the columns of the Hessians

    def loss_at(self, flat: Tensor, batch: Any) -> Tensor:
        pieces = flat.split([p.numel() for p in self.params])
        values = {n: v.view_as(p) for n, v, p in zip(self.names, pieces, self.params, strict=True)}
        swap = torch.func.functional_call
        return swap(_Loss(self.model, self.loss_fn), {f"model.{n}": v for n, v in values.items()}, (batch,))

    def fill(self, micro_batches: list[Any]) -> None:
        k = len(micro_batches)
        theta = torch.cat([p.detach().reshape(-1) for p in self.params])
        self.passes = k + k * len(theta)
        gradients = torch.stack([torch.func.grad(self.loss_at)(theta, batch) for batch in micro_batches])
        mean = gradients.mean(0)
        total = mean.clone()
        for g, batch in zip(gradients, micro_batches, strict=True):
            a = (k * mean - g) / (k - 1)
            total -= self.weight / k * torch.func.hessian(self.loss_at)(theta, batch) @ (a / a.norm())
        for p, g in zip(self.params, total.split([p.numel() for p in self.params]), strict=True):
            p.grad = g.view_as(p).clone()


class _Loss(torch.nn.Module):
    """The loss as a module that holds the model, which `functional_call` needs."""

    def __init__(self, model: nn.Module, loss_fn: LossFn) -> None:
        super().__init__()
        self.model, self.loss_fn = model, loss_fn

    def forward(self, batch: Any) -> Tensor:
        return self.loss_fn(batch)


class Invariance(ReferenceMethod):
    """Mean loss plus a penalty on how the micro-batches, one a source, differ.

        .grad of mean_e L_e + weight penalty

    Divided, which bounds the step: (mean_e L_e + weight penalty) / max(1, weight). Adam, which rescales what it gets, hardly
    sees the difference; SGD does: there it divides the learning rate by a weight above 1. What the penalties look at is the
    last linear layer: its input h (samples, width) and its output z (samples, classes), of a loss that is a mean over samples.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFn,
        optimizer: torch.optim.Optimizer | None,
        weight: float,
        divided: bool = False,
    ) -> None:
        super().__init__(model, loss_fn, optimizer)  # type: ignore[arg-type]
        self.weight = weight
        self.divisor = max(1.0, weight) if divided else 1.0
        self.last = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]

    def fill(self, micro_batches: list[Any]) -> None:
        losses, penalty = self.losses_and_penalty(micro_batches)
        total = torch.stack(losses).mean() + self.weight * penalty
        (total / self.divisor).backward()

    @abstractmethod
    def losses_and_penalty(self, micro_batches: list[Any]) -> tuple[Tensors, Tensor]:
        """The losses, and the penalty as a function of the parameters."""


class IRMv1(Invariance):
    """penalty = mean_e (d/dw L_e(w z))^2 at w = 1.

    Arjovsky et al. 2019, arXiv:1907.02893, the practical version of invariant risk minimization.
    """

    def losses_and_penalty(self, micro_batches: list[Any]) -> tuple[Tensors, Tensor]:
        w = torch.ones((), dtype=self.last.weight.dtype, device=self.last.weight.device, requires_grad=True)
        hook = self.last.register_forward_hook(lambda module, inputs, z: z * w)
        try:
            losses = [self.loss_fn(batch) for batch in micro_batches]
        finally:
            hook.remove()
        slopes = [torch.autograd.grad(loss, w, create_graph=True)[0] for loss in losses]
        return losses, torch.stack(slopes).square().mean()


class Fishr(Invariance):
    """penalty = mean_e ||v_e - mean_e' v_e'||^2, v_e the variance over samples of the gradients of weight and bias.

    Of the last linear layer alone, as in Rame, Dancette, Cord 2022, arXiv:2109.02934, where the gradient of a sample is
    delta h^T (weight) and delta (bias), delta = dL/dz of that sample. No running means.
    """

    def losses_and_penalty(self, micro_batches: list[Any]) -> tuple[Tensors, Tensor]:
        seen: list[tuple[Tensor, Tensor]] = []
        hook = self.last.register_forward_hook(lambda module, inputs, z: seen.append((inputs[0], z)))
        try:
            losses = [self.loss_fn(batch) for batch in micro_batches]
        finally:
            hook.remove()
        variances = torch.stack([self.variance(loss, h, z) for loss, (h, z) in zip(losses, seen, strict=True)])
        return losses, (variances - variances.mean(0)).square().sum(1).mean()

    def variance(self, loss: Tensor, h: Tensor, z: Tensor) -> Tensor:
        n = len(z)
        (mean_delta,) = torch.autograd.grad(loss, z, create_graph=True)
        delta = n * mean_delta
        if self.last.bias is not None:
            h = torch.cat([h, h.new_ones(n, 1)], 1)
        squares = (delta.square().T @ h.square()) / n
        mean = (delta.T @ h) / n
        return ((squares - mean.square()) * n / (n - 1)).reshape(-1)
