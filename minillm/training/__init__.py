"""Training, in reading order:

- `loop.py`      the training loop: start here
- `optim.py`     learning rate, weight decay, starting weights
- `data.py`      from documents to batches
- `evaluate.py`  held-out loss against the entropy of the source
- `state.py`     checkpoints that resume bit for bit
- `config.py`    the settings
- `corpus.py`    stories or the user's text, encoded
- `prepare.py`, `run.py`, `report.py`, `export.py`, `plot.py`   a whole run around the loop
"""

from minillm.training.config import TrainConfig
from minillm.training.evaluate import (
    StoryEvaluation,
    TextEvaluation,
    document_nats,
    evaluate_documents,
    evaluate_text,
)
from minillm.training.loop import train
from minillm.training.optim import build_optimizer, initialize_weights, learning_rate

__all__ = [
    "StoryEvaluation",
    "TextEvaluation",
    "TrainConfig",
    "build_optimizer",
    "document_nats",
    "evaluate_documents",
    "evaluate_text",
    "initialize_weights",
    "learning_rate",
    "train",
]
