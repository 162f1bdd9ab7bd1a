"""`minilora generate`: continue one prompt, or several at once."""

from __future__ import annotations

import argparse
import contextlib
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import lora
from ..generate import generate, stream
from ..generate.text import before
from ..models.decoder import Decoder
from . import inputs
from .parser import Parser, Say, above_0, integer, number, refused
from .streams import Progress

TOP_P = 0.95
from_0 = number("a finite number >= 0", lambda x: 0 <= x < math.inf)
share = number("a number in (0, 1]", lambda x: 0 < x <= 1)


def add_to(top: Parser) -> None:
    to = top.command("generate", run)
    to.instead = {"--text": "--prompt is the text to continue", "--out": "redirect the output"}
    inputs.add_base(to)
    to.option("--adapter", read=Path, many=True,
              help="the .npz of an adapter; several: one for each prompt")
    to.option("--prompt", read=prompt, many=True,
              help="the text to continue, with \\n for a new line (\\n); several: all at once")
    to.option("--tokens", read=integer(0), help="how many tokens to write", default=100)
    to.option("--stop", read=prompt, many=True, help="end before this text; several: the first")
    help = "randomness; 0 always takes the likeliest token"
    to.option("--temperature", read=from_0, help=help, default=0.8)
    to.option("--top-k", read=integer(1), help="sample from the k likeliest tokens (all)")
    help = "sample from the likeliest tokens whose probabilities add up to p"
    to.option("--top-p", read=share, help=f"{help} ({TOP_P}; at temperature 0: not used)")
    help = "above 1, repeat fewer tokens: their scores are divided by it (1)"
    to.option("--repetition-penalty", read=above_0, help=help)
    to.flag("--no-cache", help="compute all keys and values again at each token: slower, same text")


def run(args: argparse.Namespace, say: Say) -> dict[str, Any]:
    """Continue a prompt, or several."""
    model, prompts = inputs.decoder(args), args.prompt or [prompt("\\n")]
    adapters = args.adapter or []
    if len(adapters) > 1 and len(prompts) == 1:
        prompts *= len(adapters)
    if len(adapters) > 1 and len(adapters) != len(prompts):
        raise ValueError(
            f"{len(adapters)} adapters for {len(prompts)} prompts: give one --adapter for each "
            "--prompt, or one for all"
        )
    if not adapters and args.base_dtype:
        raise ValueError(f"--base-dtype {args.base_dtype} needs an adapter: give --adapter")
    ids = [model.tokenizer.encode(text) for text in prompts]
    how = {
        "temperature": args.temperature, "top_k": args.top_k,
        "top_p": TOP_P if args.top_p is None and args.temperature else args.top_p,
        "repetition_penalty": args.repetition_penalty, "rng": args.seed,
        "cache": not args.no_cache, "stop": args.stop,
    }
    with loaded(model, args, adapters):
        if len(ids) == 1 and not args.json and sys.stdout.isatty():
            return shown(model, ids[0], args.tokens, how)
        with Progress(args.tokens) as begins:
            rows = generate(model, ids, args.tokens, begins=begins, **how)
    texts = []
    for start, row in zip(ids, rows):
        given, whole = len(model.tokenizer.decode(start)), model.tokenizer.decode(row)
        texts.append(whole[:given] + before(whole[given:], args.stop or ()))
    if len(texts) == 1:
        if not args.json:
            say(texts[0])
        return {"text": texts[0], "ids": rows[0].tolist()}
    if not args.json:
        for i, text in enumerate(texts):
            say(f"[{adapters[i] if len(adapters) > 1 else i + 1}]\n{text}\n")
    return {"texts": texts, "ids": [row.tolist() for row in rows]}


def shown(model: Decoder, ids: Any, tokens: int, how: dict[str, Any]) -> dict[str, Any]:
    """Write the text to the terminal as it comes, and end the line also after an interrupt."""
    text = model.tokenizer.decode(ids)
    pieces = stream(model, ids, tokens, **how)
    print(text, end="", flush=True)
    try:
        for piece in pieces:
            print(piece, end="", flush=True)
            text += piece
    finally:
        print(flush=True)
    return {"text": text, "ids": pieces.ids.tolist()}


def loaded(
    model: Decoder, args: argparse.Namespace, paths: Sequence[Path]
) -> contextlib.AbstractContextManager[None]:
    """Load the adapters; return the block in which each sequence has its own."""
    if len(paths) == 1:
        inputs.load_adapter(model, args, paths[0], strict=False)
    if len(paths) < 2:
        return contextlib.nullcontext()
    names = {path: f"adapter {i}" for i, path in enumerate(dict.fromkeys(paths), start=1)}
    for path, name in names.items():
        inputs.load_adapter(model, args, path, strict=False, name=name)
    block: contextlib.AbstractContextManager[None] = lora.per_row(model, [names[p] for p in paths])
    return block


def prompt(text: str) -> str:
    r"""A text that is not empty, in which \n is a new line."""
    if not text:
        raise refused(text, r"at least one character; \n is a new line")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise refused(repr(text), "UTF-8 text") from None
    return text.replace("\\n", "\n")
