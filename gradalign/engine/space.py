"""The trainable parameters seen as one vector of length n, and what is done with such vectors.

A `Vector` is a list with one entry per parameter; None stands for zeros that were never written (no pass reached it).
Every function makes one op call per device; sums over devices are collected on the `home` device. Nothing is read back to
the host.
"""

from __future__ import annotations

import functools
import math
import operator
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from types import ModuleType
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.nn import Parameter

from gradalign.backends import dispatch
from gradalign.engine.devices import to_device
from gradalign.engine.ranks import Ranks

Vector = list[Tensor | None]
_Args = ParamSpec("_Args")
_Result = TypeVar("_Result")
# For `map`, the cheapest walk through a vector.
there = functools.partial(operator.is_not, None)
_grad = operator.attrgetter("grad")


def no_grad(function: Callable[_Args, _Result]) -> Callable[_Args, _Result]:
    """What `torch.no_grad()` does for a function, without an object for each of the dozens of calls in a step."""

    @functools.wraps(function)
    def run(*args: _Args.args, **kwargs: _Args.kwargs) -> _Result:
        before = torch.is_grad_enabled()
        torch._C._set_grad_enabled(False)
        try:
            return function(*args, **kwargs)
        finally:
            torch._C._set_grad_enabled(before)

    return run


