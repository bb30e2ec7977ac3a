"""The rooms behind `gradalign.backends.dispatch`: every backend is a module with the functions of `reference`.

A backend module has `NAME`, `why_unavailable() -> str | None` (a reason and a remedy, None when it works),
`supports(device_type, dtypes) -> bool`, and one function per op of `gradalign.ops`. An op gets lists of tensors that live on
one device; scalars are 0-dim tensors there; reductions come back as float64 tensors there.
"""
