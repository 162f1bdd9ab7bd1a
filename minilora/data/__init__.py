"""Built-in texts, the tokenizer, and batches."""

from .corpora import TEXTS, Windows, load_text, sequential, split, unigram_loss
from .tokenizer import BPE
from .words import Words

__all__ = ["BPE", "TEXTS", "Windows", "Words", "load_text", "sequential", "split", "unigram_loss"]
