"""Clean fine-tuning: AdamW without and with gradalign on film reviews, or on texts of your own.

Modules: `settings` (the options), `comparison` (all seeds), `seed` (one seed), `train` and `arm` (paired training), `measure`
(alignment and memory), `record`, `report` and `plot` (the results).
"""
