"""Small synthetic tasks, each named after the data set that it stands for.

    task = TASKS["mini-e2e"]
    task.examples("train", 256)          examples, the same for every call with the same seed
    task.batch(task.examples("test"))    arrays for a model: (inputs, targets)
    task.score(examples, outputs)        metric -> value; the first metric is the main one
    base_batches("mini-decoder")         batches of the text that the base was pretrained on

The data are drawn from a seed and a grammar; nothing is downloaded, and nothing is real.
"""

from .base_text import BASE_TEXTS, base_batches
from .e2e import E2E
from .e2e_latent import E2ELatent
from .glue import MiniCola, MiniMrpc, MiniRte, MiniSst, MiniStsb
from .mnli import MNLI
from .samsum import SAMSum
from .sql import SQL
from .task import PARTS, Example, Task

TASKS: dict[str, Task] = {
    task.name: task for task in (
        E2E(), E2ELatent(), SQL(), MNLI(), SAMSum(),
        MiniCola(), MiniSst(), MiniMrpc(), MiniStsb(), MiniRte())
}

__all__ = ["BASE_TEXTS", "PARTS", "TASKS", "Example", "Task", "base_batches"]
