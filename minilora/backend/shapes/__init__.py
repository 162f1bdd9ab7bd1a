"""Arrays without numbers: shape, dtype, order in memory, and a buffer whose bytes are counted.

use("shapes") stands for NumPy, use("shapes:cupy") for CuPy. The engine runs on either as it is, and
what a step takes is read off: bytes in use and at the peak, operations, calls, and the chain of
calls that wait for one another. GPT-3 takes seconds; no number is ever computed.

counts.py what is counted, array.py the arrays, functions.py what `xp` forwards to, library.py the
hooks. What needs a number, and what is not known here, raises TypeError or AttributeError. One
thread at a time.
"""

from .counts import Cost, Counts
from .library import Shapes

__all__ = ["LIBRARY", "Cost", "Counts", "Shapes"]
LIBRARY = Shapes
