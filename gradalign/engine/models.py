"""The modules that are trained: which parameters they have, and input validation of both."""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from gradalign.engine.addresses import ParamMemory
from gradalign.engine.distribution import ranks_of
from gradalign.engine.quantised import not_quantised
from gradalign.engine.ranks import Ranks
from gradalign.engine.validation import real_and_whole

# Wrappers of several processes that hide gradients or parameters, by the names of their classes, and what to do instead.
UNSUPPORTED = {
    "FullyShardedDataParallel": "whose flat parameters cannot be displaced one by one; use fully_shard, its successor",
    "DeepSpeedEngine": "which reduces and partitions gradients by itself; use DistributedDataParallel or fully_shard",
}


class Parts(NamedTuple):
    """What is in some modules, each once.

    Attributes:
        trained: the parameters that require grad.
        frozen: those that do not.
        modules: the modules and all that are in them.
    """

    trained: list[Parameter]
    frozen: list[Parameter]
    modules: list[nn.Module]


class Models:
    """One module or several, whose parameters are trained.

    Args:
        model: the module, or several.

    Raises:
        TypeError: something that is no module, or one whose parameters are spread over processes.
    """

    def __init__(self, model: nn.Module | Iterable[nn.Module]) -> None:
        self.modules = checked_modules(model)
        self.ranks = ranks_of(self.modules)
        self._checked: list[Parameter] = []  # those that were found to be of a kind that can be displaced

    def trainable(self) -> list[Parameter]:
        """The parameters that require grad now, each once.

        Raises:
            ValueError: none, or one that is not initialised.
            TypeError: complex or sharded ones.
        """
        return self.now().trained

    def now(self) -> Parts:
        """What is in the modules now; raises as `trainable` does."""
        params: dict[int, Parameter] = {}
        modules: dict[int, nn.Module] = {}
        for module in self.modules:
            inside = modules_of(module)
            modules |= {id(m): m for m in inside}
            params |= {id(p): p for p in params_of(module, inside)}
        trained = [p for p in params.values() if p.requires_grad]
        if not trained or len(trained) != len(self._checked) or not all(map(operator.is_, trained, self._checked)):
            self._checked = _trainable(trained, self.ranks)
        frozen = [p for p in params.values() if not p.requires_grad] if len(trained) < len(params) else []
        return Parts(trained, frozen, list(modules.values()))

    def parameters(self) -> Iterable[Parameter]:
        """All that are in the modules now, frozen ones too; some may come several times."""
        return (p for module in self.modules for p in params_of(module))

    def memory(self, params: Sequence[Parameter]) -> ParamMemory:
        """Where these parameters are.

        Raises:
            ValueError: two of them share memory and would be displaced twice.
        """
        memory = ParamMemory(params if self.ranks is None else self.ranks.local(params))
        if memory.shared is not None:
            names = {id(p): name for module in self.modules for name, p in module.named_parameters()}
            first, second = (names[id(params[i])] for i in memory.shared)
            raise ValueError(
                f"model: expected parameters with memory of their own; got {first} and {second}, which share some and would be "
                "displaced twice; tie parameters by making them one: b.weight = a.weight instead of "
                "b.weight.data = a.weight.data"
            )
        return memory


def modules_of(module: nn.Module) -> Collection[nn.Module]:
    """What `module.modules()` gives, at a fraction of its time: it is asked for in every step."""
    if isinstance(module, torch.jit.ScriptModule) or overrides(module, "modules", "named_modules"):
        return list(module.modules())
    seen: dict[int, nn.Module] = {}
    waiting = [module]
    while waiting:
        inner = waiting.pop()
        if id(inner) in seen:
            continue
        if isinstance(inner, torch.jit.ScriptModule):
            return list(module.modules())
        seen[id(inner)] = inner
        if inner._modules:
            waiting += [child for child in reversed(inner._modules.values()) if child is not None]
    return seen.values()


def params_of(module: nn.Module, inside: Iterable[nn.Module] | None = None) -> Iterable[Parameter]:
    """What `module.parameters()` gives, where a parameter may come several times.

    Args:
        module: the module.
        inside: what `modules_of` gives for it, where that is known.
    """
    if isinstance(module, torch.jit.ScriptModule) or overrides(module, "parameters", "named_parameters"):
        return module.parameters()
    modules = modules_of(module) if inside is None else inside
    return [p for inner in modules for p in inner._parameters.values() if p is not None]


def overrides(module: nn.Module, *names: str) -> bool:
    """Whether a module's class has methods of its own in place of those of `nn.Module`."""
    kind = type(module)
    return [getattr(kind, name) for name in names] != [getattr(nn.Module, name) for name in names]


