"""`leave_one_out` and `split` between sources that have several micro-batches each.

    G_s = mean of g_i over the micro-batches of source s,      A is a function of G_1 ... G_S
    term = sum_s omega_s s H_s w_s,      H_s w = mean of H_i w over the micro-batches of s

Within a source nothing is compared. `.grad` is still `gbar - weight term`, gbar the mean over all micro-batches. Where every
source has one micro-batch, the schedules of micro-batches run instead: both compute the same.

A source's gradient is stored as the sum of its micro-batches' stored gradients, which sources of different sizes bring in
different units. `SourceSums` keeps the sum of the G_s then beside the sum that becomes `.grad`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from gradalign.backends.reference_scalars import inverse_length
from gradalign.engine.comparison import aim_at_others, displaced_passes, subtract_base
from gradalign.engine.passes import Closure, ReplayState
from gradalign.engine.plain import Plain
from gradalign.engine.schedule import Schedule
from gradalign.engine.sources import Sources
from gradalign.engine.space import Vector
from gradalign.engine.step import Step
from gradalign.estimators.gradient_store import GradientStore, fetched, stored


class Visited(NamedTuple):
    """A micro-batch after its base pass: what evaluates it again, and from which random numbers and buffers."""

    closure: Closure
    start: ReplayState


class SourceSums:
    """Sums over the gradients of the sources so far, and how they are scaled.

    Attributes:
        total: sum over all micro-batches; the vector that becomes `.grad`.
        means: sum over sources of their mean gradients; the same vector where all have as many micro-batches.
        units: sum of the unit gradients of sources, None where nobody needs it.
        reference: what the objective compares with.
    """

    def __init__(self, step: Step, total: Vector, sources: Sources) -> None:
        self._step = step
        self._count = sources.mean_count
        unit = step.settings.objective.unit
        self.total = total
        self.means: Vector = total if sources.even else step.space.zeros()
        self.units: Vector | None = step.space.zeros() if unit or step.settings.telemetry else None
        self._num_means = self._num_units = 0

    @property
    def reference(self) -> Vector:
        """Means or units, as the objective says."""
        if not self._step.settings.objective.unit:
            return self.means
        assert self.units is not None
        return self.units

    def own(self, size: int) -> Tensor:
        """What turns the stored gradient of a source of `size` micro-batches into its gradient."""
        return self._step.own_scale / size

    def part(self, size: int) -> float:
        """What of that stored gradient is in `means`."""
        return self._count / size

    def mean_scale(self, num: int) -> Tensor:
        """What turns a stored sum over `num` sources into the objective's mean of them."""
        return self._step.mean_scale(num) if self._step.settings.objective.unit else self._dot_scale / num

    @property
    def _dot_scale(self) -> Tensor:
        return self._step.own_scale / self._count

    def add(self, g: Vector, size: int) -> None:
        """Add the stored gradient of a source of `size` micro-batches, and note its products with the sources before it."""
        step, space = self._step, self._step.space
        if self.means is self.total:
            square, cross = space.accumulate(self.total, g, over=space.measured).unbind()
            space.accumulate(self.total, g, over=space.others)
        else:
            square, cross = space.accumulate(self.means, g, space.scalar(self.part(size)), over=space.measured).unbind()
            space.accumulate(self.total, g)
        own = self.own(size)
        step.agreement.square(square * own**2)
        if self._num_means:
            step.agreement.dots(cross * self._dot_scale * own, self._num_means)
        if self.units is not None:
            step.record_unit(g, square, self.units, self._num_units)
        self._num_means += 1
        self._num_units += 1

    def note_cross(self, sums: Tensor, size: int, num: int) -> None:
        """Note the products of a source with the `num` sources of a reference that stays as it is.

        Args:
            sums: [x.x, x.g, g.g] of the reference and the source's gradient as they are stored.
            size: of the source.
            num: of the reference.
        """
        agreement, product = self._step.agreement, self._step.space.part(sums[1])
        if self._step.settings.objective.unit:
            agreement.cosines(product * inverse_length(sums[2]), num)
        else:
            agreement.dots(product * self._dot_scale * self.own(size), num)

    def freeze(self) -> Vector:
        """The reference, to which nothing is added from now on: later sources go into a vector of their own."""
        reference, space = self.reference, self._step.space
        if reference is self.units:
            self.units = space.zeros() if self._step.settings.telemetry else None
            self._num_units = 0
            return reference
        if self.means is self.total:
            self.total = self.means = space.zeros()
        else:
            self.means = space.zeros()
        self._num_means = 0
        return reference


