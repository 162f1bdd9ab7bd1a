"""Generation: greedy or sampled, one sequence or many of unlike lengths, all at once or piece by
piece as text.

inputs.py     what a model is asked to continue
decoding.py   the loop over tokens, and the verbs
sampling.py   the choice of the next token
text.py       the text of tokens as they come, and the strings at which it ends
finite.py     where numbers first stop being finite
"""

from .decoding import answers, generate, stream
from .finite import first_not_finite
from .sampling import sample

__all__ = ["answers", "first_not_finite", "generate", "sample", "stream"]