class ParamSpace:
    """The vector space of one step.

    Args:
        params: all trainable parameters, each once.
        measured: those of them that A is measured on and that are displaced.
        backend: the name of the backend that runs the ops.
        ranks: the processes that train the parameters together; None: this one alone.
    """

    def __init__(
        self,
        params: Sequence[Parameter],
        measured: Iterable[Parameter] | None,
        backend: str,
        ranks: Ranks | None = None,
    ) -> None:
        self.ranks = ranks
        self.params = list(params)
        self._copies = None if ranks is None else ranks.copies(self.params)
        self.everywhere = list(range(len(self.params)))
        self.measured, self.others = self.everywhere, []
        if measured is not None:
            chosen = {id(p) for p in measured}
            self.measured = [i for i, p in enumerate(self.params) if id(p) in chosen]
            self.others = sorted(set(self.everywhere) - set(self.measured))
        self.measured_dtypes = frozenset(self.params[i].dtype for i in self.measured)
        self.home = self.params[0].device
        self.epsilon = _epsilon([self.params[i] for i in self.measured])
        kinds = {p.device.type for p in self.params}
        numel = sum(self.params[i].numel() for i in self.measured)
        self.sums_rounding = sums_rounding("cpu" if kinds == {"cpu"} else "others", self.epsilon, numel)
        dtypes: dict[torch.device, set[torch.dtype]] = defaultdict(set)
        self._kinds = [(p.device, p.dtype) for p in self.params]
        for device, dtype in self._kinds:
            dtypes[device].add(dtype)
        self._backends = {d: dispatch.backend(backend, d.type, frozenset(kinds)) for d, kinds in dtypes.items()}
        self.at_home = self._backends[self.home]
        self.devices = sorted(dtypes, key=str)
        self._one_device = len(dtypes) == 1
        self._one_call = self._one_device and ranks is None  # an op on whole vectors is one call
        # On a GPU they are made anew: a captured step must not find them unwritten. Later steps can save them for backward.
        self._zero: Tensor | None = None
        self._one: Tensor | None = None
        if self.home.type == "cpu":
            with torch.inference_mode(False):
                self._zero, self._one = self.scalar(0.0), self.scalar(1.0)

    def is_of(self, params: Sequence[Parameter]) -> bool:
        """Whether it is the space of these parameters, on the devices and of the dtypes that they have now."""
        same = len(params) == len(self.params) and all(map(operator.is_, params, self.params))
        return same and self.ranks is None and self._kinds == [(p.device, p.dtype) for p in params]

    @property
    def tensors(self) -> Sequence[Tensor]:
        """What of the parameters this process holds; writes raise the versions of these."""
        return self.params if self.ranks is None else self.ranks.local(self.params)

    def scalar(self, value: float) -> Tensor:
        """0-dim float64 tensor on the home device (a fill, not a copy: no synchronisation)."""
        return torch.full((), value, dtype=torch.float64, device=self.home)

    def one(self) -> Tensor:
        """1 as `scalar` has it, only to be read."""
        return self.scalar(1.0) if self._one is None else self._one

    def zero(self) -> Tensor:
        """0, likewise."""
        return self.scalar(0.0) if self._zero is None else self._zero

    def zeros(self) -> Vector:
        """The zero vector, nothing allocated."""
        return [None] * len(self.params)

    def grads(self) -> Vector:
        """The `.grad` of every parameter."""
        return list(map(_grad, self.params)) if self.ranks is None else self.ranks.gradients(self.params)

    def set_grads(self, vector: Vector | None) -> None:
        """Make the vector the `.grad` of the parameters; None: none of them has one."""
        grads: Sequence[Tensor | None] = self.zeros() if vector is None else vector
        if self.ranks is not None:
            grads = self.ranks.as_gradients(self.params, grads)
        elif len(grads) == len(self.params) and all(map(operator.is_, map(_grad, self.params), grads)):
            return
        for p, g in zip(self.params, grads, strict=True):
            if p.grad is not g:
                p.grad = g

    def total(self, sums: Tensor) -> Tensor:
        """Sums over what this process holds, added over ranks."""
        return sums if self.ranks is None else self.ranks.total(sums)

    def part(self, total: Tensor) -> Tensor:
        """What this process adds to a sum that is known already, so that `total` gives it again."""
        return total if self.ranks is None else self.ranks.part(total)

    def after_move(self) -> None:
        """Copies of the parameters' values from before the move are let go."""
        torch.clear_autocast_cache()  # it may hold low-precision copies
        if self.ranks is not None:
            self.ranks.parameters_are_read()

    def fill(self, vector: Vector) -> None:
        """Zeros for the entries that a vector lacks."""
        vector[:] = [torch.zeros_like(p) if t is None else t for p, t in zip(self.params, vector, strict=True)]

    def norm_dot(self, x: Vector, y: Vector | None = None, over: list[int] | None = None) -> Tensor:
        """[x.x, x.y, y.y] over the given entries (default: all); without y the last two are 0."""
        return self.total(self.partial_norm_dot(x, y, over))

    @no_grad
    def partial_norm_dot(self, x: Vector, y: Vector | None = None, over: list[int] | None = None) -> Tensor:
        """`norm_dot` over what this process holds; `total` is still to be taken."""
        if self._whole(over, x, y):
            return self.at_home.norm_dot(x, y)

        def run(backend: ModuleType, group: list[int]) -> Tensor:
            if y is None:
                return backend.norm_dot(self._take(x, group))
            both, x_only, y_only = _split(group, x, y)
            sums = [backend.norm_dot(self._take(x, both), self._take(y, both))] if both else []
            if x_only:
                sums.append(backend.norm_dot(self._take(x, x_only)))
            if y_only:
                sums.append(backend.norm_dot(self._take(y, y_only)).flip(0))
            return _added(sums)

        return self._sum(3, run, over, x, *([] if y is None else [y]))

    @no_grad
    def accumulate(
        self, acc: Vector, grads: Vector, scale: Tensor | None = None, over: list[int] | None = None
    ) -> Tensor:
        """acc <- acc + scale g, entries of `acc` made where they are missing; returns [g.g, g.acc], acc before.

        The sums are over what this process holds, `total` is still to be taken.

        Without a scale (1) a missing entry takes the gradient's own tensor, as autograd does.
        """
        factor = self.one() if scale is None else scale
        if self._whole(over, acc, grads):
            return self.at_home.accumulate_(acc, grads, factor)

        def run(backend: ModuleType, group: list[int]) -> Tensor:
            missing = [] if all(map(there, acc)) else [i for i in group if acc[i] is None]
            sums: Tensor | None = None
            if missing and scale is None:
                sums = backend.norm_dot(self._take(grads, missing))[:2]
                group = [i for i in group if acc[i] is not None]
            for i in missing:
                g = grads[i]
                assert g is not None
                acc[i] = g if scale is None else torch.zeros_like(g)
            if not group:
                assert sums is not None
                return sums
            added = backend.accumulate_(self._take(acc, group), self._take(grads, group), self._near(factor, group))
            return added if sums is None else added + sums

        return self._sum(2, run, over, grads)

    @no_grad
    def combine(self, out: Vector, x: Vector, y: Vector, a: Tensor, b: Tensor) -> Tensor | None:
        """out <- a x + b y, where `out` may be `x`; an entry that x lacks is made, one that y lacks is left alone.

        Returns:
            out.out; None where that takes another look.
        """
        if self._whole(None, x, y):
            return self.at_home.combine_(out, x, y, a, b)[0]
        both, _, y_only = _split(self.everywhere, x, y)
        for backend, group in self._groups(both):
            backend.combine_(
                self._take(out, group),
                self._take(x, group),
                self._take(y, group),
                self._near(a, group),
                self._near(b, group),
            )
        if y_only:
            self.accumulate(out, y, b, over=y_only)
        return None

    @no_grad
    def perturb(
        self,
        backups: Vector,
        x: Vector,
        scale: Tensor,
        y: Vector | None,
        scale_y: Tensor | None,
        over: list[int],
        from_backups: bool = False,
    ) -> Tensor:
        """backup <- theta, theta <- theta + scale x + scale_y y; returns [delta.d, d.d, delta.delta].

        With `from_backups` the backups hold theta and are only read.
        """
        if self._whole(over, x, y):
            return self.at_home.perturb_(self.params, backups, x, scale, y, scale_y, from_backups=from_backups)
        nothing: Vector = self.zeros() if y is None else y

        def run(backend: ModuleType, group: list[int]) -> Tensor:
            both, x_only, y_only = ([], group, []) if y is None else _split(group, x, nothing)
            sums = []
            for part, first, factor, second in (
                (both, x, scale, nothing),
                (x_only, x, scale, None),
                (y_only, nothing, scale_y, None),
            ):
                if part and factor is not None:
                    args = [self._take(first, part), self._near(factor, part)]
                    if second is not None and scale_y is not None:
                        args += [self._take(second, part), self._near(scale_y, part)]
                    targets = self._take(self.params, part), self._take(backups, part)
                    sums.append(backend.perturb_(*targets, *args, from_backups=from_backups))
            return _added(sums)

        return self.total(self._sum(3, run, over, x, nothing))

    @no_grad
    def restore(self, backups: Vector, over: list[int]) -> None:
        """theta <- backup."""
        for backend, group in self._groups(over):
            backend.restore_(self._take(self.params, group), self._take(backups, group))

    @no_grad
    def swap_out(self, backups: Vector, over: list[int]) -> None:
        """Exchange, theta being in the backups."""
        for backend, group in self._groups(over):
            backend.swap_(self._take(backups, group), self._take(self.params, group))

    @no_grad
    def swap_in(self, backups: Vector, over: list[int]) -> None:
        """Exchange, theta being in the parameters."""
        for backend, group in self._groups(over):
            backend.swap_(self._take(self.params, group), self._take(backups, group))

    @no_grad
    def reflect(self, backups: Vector, over: list[int]) -> None:
        """theta + delta -> theta - delta: theta' <- 2 backup - theta'."""
        for backend, group in self._groups(over):
            params = self._take(self.params, group)
            two, minus = (self._near(self.scalar(value), group) for value in (2.0, -1.0))
            backend.combine_(params, self._take(backups, group), params, two, minus)

    def _whole(self, over: list[int] | None, x: Vector, y: Vector | None) -> bool:
        """Whether an op takes all entries of one or two vectors that have them all, in one call."""
        everything = self._one_call and (over is None or over is self.everywhere) and all(map(there, x))
        return everything and (y is None or all(map(there, y)))

    def _near(self, scalar: Tensor, group: list[int]) -> Tensor:
        return scalar if self._one_device else to_device(scalar, self.params[group[0]].device)

    def _take(self, vector: Sequence, group: list[int]) -> list[Tensor]:
        """Entries of a vector, as the tensors that this process holds."""
        entries = list(vector) if group is self.everywhere else [vector[i] for i in group]
        return entries if self.ranks is None else self.ranks.local(entries)

    def _groups(self, over: list[int]) -> list[tuple[ModuleType, list[int]]]:
        if len(self._backends) == 1:
            return [(self.at_home, over)] if over else []
        groups: dict[torch.device, list[int]] = defaultdict(list)
        for i in over:
            groups[self.params[i].device].append(i)
        return [(self._backends[device], group) for device, group in groups.items()]

    def _sum(
        self, num: int, run: Callable[[ModuleType, list[int]], Tensor], over: list[int] | None, *vectors: Vector
    ) -> Tensor:
        """Run on every device's entries that one of the vectors has, and add what comes back."""
        present = self.everywhere if over is None else over
        if not any(all(map(there, v)) for v in vectors):
            present = [i for i in present if any(v[i] is not None for v in vectors)]
        if self._copies is None:
            parts = [run(backend, group) for backend, group in self._groups(present)]
        else:
            parts = [
                run(backend, group) / copies
                for copies in sorted({self._copies[i] for i in present})
                for backend, group in self._groups([i for i in present if self._copies[i] == copies])
            ]
        if not parts:
            return torch.zeros(num, dtype=torch.float64, device=self.home)
        return _added(parts if self._one_device else [to_device(part, self.home) for part in parts])


