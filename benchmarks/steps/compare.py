"""One result against another: what changed by more than noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.errors import CommandError
from benchmarks.record import Row, key
from benchmarks.tables import as_markdown

LEAST_BAND = 0.03  # two runs of the same code on an idle machine stay within 3%
SIGMAS = 3.0
MEMORY_BAND = 0.15  # of a copy of the parameters
NAMED = 4  # of the rows that only one result has, so many are listed by name
LEAST_MEMORY = 16e6  # bytes: by so much, allocators and libraries differ from run to run


@dataclass(frozen=True)
class Change:
    """One quantity of one row, before and after; verdict: "worse", "better" or "same"."""

    workload: str
    method: str
    quantity: str
    before: str
    after: str
    band: str
    verdict: str


def compare(before: Sequence[Row], after: Sequence[Row]) -> list[Change]:
    """Every quantity of the rows that both have, and rows whose status changed.

    Time is compared by the ratio to plain, so that a slower machine is no regression. Its band is the larger of 3% and three
    standard errors of the two medians: 1.253 s / sqrt(rounds) each, s from the quartiles of the rounds.
    """
    old = {key(row): row for row in before}
    changes = []
    for row in after:
        if key(row) in old:
            changes += _changes(old[key(row)], row)
    return changes


def one_sided(before: Sequence[Row], after: Sequence[Row]) -> list[str]:
    """A sentence for all that limits the comparison: rows that only A or only B has, and other conditions for the same rows.

    Raises:
        CommandError: A and B share no row.
    """
    old, new = ({key(row): row for row in rows} for rows in (before, after))
    if not old.keys() & new.keys():
        raise CommandError(
            f"--compare: expected rows that both have; got none of {len(old)} in A and {len(new)} in B; compare two results of "
            "one suite"
        )
    alone = [
        _only_in(name, [k for k in own if k not in other])
        for name, own, other in (("A", old, new), ("B", new, old))
        if own.keys() - other.keys()
    ]
    return alone + _other_conditions([(old[k], new[k]) for k in old if k in new])


def _only_in(name: str, keys: Sequence[tuple[str, str]]) -> str:
    shown = "; ".join(": ".join(k) for k in keys[:NAMED])
    more = f" and {len(keys) - NAMED} more" if len(keys) > NAMED else ""
    return f"{len(keys)} {'row' if len(keys) == 1 else 'rows'} only in {name}: {shown}{more}."


def _other_conditions(pairs: Sequence[tuple[Row, Row]]) -> list[str]:
    """A sentence for each of `CONDITIONS` that is not the same in all pairs."""
    told = []
    for name, condition in CONDITIONS.items():
        differing = [values for old, new in pairs if len(set(values := (condition(old), condition(new)))) > 1]
        if differing:
            a, b = (", ".join(dict.fromkeys(values)) for values in zip(*differing, strict=True))
            rows = f"{len(differing)} of {len(pairs)} rows {'was' if len(differing) == 1 else 'were'}"
            told.append(f"{rows} measured with another {name}: {a} in A, {b} in B.")
    return told


def _device(row: Row) -> str:
    machine = row["machine"]
    return f"{row['device']} ({', '.join(gpu['name'] for gpu in machine['gpus']) or machine['cpu']})"


# What explains a difference that is not one of the code: name -> its value in a row.
CONDITIONS: dict[str, Callable[[Row], str]] = {
    "device": _device,
    "number of threads": lambda row: str(row["machine"]["threads"]),
    "seed": lambda row: str(row["seed"]),
}


def _changes(old: Row, new: Row) -> list[Change]:
    if old["status"] != "ok" or new["status"] != "ok":
        if old["status"] == new["status"]:
            return []
        verdict = "worse" if old["status"] == "ok" else "better"
        texts = [row["status"] + (f": {row['reason']}" if row["reason"] else "") for row in (old, new)]
        return [Change(*key(new), "status", texts[0], texts[1], "", verdict)]
    return [_time(old, new), *_passes(old, new), *_memory(old, new)]


def _time(old: Row, new: Row) -> Change:
    band = max(LEAST_BAND, SIGMAS * math.hypot(relative_error(old), relative_error(new)))
    verdict = _verdict(new["ratio"] / old["ratio"] - 1, band)
    return Change(
        *key(new), "time / plain", f"{old['ratio']:.3f}", f"{new['ratio']:.3f}", f"{100 * band:.1f}%", verdict
    )


def relative_error(row: Row) -> float:
    """The standard error of a row's median ratio, relative to it."""
    low, high = row["ratio_quartiles"]
    deviation = (high - low) / 1.349
    return 1.253 * deviation / math.sqrt(row["rounds"]) / row["ratio"]


def _passes(old: Row, new: Row) -> list[Change]:
    if old["passes"] == new["passes"]:
        return []
    verdict = _verdict(new["passes"] - old["passes"], 0.0)
    return [Change(*key(new), "passes", f"{old['passes']:g}", f"{new['passes']:g}", "exact", verdict)]


def _memory(old: Row, new: Row) -> list[Change]:
    if old["peak_bytes"] is None or new["peak_bytes"] is None:
        return []
    band = max(LEAST_MEMORY, MEMORY_BAND * new["parameter_bytes"])
    verdict = _verdict(new["peak_bytes"] - old["peak_bytes"], band)
    texts = [f"{row['peak_bytes'] / 1e6:.0f} MB" for row in (old, new)]
    return [Change(*key(new), "peak memory", texts[0], texts[1], f"{band / 1e6:.0f} MB", verdict)]


def _verdict(difference: float, band: float) -> str:
    """What is not known to be within the band is worse: NaN too."""
    return "worse" if not difference <= band else "better" if difference < -band else "same"


def as_text(changes: Sequence[Change]) -> str:
    """What changed, as a table; and how many quantities did not."""
    moved = [c for c in changes if c.verdict != "same"]
    header = ("workload", "method", "quantity", "before", "after", "noise band", "verdict")
    body = [[c.workload, c.method, c.quantity, c.before, c.after, c.band, c.verdict] for c in moved]
    end = f"{len(changes) - len(moved)} quantities within noise, {len(moved)} beyond it."
    return "\n\n".join([as_markdown(header, body), end]) if moved else end
