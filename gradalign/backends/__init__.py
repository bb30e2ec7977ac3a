"""The backends of the ops: native (`csrc/`), triton (`gradalign.kernels`) and reference (plain torch).

`dispatch` chooses one. A backend is a module with `NAME`, `why_unavailable() -> str | None` (a reason and a remedy, None where
it works), `supports(device_type, dtypes) -> bool` and the functions that `signatures` describes. An op gets lists of tensors
of one device; scalars are 0-dim tensors on it; reductions come back as float64 tensors on it.
"""
