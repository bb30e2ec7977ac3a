"""Count-sketches of gradients: a few thousand numbers that keep inner products.

    s(x)_b = sum over the elements i of bucket b of sign_i x_i        (Charikar, Chen, Farach-Colton 2002)

Any two elements share a bucket with probability at most 1 / width, and signs are random, so that over the draw of both

    E[s(x) . s(y)] = x . y,      Var[s(x) . s(y)] <= (||x||^2 ||y||^2 + (x . y)^2) / width

to within a relative 1e-3: a cosine has a standard error of at most sqrt(2 / width), 0.022 at the width of 4096. The sketch is
linear: the mean of sketches is the sketch of the mean.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from gradalign.engine.devices import to_device
from gradalign.engine.space import ParamSpace, Vector

WIDTH = 4096
CHUNK = 16 * WIDTH  # elements that share one pattern of buckets and signs
ROWS = 16  # chunks worked on at a time: temporaries of 4 MB


class Sketch:
    """One draw of buckets and signs for all measured parameters of a space, the same in every step.

    Within a chunk the buckets are a random partition into equal parts and the signs independent; from chunk to chunk the same
    pattern is turned by a random shift and multiplied by a random sign. Its own generator is used, never the global one.
    """

    def __init__(self, space: ParamSpace) -> None:
        self._space = space

    @torch.no_grad()
    def of(self, g: Vector) -> Tensor:
        """The sketch of a vector, float64 tensor of shape (WIDTH,) on the home device; over ranks `total` is to be taken."""
        total = torch.zeros(WIDTH, dtype=torch.float64, device=self._space.home)
        first = 0
        for run in self._runs():
            if any(g[i] is not None for i in run):
                total += to_device(_folded(self._flat(g, run), first), total.device)
            first += -(-sum(self._space.params[i].numel() for i in run) // CHUNK)
        return total

    def _runs(self) -> list[list[int]]:
        """Parameters of one device that are worked on together: as many as fit, since each call has the cost of a chunk."""
        runs: list[list[int]] = []
        size, device = 0, None
        for i in self._space.measured:
            p = self._space.params[i]
            size += p.numel()
            if not runs or size > ROWS * CHUNK or p.device != device:
                runs.append([])
                size, device = p.numel(), p.device
            runs[-1].append(i)
        return runs

    def _flat(self, g: Vector, run: list[int]) -> Tensor:
        """Entries of a vector as one, in float32 where they are several."""
        present = [self._whole(i, g[i]) for i in run]
        return present[0].reshape(-1) if len(run) == 1 else torch.cat([t.reshape(-1).float() for t in present])

    def _whole(self, i: int, t: Tensor | None) -> Tensor:
        p, ranks = self._space.params[i], self._space.ranks
        if ranks is None:
            return torch.zeros_like(p) if t is None else t
        if t is None:
            return torch.zeros(p.shape, dtype=p.dtype, device=p.device)
        return ranks.placed(p, t) / ranks.copies([p])[0]


def _folded(flat: Tensor, first: int) -> Tensor:
    """The sketch of a flat tensor whose first chunk has the given number."""
    order, signs, places = _pattern(flat.device)
    total = torch.zeros(WIDTH, dtype=torch.float64, device=flat.device)
    for start in range(0, flat.numel(), ROWS * CHUNK):
        piece = flat[start : start + ROWS * CHUNK].float()
        rows = -(-piece.numel() // CHUNK)
        piece = torch.nn.functional.pad(piece, (0, rows * CHUNK - piece.numel())).view(rows, CHUNK)
        piece = piece[:, order].mul_(signs)
        buckets = piece.view(rows, WIDTH, CHUNK // WIDTH).sum(2)
        shifts, flips = _turns(first + start // CHUNK, rows, flat.device)
        total += (buckets.gather(1, (places + shifts) % WIDTH) * flips).sum(0)
    return total


@functools.cache
def _pattern(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Which element of a chunk goes where, its sign, and the places of the buckets."""
    generator = torch.Generator().manual_seed(0x5EED)
    order = torch.randperm(CHUNK, generator=generator, device="cpu")
    signs = torch.randint(2, (CHUNK,), generator=generator, device="cpu").float() * 2 - 1
    return order.to(device), signs.to(device), torch.arange(WIDTH, device=device)


@functools.cache  # about 1 KB for 2^20 elements of the model
def _turns(first: int, rows: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Shift and sign of some chunks, by their numbers."""
    generator = torch.Generator()
    shifts, flips = [], []
    for number in range(first, first + rows):
        generator.manual_seed(0xC0DE + number)
        shifts.append(torch.randint(WIDTH, (1,), generator=generator, device="cpu"))
        flips.append(torch.randint(2, (1,), generator=generator, device="cpu").float() * 2 - 1)
    return torch.stack(shifts).to(device), torch.stack(flips).to(device)


def cosines(sketches: Tensor) -> Tensor:
    """Cosines between sketches: (m, width) -> (m, m), 1 on the diagonal."""
    inner = sketches @ sketches.T
    norms = inner.diagonal().sqrt()
    found = inner / (norms[:, None] * norms)
    return found.fill_diagonal_(1.0)
