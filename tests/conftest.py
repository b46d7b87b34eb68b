"""Settings for the whole suite."""

from __future__ import annotations

import torch

# The models here are tiny: threads would cost more than they bring, and workers that run side by side share the cores.
torch.set_num_threads(1)
