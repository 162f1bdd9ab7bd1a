"""Arrays without numbers: shape, dtype, order in memory, and a buffer whose bytes are counted.

use("shapes") imitates NumPy, use("shapes:cupy") imitates CuPy. The engine runs on them unchanged,
and the costs of a step are counted: bytes in use and at the peak, operations, calls, and the
longest chain of calls that depend on one another. No number is computed, so GPT-3 takes seconds.

counts.py      the counts               array.py     the arrays
functions.py   the module behind `xp`   library.py   the hooks

Code that needs a number, and functions that are not known here, raise TypeError or AttributeError.
Only one thread at a time.
"""

from .counts import Cost, Counts
from .library import Shapes

__all__ = ["LIBRARY", "Cost", "Counts", "Shapes"]
LIBRARY = Shapes
