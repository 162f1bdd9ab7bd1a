"""`minilora generate`: continue a prompt."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

from ..generate import generate
from . import inputs
from .parser import Parser, Say, integer, number, refused
from .streams import Progress

TOP_P = 0.95
from_0 = number("a finite number >= 0", lambda x: 0 <= x < math.inf)
share = number("a number in (0, 1]", lambda x: 0 < x <= 1)


def add_to(top: Parser) -> None:
    to = top.command("generate", run)
    to.instead = {"--text": "--prompt is the text to continue", "--out": "redirect the output"}
    inputs.add_base(to)
    to.option("--adapter", read=Path, help="the .npz of an adapter")
    to.option("--prompt", read=prompt, help="the text to continue, with \\n for a new line",
              default="\\n")
    to.option("--tokens", read=integer(0), help="how many tokens to write", default=100)
    help = "randomness; 0 always takes the likeliest token"
    to.option("--temperature", read=from_0, help=help, default=0.8)
    to.option("--top-k", read=integer(1), help="sample from the k likeliest tokens (all)")
    help = "sample from the likeliest tokens whose probabilities add up to p"
    to.option("--top-p", read=share, help=f"{help} ({TOP_P}; at temperature 0: not used)")
    to.flag("--no-cache", help="compute all keys and values again at each token: slower, same text")


def run(args: argparse.Namespace, say: Say) -> dict[str, Any]:
    """Continue a prompt."""
    model = inputs.decoder(args)
    if args.adapter:
        inputs.load_adapter(model, args, strict=False)
    elif args.base_dtype:
        raise ValueError(f"--base-dtype {args.base_dtype} needs an adapter: give --adapter")
    top_p = TOP_P if args.top_p is None and args.temperature else args.top_p
    with Progress(args.tokens) as begins:
        ids = generate(
            model, model.tokenizer.encode(args.prompt), args.tokens, temperature=args.temperature,
            top_k=args.top_k, top_p=top_p, rng=args.seed, cache=not args.no_cache,
            begins=begins,
        )
    text = model.tokenizer.decode(ids)
    if not args.json:
        say(text)
    return {"text": text, "ids": ids.tolist()}


def prompt(text: str) -> str:
    r"""A text that is not empty, in which \n is a new line."""
    if not text:
        raise refused(text, r"at least one character; \n is a new line")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise refused(repr(text), "UTF-8 text") from None
    return text.replace("\\n", "\n")
