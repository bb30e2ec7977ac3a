"""Film reviews from two sites, each with a planted shortcut of its own: what agreement between sources is for.

Modules: `settings` (the options), `methods` (the arms), `data` (the texts of a seed as features), `train` (one arm, one seed),
`comparison` (all seeds), `record`, `report` and `plot` (the results).
"""
