"""`split`: the last m micro-batches are probes, compared with the k - m anchors before them.

    term = s / m sum_i H_i w_i over the probes i, in k + m passes (forward differences), k + 2m (central).

Averaged over all orders of the micro-batches, with normalize="none", it is the gradient of A.

Where one displacement serves all probes (dot, norm), the displaced passes come before the base passes and autograd adds all of
them into one vector through scaled losses; the term is never stored (`SharedDirectionSplit`). Where a displacement contains the
probe's own gradient (variance, cosine), each probe is evaluated at theta first (`OwnDirectionSplit`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import Parameter

from gradalign.backends.reference_scalars import inverse_length
from gradalign.engine.comparison import add_displaced, compare, subtract_base
from gradalign.engine.devices import sum_in_order
from gradalign.engine.estimator import Estimator
from gradalign.engine.memory import Memory
from gradalign.engine.passes import Closure
from gradalign.engine.schedule import Schedule
from gradalign.engine.sources import Sources
from gradalign.engine.space import Vector
from gradalign.engine.step import Step, stacked
from gradalign.engine.sums import Sums
from gradalign.engine.validation import count, fraction, one_of
from gradalign.estimators.by_source import SourcesSplit, plain_by_source

ProbeChoice = Literal["last", "rotate"]


def num_probes(num: int, probe_fraction: float) -> int:
    """m = min(k - 1, max(1, round(probe_fraction k)))."""
    return min(num - 1, max(1, round(probe_fraction * num)))


@dataclass(frozen=True)
class Split(Estimator):
    """Some micro-batches, the probes, against the others.

    Attributes:
        probe_fraction: share of the micro-batches that are probes, above 0 and at most 1.
        probes: which they are: the "last", or "rotate" (over the steps with the term each position equally often; anchors'
            base passes first).

    Raises:
        ValueError: a share out of range, or another choice of probes.
        TypeError: a share that is no number.
    """

    name = "split"
    by_source = True
    separates = True
    probe_fraction: float = 0.25
    probes: ProbeChoice = "last"

    def __post_init__(self) -> None:
        fraction("probe_fraction", self.probe_fraction)
        one_of("probes", self.probes, get_args(ProbeChoice))

    def make(self, step: Step, total: Vector) -> Schedule:
        """The schedule for the step's objective, in k + m passes."""
        if step.sources is not None:
            return self._by_source(step, total, step.sources)
        m = num_probes(step.num, self.probe_fraction)
        step.separate = step.separate and step.settings.objective.own  # else all probes have one displacement anyway
        schedule = (OwnDirectionSplit if step.settings.objective.own else SharedDirectionSplit)(step, total, m)
        return schedule if self.probes == "last" else Reordered(schedule, self._order(step, step.num, m))

    def make_inactive(self, step: Step, total: Vector) -> Schedule:
        """The plain loop; with telemetry it measures the agreement of sources."""
        return plain_by_source(step, total)

    def memory(self, optimizer: Any) -> Memory:
        """Whose turn it is to be a probe, where that rotates."""
        return Turns() if self.probes == "rotate" else super().memory(optimizer)

    def _order(self, step: Step, num: int, m: int) -> list[int]:
        """Anchors, then probes: the last m of num, or in turn t those at positions t m, t m + 1, ... (mod num)."""
        if self.probes == "last":
            return list(range(num))
        assert isinstance(step.memory, Turns)
        turn = step.memory.begin(step.active)
        probes = [(turn * m + j) % num for j in range(m)]
        return [i for i in range(num) if i not in probes] + sorted(probes)

    def _by_source(self, step: Step, total: Vector, sources: Sources) -> Schedule:
        """The same with sources for micro-batches: m of the S sources are probes."""
        m = num_probes(sources.num, self.probe_fraction)
        turned = [sources.members[s] for s in self._order(step, sources.num, m)]
        settings = step.settings
        schedule: Schedule
        if sources.even and not settings.objective.own and not settings.telemetry:
            # A mean over sources is one over their micro-batches, and no micro-batch's own gradient is asked for: which of the
            # anchors, or of the probes, comes first is of no consequence.
            order = [i for part in (turned[:-m], turned[-m:]) for i in sorted(chain.from_iterable(part))]
            schedule = SharedDirectionSplit(step, total, m * len(turned[0]))
        else:
            order = list(chain.from_iterable(turned))
            place = {i: position for position, i in enumerate(order)}
            ordered = Sources(tuple(tuple(place[i] for i in places) for places in turned))
            schedule = SourcesSplit(step, total, ordered, m)
        return schedule if order == list(range(step.num)) else Reordered(schedule, order)


