"""Built-in texts, labelled texts of the user, tokenizers, and batches."""

from .corpora import TEXTS, Windows, load_text, sequential, split, unigram_loss
from .labelled import Buckets, Labelled, by_length, read_labelled, split_labelled, token_rows
from .tokenizers import BPE, WordPiece, load_tokenizer
from .words import Words

__all__ = [
    "BPE", "TEXTS", "Buckets", "Labelled", "Windows", "WordPiece", "Words", "by_length",
    "load_text", "load_tokenizer", "read_labelled", "sequential", "split", "split_labelled",
    "token_rows", "unigram_loss",
]
