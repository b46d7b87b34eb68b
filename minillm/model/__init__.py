"""The transformer, one idea a file.

Reading order: `norm`, `rope`, `ffn`, `layer_spec`, `gqa`, `transformer`; then `checkpoint` with `hf_names`, `stored`.
"""

from minillm.model.layer_spec import LayerSpec
from minillm.model.transformer import Transformer

__all__ = ["LayerSpec", "Transformer"]
