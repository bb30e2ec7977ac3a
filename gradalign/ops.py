"""The kernels as functions, for training loops of your own.

Every function takes lists of tensors of one device and works on all of them at once. Scalars are 0-dim tensors on that
device, so that nothing is read back to the host; reductions come back as float64 tensors on that device. Arithmetic is done
in the wider of float32 and the storage dtype and rounded once at the store (float64 to 16 bits by way of float32). Where `d`
is the displacement and `delta` what the dtype of the parameters could represent of it:

| op | per element | returns |
|---|---|---|
| `norm_dot(xs, ys)` | - | x.x, x.y, y.y |
| `perturb_(params, backups, xs, scale)` | backup <- theta; theta <- theta + d, d = scale x | delta.d, d.d, delta.delta |
| `restore_(params, backups)` | theta <- backup | |
| `swap_(params, backups)` | exchange | |
| `accumulate_(accs, grads, scale)` | acc <- acc + scale g | g.g, g.acc (acc before) |
| `combine_(outs, xs, ys, a, b)` | out <- a x + b y | out.out |
| `adamw_step_`, `sgd_step_`, `lamb_step_` | one step of the optimizer on unscaled gradients | |

The same ops are registered with the dispatcher as `torch.ops.gradalign.*`, with fakes and mutation marked, so that they
work under `torch.compile`. Examples:

    >>> import torch
    >>> from gradalign import ops
    >>> theta, backup, x = [torch.zeros(3)], [torch.empty(3)], [torch.ones(3)]
    >>> ops.perturb_(theta, backup, x, torch.tensor(0.5))
    tensor([0.7500, 0.7500, 0.7500], dtype=torch.float64)
    >>> ops.restore_(theta, backup)
    >>> theta[0]
    tensor([0., 0., 0.])
"""

from __future__ import annotations

from itertools import chain
from operator import attrgetter
from types import ModuleType

import torch
from torch import Tensor

from gradalign.backends import dispatch, op_validation, signatures
from gradalign.backends.signatures import (
    SCHEMAS,
    AdamWOptions,
    LAMBOptions,
    SGDOptions,
    StepOptions,
    StepScalars,
    StepTensors,
    Tensors,
)

__all__ = [
    "accumulate_",
    "adamw_step_",
    "combine_",
    "lamb_step_",
    "norm_dot",
    "perturb_",
    "restore_",
    "sgd_step_",
    "swap_",
]

_library = signatures.define("gradalign")


def _implement(op: str) -> None:
    """Register what runs the op: the backend that `dispatch` chooses for the tensors."""

    def kernel(first: Tensors, *args: object, **kwargs: object) -> Tensor | None:
        if not first:
            return signatures.sums(op, torch.zeros, first)
        with torch.no_grad():  # parameters are written in place
            return signatures.call(_backend(first, *args), op, first, *args, **kwargs)

    _library.impl(op, kernel, "CompositeExplicitAutograd")


def _backend(first: Tensors, *args: object) -> ModuleType:
    lists = [first, *(a for a in args if isinstance(a, (list, tuple)))]
    return dispatch.backend("auto", first[0].device.type, frozenset(map(attrgetter("dtype"), chain(*lists))))


for _op in SCHEMAS:
    _implement(_op)


def norm_dot(xs: Tensors, ys: Tensors | None = None) -> Tensor:
    """[x.x, x.y, y.y] summed over all tensors; without `ys` the last two are 0.

    On a GPU products are float32 unless a tensor is float64, and so is the sum of up to 32 of them (`native`) or 16,384
    (`triton`): elements below 1e-19 lose digits, those below 3e-23 count as 0, and above 3e18 (`native`) or 1e17 (`triton`) a
    sum can be infinite. On the CPU the range is that of float64. The same holds for the sums that other ops return.

    Args:
        xs: tensors of one device.
        ys: tensors of the same shapes, or None.

    Returns:
        float64 tensor of shape (3,) on that device.

    Raises:
        ValueError: lists that differ in length, shapes or devices.
        TypeError: tensors that are not dense, real and floating-point.
    """
    _check("norm_dot", {}, {"xs": xs} if ys is None else {"xs": xs, "ys": ys})
    return torch.ops.gradalign.norm_dot(xs, ys)


