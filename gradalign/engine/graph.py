"""What the autograd graphs of a step's losses show: what they train, and whether parameters are cast to 16 bits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

LEAF = "torch::autograd::AccumulateGrad"
CAST = "ToCopyBackward0"
CHECKPOINT = "Checkpoint"  # in the names of reentrant ones, torch's and those after it
COMPILED = "CompiledFunction"  # of torch.compile, whose backward shows no casts
NARROW = (torch.bfloat16, torch.float16)
OWN_MASKS = ("CudnnRnnBackward0", "MiopenRnnBackward0")  # RNNs whose dropout draws from a state of its own on the GPU


class GraphInfo(NamedTuple):
    """What the graph of one loss shows.

    Attributes:
        foreign_params: parameters that the loss trains and that are not the model's.
        foreign_leaves: other tensors that it trains.
        older_nodes: nodes that were made before a given one, and may be part of an older graph.
        casts_to_16_bit: whether a parameter is cast to 16 bits before it is used, as under autocast, wherever that is opened.
        compiled: whether a part of it is compiled, so that casts there do not show.
        own_masks: whether an RNN draws dropout masks that torch's generators do not tell.
    """

    foreign_params: list[Tensor]
    foreign_leaves: list[Tensor]
    older_nodes: list[Any]
    casts_to_16_bit: bool
    compiled: bool
    own_masks: bool


def nodes(roots: Iterable[Tensor]) -> Iterator[Any]:
    """Every node of the graphs behind some tensors, once."""
    waiting, seen = [root.grad_fn for root in roots], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        waiting += [following for following, _ in node.next_functions]


def inspect_graph(loss: Tensor, params: Iterable[Tensor], since: int = 0) -> GraphInfo:
    """Walk the graph of a loss.

    Args:
        loss: the loss.
        params: the parameters that it may train.
        since: `sequence_number()` from before it was computed.
    """
    known = {id(p) for p in params}
    found = GraphInfo([], [], [], False, False, False)
    casts = compiled = own_masks = False
    for node in nodes([loss]):
        if node.name() == LEAF:
            if id(node.variable) not in known:
                kind = found.foreign_params if isinstance(node.variable, Parameter) else found.foreign_leaves
                kind.append(node.variable)
            continue
        of_param = node.name() == CAST and any(
            source is not None and source.name() == LEAF and id(source.variable) in known
            for source, _ in node.next_functions
        )
        casts = casts or (of_param and node._input_metadata[0].dtype in NARROW)
        compiled = compiled or COMPILED in node.name()
        own_masks = own_masks or (node.name() in OWN_MASKS and _drops(node))
        if not of_param and node._sequence_nr() < since:  # casts of parameters may be in autocast's cache
            found.older_nodes.append(node)
    return found._replace(casts_to_16_bit=casts, compiled=compiled, own_masks=own_masks)


def _drops(rnn: Any) -> bool:
    return rnn._saved_train and rnn._saved_dropout > 0 and rnn._saved_num_layers > 1


def leaves_out_a_function(loss: Tensor, params: Iterable[Tensor], reached: Iterable[Tensor]) -> bool:
    """Whether a backward that is asked for these gradients alone leaves out a Function that makes some of them.

    Autograd runs what leads to one of the parameters. A reentrant checkpoint, or a reversible block, makes gradients in its own
    backward, and leads nowhere where nothing in front of it is trained. Its parameters are no leaves of the graph, unless they
    are tied to others: such a checkpoint shows by its name alone.

    Args:
        loss: the loss.
        params: what a gradient is asked for.
        reached: those of them that an unrestricted backward gave a gradient.
    """
    known, found = {id(p) for p in params}, list(nodes([loss]))
    leaves = {id(node.variable) for node in found if node.name() == LEAF}
    hidden = any(id(p) not in leaves for p in reached)
    before: dict[Any, list[Any]] = defaultdict(list)
    for node in found:
        for following, _ in node.next_functions:
            before[following].append(node)
    waiting = [node for node in found if node.name() == LEAF and id(node.variable) in known]
    leading = set(waiting)
    while waiting:
        more = [node for node in before[waiting.pop()] if node not in leading]
        leading.update(more)
        waiting += more
    functions = [node for node in found if hasattr(type(node), "_forward_cls") and node not in leading]
    return any(hidden or CHECKPOINT in node.name() for node in functions)


def sequence_number() -> int:
    """That of a node made now; nodes that this thread makes later have larger ones."""
    with torch.enable_grad():
        node: Any = torch.empty(0, requires_grad=True, device="cpu").view(0).grad_fn
    return node._sequence_nr()


class GraphWatch:
    """Looks at the graphs of some losses of a step, and refuses what would be differentiated wrongly without a word.

    A tensor or a node that shows in the graphs of two passes existed before the second; what loss_fn makes anew in each call is
    left alone.

    Args:
        params: the parameters that losses may train.
        looks_at: whether to look at a loss of the step, given its number and whether one before it showed a tensor or a node
            that may be from outside; None: at none.
        casts_to_16_bit: what an earlier step found.
        casts_shown: whether autocast showed without a graph there. Where it no longer does, a graph tells whether it ended.
        stand_ins: gives tensors that stand for parameters in the graphs.
        models: gives the parameters of the models, frozen ones too.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        looks_at: Callable[[int, bool], bool] | None,
        casts_to_16_bit: bool | None = None,
        casts_shown: bool = False,
        stand_ins: Callable[[], Iterable[Tensor]] = tuple,
        models: Callable[[], Iterable[Tensor]] = tuple,
    ) -> None:
        self._params = params
        self._models = models
        self._stand_ins = stand_ins
        self._looks_at = looks_at
        self._num_losses = 0
        self._leaves: list[Tensor] = []
        self._older: list[Any] = []
        self.may_reuse_graphs = False
        self.needs_same_masks = False
        self._casts_before = casts_to_16_bit
        self._casts_shown = casts_shown
        self._unless_shown = False  # the loss in hand is looked at only where autocast does not show
        self._casts: bool | None = None  # as the graphs of this step show it

    @property
    def casts_to_16_bit(self) -> bool | None:
        """What this step found; else what an earlier one did."""
        return self._casts_before if self._casts is None else self._casts

    def begin(self) -> int | None:
        """Before a loss is computed: where its graph begins, or None where it is not looked at."""
        if self._looks_at is None:
            return None
        number = self._num_losses
        self._num_losses += 1
        suspicious = bool(self._leaves or self._older)
        looks = self._looks_at(number, suspicious)
        self._unless_shown = not looks and self._casts_shown and number == 0
        return sequence_number() if (looks or self._unless_shown) and not torch.is_inference_mode_enabled() else None

    def look(self, loss: Tensor, since: int, casts_shown: bool = False) -> None:
        """After it is computed.

        Args:
            loss: the loss.
            since: what `begin` returned.
            casts_shown: whether autocast shows without a graph.

        Raises:
            ValueError: it trains parameters, or tensors from outside loss_fn, that are not the model's.
            RuntimeError: part of its graph is older than the call, or a second pass could not draw its dropout masks again.
        """
        if self._unless_shown and casts_shown:
            return
        found = inspect_graph(loss, [*self._params, *self._stand_ins()], since)
        frozen = self._frozen_memory() if found.foreign_params else set()
        _no_foreign_params([p for p in found.foreign_params if _memory(p) not in frozen])
        # Those left are views of frozen parameters: `Parameter(weight.T)`, as PEFT's DoRA makes it in every forward.
        leaves = [*found.foreign_leaves, *found.foreign_params]
        _no_older_leaves(leaves, self._leaves)
        if not self.may_reuse_graphs:
            known = set(map(id, self._older))
            if any(id(node) in known for node in found.older_nodes):
                raise older_graph()
            self._older = found.older_nodes
        if self.needs_same_masks and found.own_masks:
            raise _own_masks()
        self._leaves += leaves
        if found.casts_to_16_bit or not found.compiled or self.casts_to_16_bit is None:
            self._casts = bool(self._casts) or found.casts_to_16_bit

    def _frozen_memory(self) -> set[int | None]:
        """Where the frozen parameters of the models are."""
        return {_memory(p) for p in self._models() if not p.requires_grad} - {None}


