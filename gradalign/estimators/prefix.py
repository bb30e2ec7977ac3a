"""`prefix`: every micro-batch is compared with all before it.

    term = sum_i 2 (i - 1) / (k (k - 1)) s H_i w_i,      i = 2..k

Every pair is looked at once, in 2k - 1 passes (central: 3k - 2). Averaged over all orders of the micro-batches, with
normalize="none", it is the gradient of A.

With blocks of b micro-batches (dot and norm) those of a block are compared with all blocks before it, and share one
displacement: c_i = b floor((i - 1) / b) in place of i - 1, weights c_i / sum c, and 2k - b passes (central: 3k - 2b).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from gradalign.engine.comparison import compare, displaced_passes, subtract_base
from gradalign.engine.estimator import Estimator
from gradalign.engine.passes import Closure
from gradalign.engine.schedule import Schedule
from gradalign.engine.space import Vector
from gradalign.engine.step import Settings, Step
from gradalign.engine.sums import Sums
from gradalign.engine.validation import count


@dataclass(frozen=True)
class Prefix(Estimator):
    """Every micro-batch against all before it.

    Attributes:
        block: how many micro-batches share a displacement; larger ones need fewer passes and compare fewer pairs.

    Raises:
        ValueError: a block below 1.
        TypeError: a block that is no integer.
    """

    name = "prefix"
    block: int = 1

    def __post_init__(self) -> None:
        count("block", self.block, least=1)

    def check(self, settings: Settings, objective: str) -> None:
        """Blocks have one displacement, which cannot contain the gradient of each of their micro-batches."""
        super().check(settings, objective)
        if self.block > 1 and settings.objective.own:
            raise ValueError(
                f'estimator "prefix" with block={self.block}: expected objective "dot" or "norm"; got "{objective}", whose '
                "displacements differ between micro-batches; use block=1"
            )

    def make(self, step: Step, total: Vector) -> Schedule:
        """2k - block passes."""
        if self.block == 1:
            return PrefixSchedule(step, total)
        if self.block >= step.num:
            raise ValueError(
                f'estimator "prefix" with block={self.block}: expected more micro-batches than one block has; got '
                f"{step.num}; use a smaller block"
            )
        return BlockSchedule(step, total, self.block)


class PrefixSchedule(Schedule):
    """The sum of the gradients so far is the reference, and grows."""

    def __init__(self, step: Step, total: Vector) -> None:
        super().__init__(step)
        self.sums = Sums(step, total)
        self.term = step.new_term(largest=step.num - 1)

    def visit(self, closure: Closure) -> Tensor:
        """Base pass; from the second micro-batch on, displaced passes."""
        step, num, before = self.step, self.step.num, self.num_visited
        if before:
            omega = 2 * before / (num * (num - 1))
            reference, scale = self.sums.reference, step.mean_scale(before)
            loss = compare(
                step,
                closure,
                reference,
                scale,
                omega,
                self.term,
                lambda g, _: self.sums.add(g),
                more=before + 1 < num,
            )
        else:
            loss, g = step.passes.isolated_pass(closure)
            self.sums.add(g)
        self.num_visited += 1
        return loss

    def finish(self) -> dict[str, Tensor]:
        """Fill `.grad`."""
        self.step.close(self.sums.total, self.term)
        return {}


class BlockSchedule(Schedule):
    """The same block by block, for dot and norm: one displacement for all micro-batches of a block.

    The gradients of a block are added up apart from those before it, along which it is displaced.
    """

    def __init__(self, step: Step, total: Vector, block: int) -> None:
        super().__init__(step)
        self.block = block
        self.sums = Sums(step, total)
        self.own: Vector = step.space.zeros()  # sum over the micro-batches of the block
        firsts = [i - i % block for i in range(step.num)]
        self.pairs = sum(firsts)
        self.term = step.new_term(largest=firsts[-1] // block)

    def run(self, closures: Sequence[Closure]) -> list[Tensor]:
        """Block by block: all base passes, then all displaced passes."""
        losses, passes = [], self.step.passes
        for first in range(0, len(closures), self.block):
            block, starts = closures[first : first + self.block], []
            for closure in block:
                starts.append(passes.replay_state())
                losses.append(self.base_pass(closure, more=len(starts) < len(block)))
            if first:
                end = passes.replay_state()
                end.leave_unused(starts)
                self.displace(first)
                more = first + self.block < len(closures)
                displaced_passes(self.step, list(block), starts, self.term, self.gain, more=more)
                self.step.displacement.restore()
                end.put_back()
            self.add_block(first, len(block))
        return losses

    def visit(self, closure: Closure) -> Tensor:
        """Base pass, and displaced passes from the second block on; the parameters are at theta in between."""
        step, place = self.step, self.num_visited % self.block
        first, last = self.num_visited - place, self.num_visited + 1 == step.num
        ends = last or place + 1 == self.block
        start = step.passes.replay_state()
        loss = self.base_pass(closure, more=not ends)
        if first:
            end = step.passes.replay_state()
            end.leave_unused([start])
            if place:
                step.displacement.step_in()
            else:
                self.displace(first)
            displaced_passes(step, [closure], [start], self.term, self.gain, more=not last)
            if step.settings.central:
                step.displacement.reflect()
            step.displacement.step_out()
            end.put_back()
        if ends:
            step.displacement.restore()
            self.add_block(first, place + 1)
        return loss

    def base_pass(self, closure: Closure, more: bool) -> Tensor:
        """Base pass of a micro-batch; `more` of the block follow. Its gradient is isolated only where its norm is needed."""
        place = self.num_visited % self.block
        into = self.sums.total if place == self.num_visited else self.own
        self.num_visited += 1
        if self.sums.units is None:
            return self.step.passes.base_pass(closure, into, more=more)
        loss, g = self.step.passes.isolated_pass(closure)
        self.sums.add(g, into, place)
        return loss

    def displace(self, before: int) -> None:
        """theta -> theta + radius v^ along the mean of the gradients before the block."""
        step, total = self.step, self.sums.total
        sums = step.space.norm_dot(total, over=step.space.measured)
        _, q = step.displace(step.aim(sums, step.mean_scale(before)), total)
        self.gain = q * (before / self.pairs) * step.num

    def add_block(self, before: int, num: int) -> None:
        """After the passes of a block of `num`: its gradients go into the sum, and with forward differences into the term."""
        if not before:
            return
        step, space = self.step, self.step.space
        subtract_base(step, self.term, self.own, self.term.ratio(self.gain))
        _, cross = space.accumulate(self.sums.total, self.own, over=space.measured).unbind()
        space.accumulate(self.sums.total, self.own, over=space.others)
        step.agreement.dots(cross, before * num, step.own_square)
        self.own = space.zeros()

    def finish(self) -> dict[str, Tensor]:
        """Fill `.grad`."""
        self.step.close(self.sums.total, self.term)
        return {}
