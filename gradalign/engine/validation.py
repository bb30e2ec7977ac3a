"""What bad input is told: expected, got, remedy. The wording lives with the check, the checks live here."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from gradalign.engine import graph


def one_of(name: str, value: object, allowed: Iterable[str]) -> str:
    """`value` if it is one of `allowed`."""
    allowed = sorted(allowed)
    if value not in allowed:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, allowed))}; got {value!r}")
    return str(value)


def real(name: str, value: object) -> float:
    """`value` as a float, if it is a real number (NumPy's count, tensors and booleans do not)."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: expected a number; got {type(value).__name__} ({value!r})")
    return float(value)


def positive(name: str, value: object, unit: str) -> float:
    """`value` if it is a finite number above 0."""
    number = real(name, value)
    if not (math.isfinite(number) and number > 0):
        raise ValueError(f"{name}: expected a finite number above 0 ({unit}); got {value!r}")
    return number


def finite(name: str, value: object) -> float:
    """`value` as a float, if it is a finite real number."""
    number = real(name, value)
    if not math.isfinite(number):
        raise ValueError(f"{name}: expected a finite number; got {value!r}")
    return number


def count(name: str, value: object, least: int) -> int:
    """`value` if it is an integer of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: expected an integer of at least {least}; got {value!r}")
    if value < least:
        raise ValueError(f"{name}: expected an integer of at least {least}; got {value}")
    return value


def loss_and_aux(result: Any) -> tuple[Any, Any]:
    """The pair that a loss_fn returns with has_aux=True."""
    if not isinstance(result, tuple) or len(result) != 2:
        raise TypeError(
            f"loss_fn: expected (loss, aux) with has_aux=True; got {type(result).__name__}; return a pair or drop has_aux"
        )
    return result


def differentiable_scalar(loss: object) -> None:
    """A loss is one real number with a graph."""
    if not isinstance(loss, Tensor):
        raise TypeError(
            f"loss_fn: expected a scalar tensor; got {type(loss).__name__}; return the loss itself (has_aux=True for a pair)"
        )
    if loss.numel() != 1:
        raise ValueError(f"loss_fn: expected a scalar tensor; got shape {tuple(loss.shape)}; reduce it with .mean()")
    if not loss.is_floating_point():
        raise TypeError(f"loss_fn: expected a real floating-point loss; got {loss.dtype}")
    if not loss.requires_grad:
        raise ValueError(
            "loss_fn: expected a loss with a graph; got one that does not require grad; do not detach it, and do not call "
            "under torch.no_grad() or inference_mode()"
        )


def no_backward_inside(versions: Sequence[int | None], grads: Sequence[Tensor | None]) -> None:
    """The loss_fn only computes the loss: no `.grad` appeared or changed in it."""
    if any((None if g is None else g._version) != v for v, g in zip(versions, grads, strict=True)):
        raise RuntimeError(
            "loss_fn: expected a function that computes the loss and leaves .grad alone; got one that called backward (or "
            "zero_grad); return the loss and let gradalign differentiate it"
        )


def dense_gradients(grads: Sequence[Tensor | None]) -> None:
    """No gradient is sparse."""
    for g in grads:
        if g is not None and g.layout is not torch.strided:
            raise TypeError(f"expected dense gradients; got {g.layout}; build embeddings with sparse=False")


def no_grads(params: Iterable[Tensor]) -> None:
    """Every `.grad` is None."""
    if any(p.grad is not None for p in params):
        raise ValueError(
            "expected every .grad to be None on entry; got gradients of an earlier backward; call optimizer.zero_grad() "
            "before aligner.backward (with set_to_none=False, pass zeroed_grads=True to GradAlign)"
        )


def no_consuming_hooks(params: Iterable[Tensor]) -> None:
    """No parameter hands its gradient on as soon as it is accumulated."""
    if any(getattr(p, "_post_accumulate_grad_hooks", None) for p in params):
        raise ValueError(
            "expected parameters without post-accumulate-grad hooks; got some (an optimizer fused into backward?): they would "
            "consume the scaled gradients of single passes; step the optimizer after aligner.backward instead"
        )


def no_shared_memory(first: str, second: str) -> None:
    """Two parameters have an element in common; always raises."""
    raise ValueError(
        f"model: expected parameters with memory of their own; got {first} and {second}, which share some and would be "
        "displaced twice; tie parameters by making them one: b.weight = a.weight instead of b.weight.data = a.weight.data"
    )


def trainable(params: list[nn.Parameter]) -> list[nn.Parameter]:
    """`params` if there is something to train, and it is of a kind that can be displaced."""
    if not params:
        raise ValueError("expected a model with trainable parameters; got none that requires grad")
    for p in params:
        if torch.nn.parameter.is_lazy(p):
            raise ValueError("expected initialised parameters; got a lazy one; run one forward pass first")
        real_and_whole(p)
    return params


def real_and_whole(p: Tensor) -> None:
    """The parameter is neither complex nor a shard."""
    if p.is_complex():
        raise TypeError(f"expected real parameters; got {p.dtype}; use torch.view_as_real on a real parameter instead")
    if hasattr(p, "placements"):
        raise TypeError(
            "expected whole parameters; got a sharded DTensor; gradalign does not support sharded training yet"
        )


def callable_(name: str, value: object, remedy: str) -> None:
    """Something that can be called to compute a loss."""
    if not callable(value):
        raise TypeError(
            f"{name}: expected a function that computes the loss; got {type(value).__name__}; pass {remedy}"
        )


def untouched(changed: Sequence[str]) -> None:
    """Nobody wrote parameters or gradients while control was with the caller."""
    if changed:
        raise RuntimeError(
            f"accumulate: expected .grad and parameters to be left alone between the micro-batches of a step; got changed "
            f"{' and '.join(changed)}; clip, step and zero_grad after the `with` block, and call no other backward in it"
        )


def micro_batches(value: object) -> list:
    """At least two micro-batches, as a list."""
    if isinstance(value, (Tensor, Mapping, str)) or not isinstance(value, Iterable):
        raise TypeError(
            f"micro_batches: expected a list of micro-batches; got {type(value).__name__}; "
            "split one large batch with gradalign.chunk(batch, k)"
        )
    batches = list(value)
    if len(batches) < 2:
        raise ValueError(
            f"micro_batches: expected at least 2, to compare their gradients; got {len(batches)}; "
            "split one large batch with gradalign.chunk(batch, k)"
        )
    return batches


def modules(model: object) -> list[nn.Module]:
    """One module or several, as a list."""
    several: list[Any] = list(model) if isinstance(model, Iterable) and not isinstance(model, nn.Module) else [model]
    for m in several:
        if not isinstance(m, nn.Module):
            raise TypeError(f"model: expected an nn.Module or several; got {type(m).__name__}")
        for inner in m.modules():
            if isinstance(inner, nn.parallel.DistributedDataParallel):
                raise TypeError(
                    "model: expected the module itself; got DistributedDataParallel, which would average the scaled gradients "
                    "of every pass; pass and call model.module, and average .grad after aligner.backward"
                )
            if type(inner).__name__ == "FullyShardedDataParallel":
                raise TypeError(
                    "model: expected whole parameters; got FullyShardedDataParallel; gradalign does not support sharded "
                    "training yet"
                )
    return several


def fraction(name: str, value: object) -> float:
    """`value` if it is above 0 and at most 1."""
    number = finite(name, value)
    if not 0 < number <= 1:
        raise ValueError(f"{name}: expected a number above 0 and at most 1; got {value!r}")
    return number


def subset(params: Iterable[nn.Parameter], trainable: Sequence[nn.Parameter]) -> list[nn.Parameter]:
    """Parameters that are all among the trainable ones."""
    chosen: list[Any] = [params] if isinstance(params, Tensor) else list(params)
    known = {id(p) for p in trainable}
    if not chosen:
        raise ValueError("params: expected at least one parameter; got none; pass None for all that require grad")
    for p in chosen:
        if not isinstance(p, Tensor):
            raise TypeError(f"params: expected parameters of the model; got {type(p).__name__}")
        if id(p) not in known:
            raise ValueError(
                f"params: expected trainable parameters of the model; got another one, of shape {tuple(p.shape)}"
            )
    return chosen


def one_scaler(own: Any, other: Any) -> Any:
    """The one GradScaler of a step, or None."""
    if own is not None and other is not None and own is not other:
        raise ValueError(
            "scaler: expected one GradScaler; got one here and another that `backward` applies by itself; pass only the latter"
        )
    return own if own is not None else other


NO_SECOND_DERIVATIVE = ("not implemented", "does not require grad", "ouble backward", "differentiate twice")


@contextmanager
def twice_differentiable(name: str = "exact") -> Iterator[None]:
    """Says what to do where an operation has no second derivative."""
    try:
        yield
    except RuntimeError as error:
        if not any(words in str(error) for words in NO_SECOND_DERIVATIVE):
            raise
        raise RuntimeError(
            f"{name}: expected twice differentiable operations; got: {error}; use eager attention (or "
            "torch.nn.attention.sdpa_kernel(SDPBackend.MATH)), or a method that needs no second derivative"
        ) from error


def no_refusal(grads: Iterable[Tensor]) -> None:
    """No operation that refuses to be differentiated twice is behind these gradients.

    `torch.autograd.grad` runs only what lies on a way to its inputs; the refusal of `once_differentiable` hangs on a leaf of
    its own, so that what depends on the parameters through such a function would be missing without a word.
    """
    if any(node.name() == "torch::autograd::Error" for node in graph.nodes(grads)):
        raise RuntimeError("trying to differentiate twice a function that was marked with @once_differentiable")


def no_foreign_params(foreign_params: Sequence[Tensor]) -> None:
    """The loss trains no parameter but the model's."""
    if foreign_params:
        shapes = ", ".join(str(tuple(p.shape)) for p in foreign_params[:3]) + (
            ", ..." if len(foreign_params) > 3 else ""
        )
        raise ValueError(
            f"loss_fn: expected a loss of the model's parameters; got one that also trains {len(foreign_params)} that are not "
            f"in it (shapes {shapes}), whose .grad would be left with the scaled gradients of single passes; give every module "
            "that is trained, model=[encoder, head], and run the others under torch.no_grad() or with requires_grad off"
        )


def no_once_only(loss: Tensor) -> None:
    """The loss has second derivatives all the way."""
    name = graph.once_only(loss)
    if name is not None:
        raise RuntimeError(f"trying to differentiate twice {name}, which was marked with @once_differentiable")


def estimator_fits(
    name: str, own: bool, normalizations: Sequence[str], objective: str, needs_own: bool, normalize: str
) -> None:
    """The estimator can do the objective and the normalisation."""
    if needs_own and not own:
        raise ValueError(
            f'estimator "{name}": expected objective "dot" or "norm"; got "{objective}", whose displacements differ between '
            'micro-batches; use "split", "prefix" or "leave_one_out"'
        )
    if normalize not in normalizations:
        raise ValueError(f'estimator "{name}": expected normalize in {tuple(normalizations)}; got "{normalize}"')


def gradalign_optimizer(optimizer: Any) -> Any:
    """An optimizer that shows its masters and first moments."""
    if not (hasattr(optimizer, "master") and hasattr(optimizer, "first_moment")):
        raise TypeError(
            f"optimizer: expected an optimizer of gradalign.optim; got {type(optimizer).__qualname__}; "
            "pass none: any optimizer can step the gradients that GradAlign fills in"
        )
    return optimizer


def keeps_first_moment(optimizer: Any) -> None:
    """The mean of past gradients that `momentum` follows exists."""
    if not optimizer.keeps_first_moment:
        name = type(optimizer).__qualname__
        raise ValueError(
            f'optimizer: expected one with a first moment, which estimator "momentum" follows; got {name} '
            "without momentum; give it one, or pass optimizer=None and the mean is kept here"
        )


def steps_some(optimizer: Any, params: Sequence[Tensor]) -> None:
    """The optimizer is that of the model."""
    stepped = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if not any(id(p) in stepped for p in params):
        raise ValueError(
            "optimizer: expected the optimizer of the model's parameters; got one that steps none of them; make it from "
            "model.parameters()"
        )


def only_with(name: str, value: object, default: object, owner: str, chosen: str, needed: str) -> None:
    """An option that means something with one choice of `owner` alone is left alone with the others."""
    if value != default and chosen != needed:
        raise ValueError(
            f'{name}: expected {default!r} with {owner} "{chosen}", which has no other; got {value!r}; '
            f'it belongs to {owner}="{needed}"'
        )


def flag(name: str, value: object) -> bool:
    """True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected True or False; got {value!r}")
    return value


def grad_scaler(scaler: Any) -> Any:
    """A GradScaler, torch's or one that does the same, or None."""
    if scaler is not None and not (callable(getattr(scaler, "scale", None)) and hasattr(scaler, "is_enabled")):
        raise TypeError(f"scaler: expected a torch.amp.GradScaler or None; got {type(scaler).__name__}")
    return scaler


def saved_state(state: object, owner: str) -> Mapping[str, Any]:
    """What `state_dict` of the same class returns."""
    if not isinstance(state, Mapping):
        raise TypeError(f"load_state_dict: expected the state_dict of a {owner}; got {type(state).__name__}")
    if "num_steps" not in state:
        raise ValueError(f"load_state_dict: expected the state of a {owner} (num_steps); got keys {sorted(state)}")
    return state


def labels(tasks: Iterable[str], num: int) -> list[str]:
    """One label for each of `num` micro-batches."""
    found = [tasks] if isinstance(tasks, str) else [str(task) for task in tasks]
    if isinstance(tasks, str) or len(found) != num:
        raise ValueError(f"tasks: expected one label for each of the {num} micro-batches; got {found}")
    return found


def figure_class(name: str) -> Any:
    """Matplotlib's class of a figure that needs no display and no global state."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            f"{name}: expected matplotlib; got none; pip install matplotlib, or gradalign[demo]"
        ) from error
    return Figure