def _memory(p: Tensor) -> int | None:
    """The address of a parameter's memory; None where an address does not tell whose it is."""
    plain = type(p) in (Tensor, Parameter) and p.layout is torch.strided and p.device.type != "meta" and p.numel() > 0
    return p.untyped_storage().data_ptr() if plain else None


def older_graph() -> RuntimeError:
    """The error for a loss part of whose graph was made before loss_fn was called."""
    return RuntimeError(
        "loss_fn: expected a loss whose whole graph is computed inside loss_fn; got one that reuses tensors with a graph from "
        "outside, whose parameters a displaced pass would not displace; compute them inside loss_fn, or detach them"
    )


def _own_masks() -> RuntimeError:
    return RuntimeError(
        "loss_fn: expected dropout that draws from torch's generators, so that a displaced pass has the masks of the first; "
        "got an RNN with dropout between its layers on a GPU, which cuDNN (MIOpen) draws from a state of its own; run it under "
        "torch.backends.cudnn.flags(enabled=False), or stack RNNs of one layer with nn.Dropout between them"
    )


def _no_foreign_params(foreign_params: Sequence[Tensor]) -> None:
    if foreign_params:
        raise ValueError(
            f"loss_fn: expected a loss of the model's parameters; got one that also trains {len(foreign_params)} that are not "
            f"in it (shapes {_shapes(foreign_params)}), whose .grad would be left with the scaled gradients of single passes; "
            "give every module that is trained, model=[encoder, head]; give frozen modules with state (spectral_norm, "
            "BatchNorm) too, with requires_grad off, and run the others under torch.no_grad(), or, where gradients pass "
            "through one (a GAN's discriminator), set requires_grad_(False) on it during the step"
        )


def _no_older_leaves(leaves: Sequence[Tensor], seen: Sequence[Tensor]) -> None:
    older = [leaf for leaf in leaves if any(leaf is other for other in seen)]
    if older:
        raise ValueError(
            "loss_fn: expected a loss of the model's parameters; got one that also trains tensors made outside loss_fn "
            f"(shapes {_shapes(older)}), whose .grad would be left with the scaled gradients of single passes; to train them, "
            "make them parameters of a module and give it too, model=[net, module]; to differentiate by an input, make it anew "
            "in each call, x = x.detach().requires_grad_(); else detach them"
        )


def _shapes(tensors: Sequence[Tensor]) -> str:
    return ", ".join(str(tuple(t.shape)) for t in tensors[:3]) + (", ..." if len(tensors) > 3 else "")
