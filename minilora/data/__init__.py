"""Built-in texts, the tokenizer, and batches."""

from .corpora import TEXTS, Windows, load_text, sequential, split, unigram_loss
from .tokenizer import BPE

__all__ = ["BPE", "TEXTS", "Windows", "load_text", "sequential", "split", "unigram_loss"]