class Turns(Memory):
    """How many steps had the term so far: which positions are probes next, where they rotate.

    Steps are no measure of it: with `every`, or a weight that is 0 again and again, some positions would never be probes.
    """

    def __init__(self) -> None:
        self._turn = self._before = 0
        self._active = False

    def begin(self, active: bool) -> int:
        """The turn of a step, which takes it if it has the term."""
        self._before, self._active = self._turn, active
        return self._turn

    def commit(self) -> None:
        """The step has had its turn."""
        self._turn = self._before + self._active

    def roll_back(self) -> None:
        """Its turn comes again."""
        self._turn = self._before

    def state_dict(self, params: Callable[[], Sequence[Parameter]], remembers: bool) -> dict[str, Any]:
        """The turn."""
        return {"turn": self._turn}

    def load_state_dict(self, state: Mapping[str, Any], params: Callable[[], Sequence[Parameter]]) -> None:
        """Go on with a saved turn; version 0.1.0 saved none, and took the number of steps for it.

        Raises:
            TypeError: a turn that is no integer.
            ValueError: a negative one.
        """
        self._turn = self._before = count("turn", state.get("turn", state["num_steps"]), least=0)
        self._active = False


class Reordered(Schedule):
    """A schedule that sees the micro-batches in another order: base passes run anchors first.

    Losses and auxiliaries come back in the order of the micro-batches.

    Args:
        inner: the schedule.
        order: the places of the micro-batches, in the order in which it sees them.
    """

    needs_all = True

    def __init__(self, inner: Schedule, order: list[int]) -> None:
        super().__init__(inner.step)
        self.inner = inner
        self.order = order

    def run(self, closures: Sequence[Closure]) -> list[Tensor]:
        """The inner schedule in its order."""
        losses = self.inner.run([closures[i] for i in self.order])
        place = {i: position for position, i in enumerate(self.order)}
        for listed in (losses, self.step.passes.aux, self.step.sketches):
            listed[:] = [listed[place[i]] for i in range(len(listed))]
        return losses

    def finish(self) -> dict[str, Tensor]:
        """As the inner schedule."""
        return self.inner.finish()


class _Split(Schedule):
    """The anchors, which every kind of split treats alike."""

    def __init__(self, step: Step, total: Vector, num: int) -> None:
        super().__init__(step)
        self.m = num
        self.num_anchors = step.num - num
        self.sums = Sums(step, total)
        self.total = total

    def visit(self, closure: Closure) -> Tensor:
        """Base pass of an anchor, or all passes of a probe."""
        if self.step.separate and self.step.settings.objective.own:
            self.separate()
        visit = self.anchor if self.num_visited < self.num_anchors else self.probe
        loss = visit(closure)
        self.num_visited += 1
        return loss

    def anchor(self, closure: Closure) -> Tensor:
        """Base pass of an anchor; its gradient is isolated only where its norm is needed."""
        if self.sums.units is None:
            more = self.num_visited + 1 < self.num_anchors
            return self.step.passes.base_pass(closure, self.total, more=more)
        loss, g = self.step.passes.isolated_pass(closure)
        self.sums.add(g)
        return loss

    def separate(self) -> None:
        """Called before a pass: where ranks count by themselves they have only their reference in common."""
        if not self.step.settings.objective.unit:  # the last anchor's pass averages the total
            self.step.passes.local = self.num_visited >= self.num_anchors
        elif self.num_visited == self.num_anchors and self.sums.units is not None:
            self.step.average(self.sums.units)
        else:
            self.step.passes.local = True

    @abstractmethod
    def probe(self, closure: Closure) -> Tensor:
        """All passes of a probe."""


