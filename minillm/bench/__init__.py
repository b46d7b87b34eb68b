"""Measurements: ours against a peer and against what the machine allows.

Reading order: `compare` (interleaved rounds, medians, ratios), `peer` (the same model in transformers),
`decode` (what `minillm bench decode` measures), `report` (its table, JSON and picture), `gemm` and
`gemm_report` (likewise for `minillm bench gemm`), `pieces`, `predict` and `predict_report` (a step's time
from its parts, `minillm bench plan`), `registry` (decoding methods by name), `demo` (their table).
"""
