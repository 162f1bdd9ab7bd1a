"""minilora beside other engines (engines.py): turns.py takes their time, parity.py that of a GPU.

ours.py has minilora's steps, peers.py those of PyTorch, PEFT, autograd and of bare products.
"""
