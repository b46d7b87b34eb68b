"""The transformer, one idea a file.

Reading order: `norm`, `rope`, `ffn`, `layer_spec`, `gqa`, `mla`, `transformer`; then `checkpoint` with `hf_names`,
`rope_layout`, `stored`; and `convert_heads`, which makes models with fewer KV heads.
"""

from minillm.model.layer_spec import LayerSpec
from minillm.model.transformer import Transformer

__all__ = ["LayerSpec", "Transformer"]
