"""The paper's results as experiments that a laptop runs: `minilora reproduce NAME`.

An experiment is one file in `paper` (what the paper reports) or `beyond` (what is known since). It
declares its claims and the rule of each verdict before anything runs. Runs are jobs, shared by all
experiments and kept in a journal; the report is made from the journal.
"""

from .cells import Scale
from .reporting import reproduce

__all__ = ["Scale", "reproduce"]