class _BySource(Schedule):
    """Base and displaced passes of the micro-batches of a source."""

    needs_all = True

    def __init__(self, step: Step, total: Vector, sources: Sources) -> None:
        super().__init__(step)
        self.sources = sources
        self.sums = SourceSums(step, total, sources)
        self.term = step.new_term()

    def base_pass(self, closure: Closure, g: Vector, more: bool) -> Tensor:
        """Base pass of a micro-batch, added to the gradient of its source; `more` of them follow."""
        if self.step.tasks is None:
            return self.step.passes.base_pass(closure, g, more=more)
        loss, own = self.step.passes.isolated_pass(closure)
        self.step.sketch(own)
        self.step.space.accumulate(g, own)
        return loss

    def displaced(self, g: Vector, visited: Sequence[Visited], q: Tensor, num: int, more: bool) -> None:
        """term <- term + 1 / num (difference of the source's gradient); parameters are left displaced.

        Args:
            g: the stored gradient of the source, which is let go before the displaced passes.
            visited: its micro-batches.
            q: factor of the difference.
            num: of sources that are displaced in this step.
            more: whether one of them follows.
        """
        gain = q * (self.step.num / (num * len(visited)))
        subtract_base(self.step, self.term, g, self.term.ratio(gain))
        g.clear()
        closures, starts = [v.closure for v in visited], [v.start for v in visited]
        displaced_passes(self.step, closures, starts, self.term, gain, more=more)


class SourcesLeaveOneOut(_BySource):
    """Every source against all others: all base passes in order, then the displaced passes source by source.

    Args:
        step: the step in progress.
        total: the vector that becomes `.grad`.
        sources: which micro-batches are whose.
        store: where the gradients of sources are meanwhile, as in `LeaveOneOut`.
    """

    def __init__(self, step: Step, total: Vector, sources: Sources, store: GradientStore) -> None:
        super().__init__(step, total, sources)
        self.store = store

    def run(self, closures: Sequence[Closure]) -> list[Tensor]:
        """k base passes, then k displaced ones (2k with central differences)."""
        passes, step = self.step.passes, self.step
        whose = self.sources.whose
        visited: list[list[Visited]] = [[] for _ in self.sources.members]
        gradients: list[Vector] = [step.space.zeros() for _ in self.sources.members]
        losses = []
        for i, closure in enumerate(closures):
            s = whose[i]
            visited[s].append(Visited(closure, passes.replay_state()))
            last = i == self.sources.members[s][-1]
            losses.append(self.base_pass(closure, gradients[s], more=not last))
            if last:
                gradients[s] = self.put_away(gradients[s], len(visited[s]))
        end = passes.replay_state()
        end.leave_unused([v.start for members in visited for v in members])
        for s, members in enumerate(visited):
            size, reference = len(members), self.sums.reference
            g, gradients[s] = self.fetch(gradients[s], members), []
            others = self.sums.mean_scale(self.sources.num - 1)
            aim = aim_at_others(step, reference, g, self.sums.part(size), others, self.sums.own(size))
            _, q = step.displace(aim, reference, g)
            self.displaced(g, members, q, self.sources.num, more=s + 1 < self.sources.num)
        step.displacement.restore()
        end.put_back()
        return losses

    def finish(self) -> dict[str, Tensor]:
        """Fill `.grad`."""
        self.step.close(self.sums.total, self.term)
        return {}

    def put_away(self, g: Vector, size: int) -> Vector:
        """Add the gradient of a source to the sums, and keep it where it is to be kept."""
        kept = [] if self.store == "recompute" else stored(g, self.sums.total, self.store)
        self.sums.add(g, size)
        return kept

    def fetch(self, g: Vector, visited: Sequence[Visited]) -> Vector:
        """The gradient of a source, from where it is."""
        if self.store != "recompute":
            return fetched(g, self.step.space, self.store)
        self.step.displacement.restore()  # that of the source before is still there
        gradient = self.step.space.zeros()
        for i, (closure, start) in enumerate(visited, 1):
            start.put_back()
            self.step.passes.displaced_pass(closure, gradient, 1.0, more=i < len(visited))
        return gradient


