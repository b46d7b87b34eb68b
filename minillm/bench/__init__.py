"""Measurements: ours against a peer and against what the machine allows.

Reading order: `compare` (interleaved rounds, medians, ratios), `peer` (the same model in transformers),
`decode` (what `minillm bench decode` measures), `report` (its table, JSON and picture), `gemm` and
`gemm_report` (likewise for `minillm bench gemm`), `pieces`, `predict` and `predict_report` (a step's time
from its parts, `minillm bench plan`), `attention_shape`, `attention_check`, `attention_race`, `attention_peers` (any
attention against torch's and the machine), `attention` and `attention_report`, `decode_attention` and
`decode_attention_report` (`minillm bench attention` and `decode-attention`), `registry` (decoding methods by name),
`demo` (their table), `doctor` with `doctor_*` (`minillm doctor`), `all_parts`, `all_run`, `all_report` and `all_tables`
(`minillm bench all`).
"""
