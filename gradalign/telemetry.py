"""Statistics of a step: how well its gradients agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from gradalign.engine import validation
from gradalign.engine.devices import sum_in_order
from gradalign.run_plot import plot

__all__ = ["AlignmentStats", "logs", "plot", "plot_tasks"]


@dataclass(frozen=True)
class AlignmentStats:
    """Statistics of one step, as 0-dim tensors on the device; only reading one (`float(stats.dot)`) synchronises.

    A field is None where the step could not know it; `telemetry=True` makes `dot`, `cosine` and the noise scale known, and
    exact for these micro-batches, in every step, inactive ones included.

    Attributes:
        loss: mean loss of the base passes.
        dot: mean g_i . g_j over pairs of micro-batches [loss^2 / parameter^2], on the measured parameters. In `split` with
            dot or norm under none or direction, or between sources with equally many micro-batches, it is the quotient of the
            probes' losses, (L(theta + eps v) - L(theta)) / eps, for pairs of a probe with an anchor: a few percent off at
            radius 0.01 in fp32, up to 26% with bf16 weights. Elsewhere it is exact, over all pairs or some (docs/telemetry.md
            says which). None in a step without the term.
        cosine: mean cos(g_i, g_j) over pairs of micro-batches. None but for the cosine objective or telemetry.
        grad_norm: norm of the gradient left in `.grad`, loss scale taken out [loss / parameter].
        term_norm: norm of the term before it is multiplied by the weight; None in `split` with dot or norm under none or
            direction without telemetry, and in a step without the term.
        noise_scale: gradient noise scale in micro-batches, tr(Cov g_i) / ||E g||^2 (McCandlish et al. 2018, arXiv:1812.06162);
            None where not every gradient's norm is known. The quotient of the two unbiased estimates below.
        noise_numerator: mean ||g_i||^2 - mean g_i . g_j, an unbiased estimate of tr(Cov g_i).
        noise_denominator: mean g_i . g_j, an unbiased estimate of ||E g||^2.
        radius: length of the displacement asked for [parameter]; None in a step without the term.
        displacement_cosine: cosine between the displacement asked for and the one that the parameters' dtype could represent;
            None in a step without the term.
        passes: forward and backward passes run.
        tasks: the tasks of the step, sorted, where micro-batches were labelled; else None.
        task_cosines: cosines between the tasks' mean gradients on the measured parameters, shape (tasks, tasks), from sketches:
            a standard error of at most 0.022 (`gradalign.engine.sketch`); None without labels.
    """

    loss: Tensor
    passes: int
    grad_norm: Tensor | None = None
    dot: Tensor | None = None
    cosine: Tensor | None = None
    term_norm: Tensor | None = None
    noise_scale: Tensor | None = None
    noise_numerator: Tensor | None = None
    noise_denominator: Tensor | None = None
    radius: float | None = None
    displacement_cosine: Tensor | None = None
    tasks: tuple[str, ...] | None = None
    task_cosines: Tensor | None = None

    def as_dict(self) -> dict[str, Any]:
        """Every field as plain Python numbers, for a logger; in one transfer from the device.

        Returns:
            name -> value for every field: a float for a tensor, None where it is not known, for `task_cosines` a list of lists.
        """
        known = {f.name: getattr(self, f.name) for f in fields(self)}
        tensors = {name: value for name, value in known.items() if isinstance(value, Tensor)}
        numbers = torch.cat([value.double().flatten() for value in tensors.values()]).cpu()
        pieces = numbers.split([value.numel() for value in tensors.values()])
        shaped = zip(tensors.items(), pieces, strict=True)
        return known | {name: piece.reshape(value.shape).tolist() for (name, value), piece in shaped}


def logs(stats: AlignmentStats | None, prefix: str = "align/") -> dict[str, float]:
    """What is known of a step as plain floats, for any logger; one transfer from the device.

        logger.log(gradalign.telemetry.logs(aligner.stats), step=step)

    Args:
        stats: of a step.
        prefix: of every name.

    Returns:
        name -> value: every field that is not None; of `task_cosines` one value for each pair of tasks, named
        `task_cosine/first/second`.

    Raises:
        ValueError: there was no step yet.
    """
    if stats is None:
        raise ValueError(
            "logs: expected the statistics of a step; got None; aligner.stats is None before the first one"
        )
    found = stats.as_dict()
    names, cosines = found.pop("tasks") or (), found.pop("task_cosines") or []
    numbers = {name: float(value) for name, value in found.items() if value is not None}
    for i, row in enumerate(cosines):
        numbers |= {f"task_cosine/{names[i]}/{names[j]}": value for j, value in enumerate(row[:i])}
    return {prefix + name: value for name, value in numbers.items()}


class RunningSum:
    """A sum of 0-dim tensors that is taken once, where it is read.

    Args:
        zero: 0-dim float64 zero on the device.
    """

    def __init__(self, zero: Tensor) -> None:
        self._zero = zero
        self._parts: list[Tensor] = []
        self._factor: Tensor | None = None
        self.num = 0

    def add(self, value: Tensor, factor: Tensor | None, num: int) -> None:
        """Add factor * value (None: 1), a sum over `num` itself."""
        if self._parts and factor is not self._factor:
            self._parts = [*self._scaled()]
            self._factor = None
            value = value if factor is None else value * factor
        elif not self._parts:
            self._factor = factor
        self._parts.append(value)
        self.num += num

    @property
    def total(self) -> Tensor:
        """The sum."""
        if not self._parts:
            return self._zero
        return sum_in_order(self._scaled())

    def replace(self, total: Tensor) -> None:
        """Another value for the sum."""
        self._parts, self._factor = [total], None

    def _scaled(self) -> Tensor:
        parts = torch.stack(self._parts)
        return parts if self._factor is None else parts * self._factor


class Agreement:
    """Sums over the gradients of one step that give dot, cosine and noise scale.

    Args:
        num: k, the number of micro-batches.
        zero: 0-dim float64 zero on the device.
    """

    def __init__(self, num: int, zero: Tensor) -> None:
        self._num = num
        self._squares, self._dots, self._cosines = (RunningSum(zero) for _ in range(3))

    @property
    def sums(self) -> Sequence[Tensor]:
        """Of squares, dots and cosines: of this process, where several hold parts of the gradients."""
        return self._squares.total, self._dots.total, self._cosines.total

    @sums.setter
    def sums(self, values: Sequence[Tensor]) -> None:
        for kind, value in zip((self._squares, self._dots, self._cosines), values, strict=True):
            kind.replace(value)

    def square(self, norm_square: Tensor, factor: Tensor | None = None) -> None:
        """||g_i||^2 of one micro-batch, to be multiplied with a factor."""
        self._squares.add(norm_square, factor, 1)

    def dots(self, total: Tensor, pairs: int, factor: Tensor | None = None) -> None:
        """A sum of g_i . g_j over some pairs, to be multiplied with a factor."""
        self._dots.add(total, factor, pairs)

    def cosines(self, total: Tensor, pairs: int) -> None:
        """A sum of cos(g_i, g_j) over some pairs."""
        self._cosines.add(total, None, pairs)

    def known(self) -> dict[str, Tensor]:
        """The fields of `AlignmentStats` that these sums give."""
        found: dict[str, Tensor] = {}
        if self._dots.num:
            found["dot"] = self._dots.total / self._dots.num
        if self._cosines.num:
            found["cosine"] = self._cosines.total / self._cosines.num
        if self._squares.num == self._num and self._dots.num:
            found["noise_denominator"] = found["dot"]
            found["noise_numerator"] = self._squares.total / self._num - found["dot"]
            found["noise_scale"] = found["noise_numerator"] / found["noise_denominator"]
        return found


def plot_tasks(stats: AlignmentStats, path: str | PathLike[str]) -> None:
    """Draw the alignment of tasks as a heat map; needs matplotlib.

    Args:
        stats: of a step whose micro-batches were labelled.
        path: where the picture goes; its ending says the format.

    Raises:
        ValueError: statistics without tasks.
        ImportError: no matplotlib.
    """
    if stats.tasks is None or stats.task_cosines is None:
        raise ValueError("plot_tasks: expected statistics with tasks; got none; pass tasks=[...] to aligner.backward")
    figure = validation.figure_class("plot_tasks")(
        figsize=(1.5 + 0.7 * len(stats.tasks), 1 + 0.7 * len(stats.tasks)), layout="constrained"
    )
    axes = figure.add_subplot()
    values = stats.task_cosines.tolist()
    image = axes.imshow(values, vmin=-1, vmax=1, cmap="RdBu")
    # A label is text even where it has dollar signs.
    axes.set_xticks(range(len(stats.tasks)), stats.tasks, rotation=45, ha="right", parse_math=False)
    axes.set_yticks(range(len(stats.tasks)), stats.tasks, parse_math=False)
    for row, line in enumerate(values):
        for column, value in enumerate(line):
            dark = "white" if abs(value) > 0.6 else "black"
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=dark)
    figure.colorbar(image, label="cosine of mean gradients")
    figure.savefig(path)
