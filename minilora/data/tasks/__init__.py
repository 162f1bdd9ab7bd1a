"""Small synthetic tasks, each named after the data set that it stands for.

    task = TASKS["mini-e2e"]
    task.examples("train", 256)          examples, the same for every call with the same seed
    task.batch(task.examples("test"))    arrays for a model: (inputs, targets)
    task.score(examples, outputs)        metric -> value; the first metric is the main one

The data are drawn from a seed and a grammar; nothing is downloaded, and nothing is real.
"""

from .glue import MiniCola, MiniMrpc, MiniRte, MiniSst, MiniStsb
from .task import IGNORED_WORDS, PARTS, Example, Task, Words

TASKS: dict[str, Task] = {
    task.name: task for task in (MiniCola(), MiniSst(), MiniMrpc(), MiniStsb(), MiniRte())
}

__all__ = ["IGNORED_WORDS", "PARTS", "TASKS", "Example", "Task", "Words"]
