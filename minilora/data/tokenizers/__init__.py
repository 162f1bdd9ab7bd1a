"""Tokenizers: byte-level BPE and WordPiece, of our own and from the files of other models."""

from .bpe import BPE
from .reading import load_tokenizer
from .special import Added, Template, Tokenizer
from .wordpiece import WordPiece

__all__ = ["BPE", "Added", "Template", "Tokenizer", "WordPiece", "load_tokenizer"]