class SharedDirectionSplit(_Split):
    """dot and norm: every probe is displaced along the mean gradient of the anchors.

    With `q` from the displacement and `gain = q k / m`, passes are differentiated with these ratios to the plain loop's factor:
    displaced -weight gain, base 1 + weight gain (central: -+ weight gain / 2 at the two sides, base 1).

    The term is stored on its own only where its norm, or that of gbar, is needed, or where parameters have hooks: passes then
    run at ratios 1 and -1.
    """

    def __init__(self, step: Step, total: Vector, num: int) -> None:
        super().__init__(step, total, num)
        stored = step.settings.telemetry or step.settings.normalize == "gradient" or step.hooked
        self.term = step.new_term() if stored else None
        self.side = 1.0
        self.losses: list[Tensor] = []  # of the difference quotient, with their signs

    def run(self, closures: Sequence[Closure]) -> list[Tensor]:
        """Displaced passes of all probes first, chained in random numbers and buffers, then all base passes."""
        losses = [self.visit(closure) for closure in closures[: self.num_anchors]]
        probes = closures[self.num_anchors :]
        start = self.step.passes.replay_state()
        self.displace()
        self.displaced_passes(probes, last=self.sides == 1)
        start.put_back()
        if self.sides == 2:
            self.cross()
            self.displaced_passes(probes, last=True)
            start.put_back()
        self.step.displacement.restore()
        for closure in probes:
            losses.append(self.base_pass(closure))
            self.num_visited += 1
        return losses

    def probe(self, closure: Closure) -> Tensor:
        """Displaced pass, then base pass, the parameters at theta in between visits."""
        displacement = self.step.displacement
        start = self.step.passes.replay_state()
        if self.num_visited == self.num_anchors:
            self.displace()
        else:
            displacement.step_in()
        last = self.num_visited + 1 == self.step.num
        self.displaced_passes([closure], last=last and self.sides == 1)
        start.put_back()
        if self.sides == 2:
            self.cross()
            self.displaced_passes([closure], last=last)
            start.put_back()
        displacement.step_out()
        return self.base_pass(closure)

    def finish(self) -> dict[str, Tensor]:
        """Fill `.grad`; in the lean form, and between sources, the dot product is the quotient of the probes' losses."""
        self.step.displacement.restore()
        if self.term is not None and self.term.parts is not None:
            # The displaced passes are added up first, each rounded as the sum so far.
            self.term.parts = self.term.parts * self.m
        self.step.close(self.total, self.term)
        change = stacked(self.losses, self.step.space.home) * self.step.loss_share
        quotient = self.step.settings.objective.alpha * sum_in_order(change) / (self.eps * self.m)
        # Without a displacement it is 0, or NaN where the anchors' gradient is not finite.
        return {"dot": torch.where(self.eps != 0, quotient, 0.0 * self.gradient_norm)}

    def displace(self) -> None:
        """theta -> theta + radius v^."""
        step = self.step
        aim = step.aim(
            step.space.norm_dot(self.total, over=step.space.measured), self.step.mean_scale(self.num_anchors)
        )
        self.gradient_norm = aim.gradient_norm
        self.eps, q = step.displace(aim, self.total)
        self.gain = q * step.num / self.m
        self.sides = 2 if step.settings.central else 1
        if self.term is not None:
            self.term.unit = self.gain / self.sides
        else:
            pull = step.weight * self.gain  # ratios of the lean form
            self.base_ratio = 1 + pull if self.sides == 1 else 1.0
            self.displaced_ratio = -pull if self.sides == 1 else -step.weight * (0.5 * self.gain)

    def cross(self) -> None:
        """To the other side of theta."""
        self.step.displacement.reflect()
        self.side = -self.side

    def displaced_passes(self, closures: Sequence[Closure], last: bool) -> None:
        """Displaced passes; `last`: no others follow in this step. In the lean form base passes into the same vector do."""
        for i, closure in enumerate(closures, 1):
            if self.term is None:
                ratio = self.displaced_ratio if self.side > 0 else -self.displaced_ratio
                loss = self.step.passes.displaced_pass(closure, self.total, ratio, more=True)
            else:
                more = not last or i < len(closures)
                loss = add_displaced(self.step, closure, self.term, self.side, more=more)
            self.note_loss(loss, self.side / self.sides)

    def base_pass(self, closure: Closure) -> Tensor:
        """Base pass of a probe."""
        step, one_sided = self.step, self.sides == 1
        if self.term is None:
            loss = step.passes.base_pass(closure, self.total, self.base_ratio, more=self.num_visited + 1 < step.num)
        else:
            loss, g = step.passes.isolated_pass(closure)
            if step.sources is None:
                self.sums.add(g, num_before=self.num_visited)
            else:  # products of micro-batches are not those of sources: as in the lean form, the dot product is the quotient
                step.space.accumulate(self.total, g)
            subtract_base(step, self.term, g, step.space.one())
        if one_sided:
            self.note_loss(loss, -1.0)
        return loss

    def note_loss(self, loss: Tensor, sign: float) -> None:
        """One loss of the difference quotient."""
        self.losses.append(sign * loss)  # a power of two: exact in any dtype; a copy of what loss_fn may write into