def _epsilon(params: Sequence[Tensor]) -> float:
    """The relative rounding of a vector of parameters: the root of the mean square of that of its elements."""
    squares = sum(p.numel() * torch.finfo(p.dtype).eps ** 2 for p in params)
    return math.sqrt(squares / max(sum(p.numel() for p in params), 1))


def sums_rounding(device_type: str, epsilon: float, numel: int) -> float:
    """The relative rounding of sums of squares over a vector, as the kernels add them up.

    On the CPU products are added in float64. On a GPU 32 of them (CUDA) or 128 (Triton) are added in float32, and the rest in
    float64: simulated with normally distributed elements, the largest error of 50 such sums was, with 32, 2^-23.8 of them for
    2^10 elements, and fell with the root of their number to 2^-30.3 for 2^22. This is 3.5 times that, and with 128 2.4 times.
    """
    if device_type == "cpu" or epsilon < 1e-10:
        return 2.0**-46
    return 2.0**-17 / math.sqrt(max(numel, 1))


def _added(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)


def _split(group: list[int], x: Vector, y: Vector) -> tuple[list[int], list[int], list[int]]:
    """The entries that both have, only x, only y."""
    if all(map(there, x)) and all(map(there, y)):
        return group, [], []
    both = [i for i in group if x[i] is not None and y[i] is not None]
    x_only = [i for i in group if x[i] is not None and y[i] is None]
    y_only = [i for i in group if x[i] is None and y[i] is not None]
    return both, x_only, y_only