def perturb_(
    params: Tensors,
    backups: Tensors,
    xs: Tensors,
    scale: Tensor,
    ys: Tensors | None = None,
    scale_y: Tensor | None = None,
    from_backups: bool = False,
) -> Tensor:
    """Keep theta and displace it: backup <- theta; theta <- theta + d with d = scale x + scale_y y.

    A scale of 0 selects a displacement of 0, even where x is inf or NaN. Backups may be the very tensors of `xs` or `ys`
    (read before they are overwritten). With `from_backups` the backups already hold theta, in the same or a wider
    dtype (fp32 masters): they are read and not written, and theta <- round(backup + d), whatever the parameters hold.

    Args:
        params: the tensors to displace.
        backups: where theta is kept; the same shapes, and the same dtypes unless `from_backups`.
        xs: directions, the same shapes.
        scale: 0-dim tensor, multiplies `xs`.
        ys: further directions, or None.
        scale_y: 0-dim tensor, multiplies `ys`.
        from_backups: read theta from the backups.

    Returns:
        float64 tensor [delta.d, d.d, delta.delta], delta being the displacement that the dtype could represent.

    Raises:
        ValueError: lists that differ in length, shapes or devices, or share memory; ys without scale_y, or the reverse.
        TypeError: tensors that are not dense, real and floating-point; backups that cannot hold theta.
    """
    if (ys is None) != (scale_y is None):
        given, missing = ("ys", "scale_y") if scale_y is None else ("scale_y", "ys")
        raise ValueError(f"perturb_: expected ys and scale_y together, or neither; got {given} without {missing}")
    mutated = {"params": params, "backups": backups}
    read = {"xs": xs} if ys is None else {"xs": xs, "ys": ys}
    _check("perturb_", mutated, read, holds="wider" if from_backups else "same", scale=scale, scale_y=scale_y)
    return torch.ops.gradalign.perturb_(params, backups, xs, scale, ys, scale_y, from_backups)


def restore_(params: Tensors, backups: Tensors) -> None:
    """Put theta back: theta <- backup, bit for bit where the dtypes agree, else rounded (float64 to 16 bits by way of float32).

    Args:
        params: the tensors to restore; written.
        backups: theta, the same shapes, of any floating dtype.

    Raises:
        ValueError: lists that differ in length, shapes or devices, or share memory.
        TypeError: tensors that are not dense, real and floating-point.
    """
    _check("restore_", {"params": params}, {"backups": backups})
    torch.ops.gradalign.restore_(params, backups)


def swap_(params: Tensors, backups: Tensors) -> None:
    """Exchange params and backups, bit for bit.

    Args:
        params: tensors; written.
        backups: tensors of the same shapes and dtypes; written.

    Raises:
        ValueError: lists that differ in length, shapes or devices, or share memory.
        TypeError: tensors that are not dense, real and floating-point, or differ in dtype.
    """
    _check("swap_", {"params": params, "backups": backups}, {}, holds="same")
    torch.ops.gradalign.swap_(params, backups)


def accumulate_(accs: Tensors, grads: Tensors, scale: Tensor) -> Tensor:
    """acc <- acc + scale g, of any mix of dtypes; a scale of 0 selects acc, even where g is inf or NaN.

    Args:
        accs: the accumulators; written.
        grads: what is added, the same shapes.
        scale: 0-dim tensor.

    Returns:
        float64 tensor [g.g, g.acc], acc being the value before.

    Raises:
        ValueError: lists that differ in length, shapes or devices, or share memory.
        TypeError: tensors that are not dense, real and floating-point.
    """
    _check("accumulate_", {"accs": accs}, {"grads": grads}, scale=scale)
    return torch.ops.gradalign.accumulate_(accs, grads, scale)


def combine_(outs: Tensors, xs: Tensors, ys: Tensors, a: Tensor, b: Tensor) -> Tensor:
    """out <- a x + b y; an out may be its own x or y.

    Args:
        outs: where the result goes; written.
        xs: tensors of the same shapes.
        ys: tensors of the same shapes.
        a: 0-dim tensor, multiplies `xs`.
        b: 0-dim tensor, multiplies `ys`.

    Returns:
        float64 tensor [out.out] of the stored values.

    Raises:
        ValueError: lists that differ in length, shapes or devices, or share memory.
        TypeError: tensors that are not dense, real and floating-point.
    """
    _check("combine_", {"outs": outs}, {"xs": xs, "ys": ys}, a=a, b=b)
    return torch.ops.gradalign.combine_(outs, xs, ys, a, b)


