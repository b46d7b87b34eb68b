"""What decoding must move and compute, and what this machine can move.

Reading order: `traffic` (bytes per decoded token), `flops` (operations counted while a function runs), `probe` (the
read bandwidth reached here), `machine` (a description), `device_probe` (the
like of a GPU), `peak_memory` (the most that a call holds), `freed_memory` (pages that
stay). `meter` counts what an algorithm made of tiles moves on a
simulated GPU, `warp` what a kernel's threads ask of memory, 32 at a time.

Then the cost model, in reading order: `hardware` and `gpus` (what processors can do), `model_shape` and `shape_from_hf`
(the matrices behind a config.json), `precision` (bits), `formulas` (the napkin), `cost` (FLOPs and bytes of every
operation), `sharding` (several GPUs), `roofline` and `roofline_plot`, `deployment`, `plan` and `plan_report` (does it
fit, how fast is it).
"""
