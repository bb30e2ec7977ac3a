"""Peak memory of one training process, in bytes of resident memory, and the size of its parameters.

A high-water mark never falls, so that every measurement needs a process of its own.
"""

from __future__ import annotations

import ctypes
import json
from functools import partial

import torch
from torch import nn

import gradalign
from gradalign.optim import AdamW

WIDTH, LAYERS, K = 2600, 8, 4  # 8 x 2600 x 2600 = 54.1M parameters: 216 MB in float32, of which 0.1 is 22 MB
M_MMAP_THRESHOLD = -3  # of malloc.h


def high_water_mark() -> int:
    """Peak resident bytes of this process (Linux)."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


def report(method: str, dtype: str = "float32") -> None:
    """Print both as JSON.

    Args:
        method: "plain" or the options of GradAlign, or of the "baseline" they name, as JSON; "sources" are the labels of the
            micro-batches, and with "accumulate" these come one at a time.
        dtype: of the parameters.
    """
    print(json.dumps(measure(method, dtype)))


def measure(method: str, dtype: str) -> dict[str, int]:
    # Every large tensor a mapping of its own, which ends with it: glibc would soon take those below 32 MB from its heap, whose
    # gaps then count, differently from run to run.
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**20)
    torch.manual_seed(0)
    torch.set_num_threads(1)  # a second one would only wait for memory, and spin while it does
    make_layer = partial(nn.utils.skip_init, nn.Linear, WIDTH, WIDTH, bias=False, dtype=getattr(torch, dtype))
    model = nn.Sequential(*(make_layer() for _ in range(LAYERS)))
    for p in model.parameters():
        nn.init.constant_(p, 1 / WIDTH)  # random values would take a second to draw
    masters = dtype == "bfloat16"
    # No foreach form: its temporaries of the size of the model would hide a copy.
    optimizer = (
        AdamW(model.parameters(), master_weights=True)
        if masters
        else torch.optim.AdamW(model.parameters(), foreach=False)
    )
    batches = list(torch.randn(K, 2, WIDTH, dtype=getattr(torch, dtype)))

    def loss_fn(x):
        return model(x).float().square().mean()

    aligner, options = None, {} if method == "plain" else json.loads(method)
    sources, one_by_one = options.pop("sources", None), options.pop("accumulate", False)
    if method != "plain":
        if options.pop("masters", False):
            options["optimizer"] = optimizer
        kind = getattr(gradalign.baselines, options.pop("baseline", ""), gradalign.GradAlign)
        aligner = kind(model, 1e-3, **options)  # weight, rho or inner_lr
    for _ in range(2):
        if aligner is None:
            for batch in batches:
                (loss_fn(batch) / K).backward()
        elif one_by_one:
            with aligner.accumulate(K, sources=sources) as step:
                for batch in batches:
                    step.backward(partial(loss_fn, batch))
        else:
            aligner.backward(loss_fn, batches, sources=sources)
        optimizer.step()
        optimizer.zero_grad()
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    return {"peak": high_water_mark(), "parameters": size}
