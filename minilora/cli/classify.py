"""`minilora finetune --task classify`: what it trains on, sentences with labels from a CSV file."""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np

from .. import data
from ..models.encoder import Encoder
from ..models.pretrained import with_head
from ..training.losses import encoder_loss, share_right
from . import inputs, settings
from .lesson import Lesson
from .parser import Say

BATCH = 16
WINDOW = 128
RATES = {"full": 1e-4, "fttop2": 3e-4}
RATE = 3e-3  # of all other methods


def lesson(args: argparse.Namespace, say: Say) -> Lesson:
    """Read the encoder and the sentences; give the encoder a head with a score for each label."""
    base = inputs.base_model(args)
    if not isinstance(base, Encoder):
        raise ValueError(
            f"{args.base} is a {type(base).__name__}, a decoder: --task classify reads an encoder, "
            "such as a BERT: give its folder as --base"
        )
    most = base.config.n_positions - settings.taken(args)
    inputs.check_window(args.window, args.base, most)
    if args.window == 1:
        raise ValueError("--window 1: a sentence is cut to its first tokens and its last: give 2 "
                         "or more")
    given = data.read_labelled(args.data)
    if args.eval:
        training, held_out = given, data.read_labelled(args.eval, given.names)
        inputs.check_eval(args.eval, {*training.texts} == {*held_out.texts})
    else:
        training, held_out = data.split_labelled(given, seed=args.seed)
    model = with_head(base, len(given.names), rng=args.seed)
    batch, window = args.batch or BATCH, args.window or min(WINDOW, most)
    padding = getattr(model.config, "padding_id", 0)
    rows, checks = (data.token_rows(part.texts, model.tokenizer, window)
                    for part in (training, held_out))
    batches = Paced(data.Buckets(rows, training.labels, batch, args.seed, padding))
    chosen = data.by_length(checks, held_out.labels, batch, padding)
    say(f"{args.data}: {len(rows):,} sentences to train on, {len(checks):,} held out; labels "
        f"{', '.join(given.names)}")
    frequent = int(np.bincount(training.labels).argmax())
    guess = float((held_out.labels == frequent).mean())

    def after(result: dict[str, Any]) -> None:
        result["accuracy"] = share_right(model, chosen)
        result |= {"frequent": guess, "sentences_per_second": round(batches.speed(), 1)}
        say(f"held-out accuracy {result['accuracy_before']:.4f} -> {result['accuracy']:.4f}; to "
            f"beat: {guess:.4f}, by always answering {given.names[frequent]}")
        if batches.seconds:
            say(f"{batches.speed():,.1f} sentences a second in training, with batches by length")
        if result["accuracy"] <= guess:
            say("the adapter has not learned more than the frequency of the labels: train longer, "
                f"with --steps {3 * result['steps']}, or try another --lr")

    return Lesson(
        model, batches, chosen, unit="nats a sentence", loss=encoder_loss,
        steps=batches.buckets.per_epoch, rate=RATES.get(args.method, RATE),
        before=lambda: {"accuracy_before": share_right(model, chosen)}, after=after,
        worse=lambda before, after: "",  # `after` compares the accuracy with that of a guess
        about={"data": "\n".join(training.texts), "labels": training.labels, "--window": window,
               "held-out data": "\n".join(held_out.texts)},
    )


class Paced:
    """Batches, and how many sentences a second are trained on from one to the next."""

    def __init__(self, buckets: data.Buckets) -> None:
        self.buckets, self.sentences, self.seconds = buckets, 0, 0.0
        self.last, self.size, self.began = -2, 0, 0.0  # the number, size and time of the last batch

    def __getitem__(self, i: int) -> Any:
        now = time.perf_counter()
        if i == self.last + 1:
            self.sentences += self.size
            self.seconds += now - self.began
        batch = self.buckets[i]
        self.last, self.size, self.began = i, len(batch[1]), now
        return batch

    def speed(self) -> float:
        """Return sentences a second; 0 if there were not two batches in a row."""
        return self.sentences / self.seconds if self.seconds else 0.0
