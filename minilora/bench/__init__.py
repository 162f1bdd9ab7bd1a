"""Time and memory of a minilora training step beside other engines (`minilora bench`).

engines.py lists the engines: minilora's own steps (ours.py), and PyTorch, PEFT, autograd and bare
matrix products (peers.py). turns.py measures them in turns.
"""
