"""What whole steps are called in tables; a module of its own, so that a report can be made without torch."""

from __future__ import annotations

UPDATE = "AdamW"
CLIP_STEP = "clip + AdamW + clear"
WITH_UPDATE = "perturb, restore, AdamW"
COMPOSITE = "perturb, restore, clip + AdamW"