def adamw_step_(
    params: Tensors,
    grads: Tensors,
    exp_avgs: Tensors,
    exp_avg_sqs: Tensors,
    max_exp_avg_sqs: Tensors,
    masters: Tensors,
    steps: Tensors,
    grad_scale: Tensor,
    lr: Tensor,
    weight_decay: Tensor,
    skip: Tensor | None = None,
    seed: Tensor | None = None,
    *,
    beta1: float,
    beta2: float,
    eps: float,
    decoupled: bool = True,
    maximize: bool = False,
    zero_grads: bool = False,
) -> None:
    """One step of AdamW, in one pass over memory.

        g <- grad_scale grad;  theta <- (1 - lr weight_decay) theta      (coupled: g <- g + weight_decay theta)
        m <- beta1 m + (1 - beta1) g;  v <- beta2 v + (1 - beta2) g^2
        theta <- theta - lr m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps)

    (Loshchilov and Hutter 2019, arXiv:1711.05101; coupled: Kingma and Ba 2015, arXiv:1412.6980.) All scalars are 0-dim
    tensors on the parameters' device.

    Args:
        params: theta; written.
        grads: the gradients; written only with `zero_grads`.
        exp_avgs: m, of any floating dtype; written.
        exp_avg_sqs: v; written.
        max_exp_avg_sqs: the largest v so far, used instead of v (Reddi et al. 2018, arXiv:1904.09237), or empty; written.
        masters: float32 copies of theta, or empty. They are updated, and the parameters are their rounding.
        steps: t - 1, one tensor for each parameter; incremented unless skipped.
        grad_scale: multiplies the gradients: the clip coefficient over the loss scale.
        lr: the learning rate.
        weight_decay: the decay coefficient.
        skip: where it is not 0, parameters, moments, masters and steps stay as they are.
        seed: int64; parameters are rounded stochastically (bfloat16 without masters only), with the stream that
            `gradalign.backends.rounding` defines from it, t and the place in the list.
        beta1: decay rate of m.
        beta2: decay rate of v.
        eps: added to the root of v.
        decoupled: whether weight decay bypasses the moments (AdamW) or is part of the gradient (Adam).
        maximize: go up instead of down.
        zero_grads: write zeros into the gradients, also where the step is skipped.

    Raises:
        ValueError: lists that differ in length, shapes or devices, or share memory; scalars that are not 0-dim.
        TypeError: tensors that are not dense, real and floating-point; a seed for parameters that are not bfloat16.
    """
    tensors = StepTensors(params, grads, (exp_avgs, exp_avg_sqs, max_exp_avg_sqs), masters, steps)
    scalars = StepScalars(grad_scale, lr, weight_decay, skip, seed)
    options = AdamWOptions(
        beta1=beta1,
        beta2=beta2,
        eps=eps,
        decoupled=decoupled,
        maximize=maximize,
        zero_grads=zero_grads,
    )
    _step(tensors, scalars, options)