class OwnDirectionSplit(_Split):
    """variance and cosine: the displacement of a probe contains its own gradient.

    The reference x (the sum over the anchors) stays as it is until the last probe has been compared with it; meanwhile
    gradients of probes are added to a vector of their own. The probe's gradient is let go before its displaced pass.
    """

    def __init__(self, step: Step, total: Vector, num: int) -> None:
        super().__init__(step, total, num)
        self.term = step.new_term()
        frozen = self.sums.reference is total and num > 1
        self.late: Vector = step.space.zeros() if frozen else total
        self.late_units: Vector | None = None  # of the probes, to compare them with one another
        if step.settings.objective.unit and step.settings.telemetry and num > 1:
            self.late_units = step.space.zeros()

    def probe(self, closure: Closure) -> Tensor:
        """Base pass, then displaced along a combination of the reference and this gradient."""
        reference, scale = self.sums.reference, self.step.mean_scale(self.num_anchors)
        more = self.num_visited + 1 < self.step.num
        return compare(self.step, closure, reference, scale, 1 / self.m, self.term, self.keep, more=more)

    def keep(self, g: Vector, sums: Tensor) -> None:
        """Add the gradient of a probe, and its products with those of the anchors, to the sums."""
        step = self.step
        if step.settings.objective.unit:
            step.agreement.cosines(step.space.part(sums[1]) * inverse_length(sums[2]), self.num_anchors)
            square = step.record(g, self.late, self.num_visited)
            if self.late_units is not None:
                step.record_unit(g, square, self.late_units, self.num_visited - self.num_anchors)
        elif self.late is self.total:
            self.sums.add(g, num_before=self.num_visited)
        else:
            step.agreement.dots(step.space.part(sums[1]), self.num_anchors, step.own_square)
            self.sums.add(g, self.late, self.num_visited - self.num_anchors)

    def finish(self) -> dict[str, Tensor]:
        """Put the sums together and fill `.grad`."""
        if self.late is not self.total:
            self.step.space.accumulate(self.total, self.late)
        self.step.close(self.total, self.term)
        return {}
