"""Fusion: what a launch costs, what fusing saves, and a backend for `torch.compile` that fuses.

    from minillm.fusion import capture, fuse, fusing_backend

    (graph,) = capture(model, tokens)                          # what TorchDynamo sees
    compiled = torch.compile(model, backend=fusing_backend)    # the same, rewritten
    fused = fuse(model)                                        # a model for `generate` and its cache
    print(fused.reports)

Reading order: on the meter, `costs`, then `metered_norm`, `metered_elementwise`, `metered_softmax`, `metered_loss`,
`metered_layer` (bytes, FLOPs and launches of each operation, eager and fused) and `metered` (all of them by name);
`overhead` (what a launch costs here); then graphs: `capture`, `operation` (one name for each operation), `patterns`,
`matcher`, `rewrite`; `cpu` and `operators` (the fused operators); `backend`, `outside` (attention as one node),
`model` (`fuse`); `layout` and `draw` (a graph as a figure, with matplotlib; imported by name only).
"""

from minillm.fusion.backend import FusingBackend, fusing_backend
from minillm.fusion.capture import capture, graph_breaks, kind_counts, num_operations, op_counts
from minillm.fusion.model import FusedModel, fuse
from minillm.fusion.outside import OutsideAttend
from minillm.fusion.patterns import PATTERNS, Pattern
from minillm.fusion.rewrite import Report, fuse_graph

__all__ = [
    "PATTERNS",
    "FusedModel",
    "FusingBackend",
    "OutsideAttend",
    "Pattern",
    "Report",
    "capture",
    "fuse",
    "fuse_graph",
    "fusing_backend",
    "graph_breaks",
    "kind_counts",
    "num_operations",
    "op_counts",
]
