"""Built-in texts, tokenizers, and batches."""

from .corpora import TEXTS, Windows, load_text, sequential, split, unigram_loss
from .tokenizers import BPE, WordPiece, load_tokenizer
from .words import Words

__all__ = [
    "BPE", "TEXTS", "Windows", "WordPiece", "Words", "load_text", "load_tokenizer", "sequential",
    "split", "unigram_loss",
]