def sgd_step_(
    params: Tensors,
    grads: Tensors,
    momentum_buffers: Tensors,
    masters: Tensors,
    steps: Tensors,
    grad_scale: Tensor,
    lr: Tensor,
    weight_decay: Tensor,
    skip: Tensor | None = None,
    seed: Tensor | None = None,
    *,
    momentum: float = 0.0,
    dampening: float = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
    zero_grads: bool = False,
) -> None:
    """One step of SGD, in one pass over memory.

        g <- grad_scale grad + weight_decay theta
        b <- momentum b + (1 - dampening) g      (b <- g at the first step)
        theta <- theta - lr b                    (nesterov: theta - lr (g + momentum b); without momentum: theta - lr g)

    (Sutskever et al. 2013, in the form of `torch.optim.SGD`.)

    Args:
        params: theta; written.
        grads: the gradients; written only with `zero_grads`.
        momentum_buffers: b, or empty for no momentum; written. Where `steps` is 0 their content is not used.
        masters: see `adamw_step_`.
        steps: see `adamw_step_`; 0 marks the first step.
        grad_scale: see `adamw_step_`.
        lr: see `adamw_step_`.
        weight_decay: see `adamw_step_`.
        skip: see `adamw_step_`.
        seed: see `adamw_step_`.
        momentum: decay rate of b.
        dampening: how much of the gradient b leaves out.
        nesterov: look ahead along b.
        maximize: see `adamw_step_`.
        zero_grads: see `adamw_step_`.

    Raises:
        ValueError: as `adamw_step_`; momentum without buffers.
        TypeError: as `adamw_step_`.
    """
    tensors = StepTensors(params, grads, (momentum_buffers,), masters, steps)
    scalars = StepScalars(grad_scale, lr, weight_decay, skip, seed)
    options = SGDOptions(
        momentum=momentum,
        dampening=dampening,
        nesterov=nesterov,
        maximize=maximize,
        zero_grads=zero_grads,
    )
    _step(tensors, scalars, options)


def lamb_step_(
    params: Tensors,
    grads: Tensors,
    exp_avgs: Tensors,
    exp_avg_sqs: Tensors,
    masters: Tensors,
    steps: Tensors,
    grad_scale: Tensor,
    lr: Tensor,
    weight_decay: Tensor,
    skip: Tensor | None = None,
    seed: Tensor | None = None,
    *,
    beta1: float,
    beta2: float,
    eps: float,
    trust: bool = True,
    maximize: bool = False,
    zero_grads: bool = False,
) -> None:
    """One step of LAMB, in two passes over memory.

        m, v as in `adamw_step_`;  u = m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps) + weight_decay theta
        theta <- theta - lr ||theta|| / ||u|| u, norms per tensor; the ratio is 1 where either norm is 0

    (You et al. 2020, arXiv:1904.00962, with bias correction and phi(z) = z.) u is computed from the moments as stored.

    Args:
        params: theta; written.
        grads: the gradients; written only with `zero_grads`.
        exp_avgs: m; written.
        exp_avg_sqs: v; written.
        masters: see `adamw_step_`.
        steps: see `adamw_step_`.
        grad_scale: see `adamw_step_`.
        lr: see `adamw_step_`.
        weight_decay: see `adamw_step_`.
        skip: see `adamw_step_`.
        seed: see `adamw_step_`.
        beta1: see `adamw_step_`.
        beta2: see `adamw_step_`.
        eps: see `adamw_step_`.
        trust: whether the ratio of the norms is used; else it is 1.
        maximize: see `adamw_step_`.
        zero_grads: see `adamw_step_`.

    Raises:
        ValueError: as `adamw_step_`.
        TypeError: as `adamw_step_`.
    """
    tensors = StepTensors(params, grads, (exp_avgs, exp_avg_sqs), masters, steps)
    scalars = StepScalars(grad_scale, lr, weight_decay, skip, seed)
    options = LAMBOptions(
        beta1=beta1,
        beta2=beta2,
        eps=eps,
        trust=trust,
        maximize=maximize,
        zero_grads=zero_grads,
    )
    _step(tensors, scalars, options)


def _step(tensors: StepTensors, scalars: StepScalars, options: StepOptions) -> None:
    if not torch.compiler.is_compiling():
        op_validation.step(tensors, scalars, options)
    getattr(torch.ops.gradalign, options.op)(*tensors.in_order(), *scalars, **vars(options))


def _check(
    op: str,
    mutated: dict[str, Tensors],
    read: dict[str, Tensors],
    holds: str | None = None,
    **scalars: Tensor | None,
) -> None:
    """`holds`: which dtypes backups may have to hold params, "same" or "wider" too; None: any."""
    if not torch.compiler.is_compiling():  # the checks read addresses, which a traced program does not have
        op_validation.tensor_lists(op, mutated, read)
        first = next(iter((mutated or read).values()))
        op_validation.zero_dim(op, first[0].device if len(first) else None, scalars)
        if holds is not None:
            op_validation.backups_hold(op, mutated["backups"], mutated["params"], wider=holds == "wider")
