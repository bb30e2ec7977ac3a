"""What a step does to the gradients before it uses them: unscale, clip by global norm, skip where they are not finite."""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from operator import add, attrgetter, is_, le

import torch
from torch import Tensor

from gradalign.backends import dispatch
from gradalign.engine.addresses import ParamMemory, repeats, span
from gradalign.engine.devices import to_device
from gradalign.engine.mesh import Mesh
from gradalign.optim.batch import Batch


@dataclass(frozen=True)
class GradientScale:
    """What multiplies every gradient, and whether the step is skipped; on one device, nothing read back.

    Attributes:
        factor: clip coefficient over loss scale, float64.
        skip: not 0 where the step is to be skipped; None where that cannot be.
        norm: global norm of the unscaled gradients before clipping, float64; None where it was not needed.
    """

    factor: Tensor
    skip: Tensor | None
    norm: Tensor | None


def gradient_scale(
    batches: Sequence[Batch],
    loss_scale: Tensor | float | None,
    found_inf: Tensor | None,
    max_norm: Tensor | float | None,
    skip_nonfinite: bool,
    backend: str,
    mesh: Mesh | None = None,
) -> GradientScale:
    """The clip coefficient of `torch.nn.utils.clip_grad_norm_`, min(1, max_norm / (norm + 1e-6)), over the loss scale.

    The gradients are read only where a norm is needed: to clip, or to know whether they are finite where no GradScaler
    has checked.
    """
    device = _sum_device(batches)
    factor = torch.ones((), dtype=torch.float64, device=device)
    if loss_scale is not None:
        factor = factor / (to_device(loss_scale, device).reshape(()) if isinstance(loss_scale, Tensor) else loss_scale)
    if found_inf is not None and mesh is not None:
        found_inf = mesh.largest(found_inf)
    skip = None if found_inf is None else to_device(found_inf, device).reshape(()) != 0
    if max_norm is None and not (skip_nonfinite and found_inf is None):
        return GradientScale(factor, None if skip is None else skip.float(), None)

    norm = _sum_of_squares(batches, device, backend, mesh).sqrt() * factor
    if skip_nonfinite:
        skip = ~norm.isfinite() if skip is None else skip | ~norm.isfinite()
    if max_norm is not None:
        limit = to_device(max_norm, device).reshape(()) if isinstance(max_norm, Tensor) else max_norm
        factor = factor * (limit / (norm + 1e-6)).clamp(max=1.0)
    return GradientScale(factor, None if skip is None else skip.float(), norm)


def _sum_device(batches: Sequence[Batch]) -> torch.device:
    """Where the sums of all devices are added: an accelerator if there is one, so that the host does not wait for it."""
    devices = [batch.device for batch in batches]
    return next((device for device in devices if device.type != "cpu"), devices[0])


def _sum_of_squares(batches: Sequence[Batch], device: torch.device, backend: str, mesh: Mesh | None) -> Tensor:
    by_place: dict[tuple[torch.device, int], list[Tensor]] = defaultdict(list)
    for batch in batches:
        if mesh is None:
            by_place[batch.device, 1].extend(batch.grads)
        else:
            for grad, copies in zip(batch.grads, mesh.copies(batch.whole), strict=True):
                by_place[batch.device, copies].append(grad)
    total = torch.zeros((), dtype=torch.float64, device=device)
    for (place, copies), grads in by_place.items():
        chosen = dispatch.backend(backend, place.type, frozenset(g.dtype for g in grads))
        square = to_device(chosen.norm_dot(grads)[0], device)
        total = total + (square if copies == 1 else square / copies)
    return total if mesh is None else mesh.total(total)


def resolved(grads: list[Tensor]) -> list[Tensor]:
    """The list itself, or one with copies of gradients that are negated only when they are read, as of `x.conj().imag`."""
    return [g.resolve_neg() for g in grads] if any(map(Tensor.is_neg, grads)) else grads


def own_memory(tensors: Sequence[Tensor]) -> bool:
    """Whether no element is known to be in two of the tensors, or twice in one.

    False where tensors are interleaved (columns of one matrix): the spans from first to last element are compared. On ends
    and starts sorted by themselves, spans are apart where each but the last end is at most the next start.
    """
    if not {Tensor, torch.nn.Parameter}.issuperset(map(type, tensors)):
        return False  # a subclass may have no memory: fakes
    if all(map(Tensor.is_contiguous, tensors)):
        firsts = list(map(Tensor.data_ptr, tensors))
        ends = sorted(map(add, firsts, map(attrgetter("nbytes"), tensors)))
    elif any(map(repeats, tensors)):
        return False
    else:
        spans = list(map(span, tensors))
        firsts, ends = [first for first, _ in spans], sorted(end for _, end in spans)
    return all(map(le, ends, islice(sorted(firsts), 1, None)))


class ClearedGradients:
    """Gradients that are zeroed in place, which must not be the memory of what the step writes.

    The check is made once for each set of gradients: those that are zeroed stay the same tensors.
    """

    def __init__(self) -> None:
        self._apart: list[weakref.ref[Tensor]] = []

    def check(self, batches: Sequence[Batch]) -> None:
        """No gradient has an element in common with a parameter or a state.

        Raises:
            ValueError: names which.
        """
        grads = [g for batch in batches for g in batch.given]
        if len(grads) == len(self._apart) and all(map(is_, [known() for known in self._apart], grads)):
            return
        written = {
            name: [t for batch in batches for t in {"params": batch.params, **batch.state}.get(name, [])]
            for name in dict.fromkeys(("params", *(name for batch in batches for name in batch.state)))
        }
        everything = [*grads, *(t for tensors in written.values() for t in tensors)]
        if not own_memory(everything) and {Tensor, torch.nn.Parameter}.issuperset(map(type, everything)):
            for name, tensors in written.items():
                _apart(grads, tensors, name)
        self._apart = list(map(weakref.ref, grads))


def _apart(grads: Sequence[Tensor], tensors: Sequence[Tensor], name: str) -> None:
    memory = ParamMemory(tensors)
    for g in filter(memory.covers, grads):
        if any(g.device == t.device and ParamMemory([g, t]).shared for t in tensors):
            raise ValueError(
                f'clear="zero": expected gradients with memory of their own; got one of shape {tuple(g.shape)} that shares '
                f"memory with {name}, which would be zeroed too; clone it first, or leave the clearing to zero_grad()"
            )


def zero(grads: Sequence[Tensor]) -> None:
    """Write zeros, also into expanded tensors."""
    for g in grads:
        once = tuple(slice(1) if stride == 0 else slice(None) for stride in g.stride())
        g[once].zero_()
