"""minilora beside other engines: turns.py takes the time, engines.py says of whom, parity.py of a GPU.

ours.py has minilora's steps, peers.py those of PyTorch, PEFT, autograd and of bare products.
"""