class SourcesPlain(Schedule):
    """No term: the plain accumulation loop, which measures the agreement of sources."""

    replays = False

    def __init__(self, step: Step, total: Vector, sources: Sources) -> None:
        super().__init__(step)
        self.total = total
        self.sources = sources
        self.whose = sources.whose
        # `total` has to be added up in the plain loop's order, so that the sums have a vector of their own.
        self.sums = SourceSums(step, step.space.zeros(), sources)
        self.gradients: list[Vector] = [step.space.zeros() for _ in sources.members]

    def visit(self, closure: Closure) -> Tensor:
        """One base pass, whose gradient is looked at before it is added."""
        step, place = self.step, self.num_visited
        loss, g = step.passes.isolated_pass(closure)
        step.sketch(g)
        s = self.whose[place]
        step.space.accumulate(self.gradients[s], g, step.space.one())
        step.space.accumulate(self.total, g)
        if place == self.sources.members[s][-1]:
            self.sums.add(self.gradients[s], len(self.sources.members[s]))
            self.gradients[s] = []
        self.num_visited += 1
        return loss

    def finish(self) -> dict[str, Tensor]:
        """The sum is the gradient."""
        self.step.close(self.total, None)
        return {}


class SourcesSplit(_BySource):
    """Some sources, the probes, against the others, which come before them.

    Args:
        step: the step in progress.
        total: the vector that becomes `.grad`.
        sources: which micro-batches are whose; those of the probes are the last ones.
        probes: how many sources are probes.
    """

    def __init__(self, step: Step, total: Vector, sources: Sources, probes: int) -> None:
        super().__init__(step, total, sources)
        self.m = probes
        self.total = total

    def run(self, closures: Sequence[Closure]) -> list[Tensor]:
        """Base passes of the anchors; then every probe is evaluated at theta and displaced."""
        losses: list[Tensor] = []
        anchors = self.sources.members[: -self.m]
        for places in anchors:
            losses += self.anchor([closures[i] for i in places])
        reference = self.sums.freeze() if self.m > 1 else self.sums.reference
        for places in self.sources.members[-self.m :]:
            more = places is not self.sources.members[-1]
            losses += self.probe([closures[i] for i in places], reference, len(anchors), more)
        return losses

    def anchor(self, closures: Sequence[Closure]) -> list[Tensor]:
        """Base passes of a source that is no probe; returns its losses. Its own gradient is let go here, before the probes."""
        g, size = self.step.space.zeros(), len(closures)
        losses = [self.base_pass(closure, g, more=i < size) for i, closure in enumerate(closures, 1)]
        self.sums.add(g, size)
        return losses

    def probe(self, closures: Sequence[Closure], reference: Vector, num_anchors: int, more: bool) -> list[Tensor]:
        """All passes of a source that is a probe; returns its base losses. `more`: another probe follows."""
        step, size, passes = self.step, len(closures), self.step.passes
        g, visited, losses = step.space.zeros(), [], []
        for closure in closures:
            visited.append(Visited(closure, passes.replay_state()))
            losses.append(self.base_pass(closure, g, more=len(visited) < size))
        end = passes.replay_state()
        end.leave_unused([v.start for v in visited])
        sums = step.space.norm_dot(reference, g, over=step.space.measured)
        aim = step.aim(sums, self.sums.mean_scale(num_anchors), self.sums.own(size))
        _, q = step.displace(aim, reference, g)
        if self.m > 1:
            self.sums.note_cross(sums, size, num_anchors)
        self.sums.add(g, size)
        self.displaced(g, visited, q, self.m, more)
        step.displacement.restore()
        end.put_back()
        return losses

    def finish(self) -> dict[str, Tensor]:
        """Put the sums together and fill `.grad`."""
        if self.sums.total is not self.total:
            self.step.space.accumulate(self.total, self.sums.total)
        self.step.close(self.total, self.term)
        return {}


def plain_by_source(step: Step, total: Vector) -> Schedule:
    """The schedule of a step without the term, where micro-batches may be labelled with their sources."""
    if step.sources is None or not step.settings.telemetry:
        return Plain(step, total)
    return SourcesPlain(step, total, step.sources)