def checked_modules(model: object) -> list[nn.Module]:
    """One module or several, as a list."""
    several: list[Any] = list(model) if isinstance(model, Iterable) and not isinstance(model, nn.Module) else [model]
    for m in several:
        if not isinstance(m, nn.Module):
            raise TypeError(f"model: expected an nn.Module or several; got {type(m).__name__}")
        for inner in m.modules():
            name = next((c.__name__ for c in type(inner).__mro__ if c.__name__ in UNSUPPORTED), None)
            if name is not None:
                raise TypeError(
                    f"model: expected a module of one process, DistributedDataParallel or fully_shard; got {name}, "
                    f"{UNSUPPORTED[name]}"
                )
            if isinstance(inner, nn.DataParallel) and len(inner.device_ids) > 1:
                raise TypeError(
                    f"model: expected a module on one device; got DataParallel on {len(inner.device_ids)}, whose replicas draw "
                    "random numbers that a displaced pass cannot repeat; use DistributedDataParallel"
                )
    return several


def _trainable(params: list[nn.Parameter], ranks: Ranks | None) -> list[nn.Parameter]:
    """`params` if there is something to train, and it is of a kind that can be displaced."""
    if not params:
        raise ValueError("expected a model with trainable parameters; got none that requires grad")
    for p in params:
        if torch.nn.parameter.is_lazy(p):
            raise ValueError("expected initialised parameters; got a lazy one; run one forward pass first")
        if hasattr(p, "ds_id"):
            raise TypeError("expected whole parameters; got those of DeepSpeed's ZeRO-3; use fully_shard")
        if ranks is None or p.is_complex():
            real_and_whole(p)
            not_quantised(p)
    return params


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


def still_there(params: Iterable[Parameter], present: Iterable[Parameter]) -> None:
    """`params=` are parameters that the models still have."""
    known = {id(p) for p in present}
    gone = [p for p in params if id(p) not in known]
    if gone:
        raise ValueError(
            f"params: expected parameters that the model still has; got {len(gone)} that it no longer has (shape "
            f"{tuple(gone[0].shape)}): they were replaced, as load_state_dict(assign=True), a new head or a parametrization "
            "does; make a new GradAlign with the new ones"
        )


def no_grads(params: Iterable[Tensor]) -> None:
    """Every `.grad` is None."""
    if any(p.grad is not None for p in params):
        raise ValueError(
            "expected every .grad to be None on entry; got gradients of an earlier backward; call optimizer.zero_grad() "
            "before aligner.backward (with set_to_none=False, pass zeroed_grads=True to GradAlign)"
        )


def grads_are_zeros(grads: Iterable[Tensor | None]) -> None:
    """Every `.grad` is None or zeros."""
    if any(bool(g.count_nonzero()) for g in grads if g is not None and g.device.type != "meta"):
        raise ValueError(
            "zeroed_grads: expected every .grad to be None or zeros on entry; got other values, which would count as gradients "
            "of this step; call optimizer.zero_grad() before aligner.backward, and add what else has a gradient to the loss"
        )


def gradients_apart(modules: Iterable[nn.Module], params: Sequence[Tensor], grads: Sequence[Tensor | None]) -> None:
    """The gradients of one backward share no element: a second backward would add to it once for each of them."""
    there = [i for i, g in enumerate(grads) if g is not None]
    shared = ParamMemory([g for g in grads if g is not None]).shared
    if shared is not None:
        names = {id(p): name for module in modules for name, p in module.named_parameters()}
        first, second = (names.get(id(params[there[i]]), f"parameter {there[i]}") for i in sorted(shared))
        raise RuntimeError(
            f"expected gradients with memory of their own; got those of {first} and {second} in the same memory, where torch "
            "adds the gradients of later micro-batches twice, in plain training too; both are views of one gradient, as in "
            "a.view(1, -1) + b.view(1, -1): add first, (a + b).view(1, -1), or give one a gradient of its own, "
            "(b * 1).view(1, -1)"
        )


def no_consuming_hooks(params: Iterable[Tensor]) -> None:
    """No parameter hands its gradient on as soon as it is accumulated.

    `torch.distributed.optim._apply_optimizer_in_backward` hooks nodes of the graph, which cannot be asked for their hooks, and
    leaves its optimizers on the parameters.
    """
    if any(
        getattr(p, "_post_accumulate_grad_hooks", None) or getattr(p, "_in_backward_optimizers", None) for p in params
    ):
        raise ValueError(
            "expected parameters without post-accumulate-grad hooks or optimizers in backward; got some: they would consume "
            "the scaled gradients of single passes; step the optimizer after aligner.backward instead"
        )
