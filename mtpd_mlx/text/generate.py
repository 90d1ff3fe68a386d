"""`run_generate`: prompts, streaming and statistics of a command that writes texts.
Called by `mtpd generate` and `mtpd-onnx generate`."""

import json
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import TextIO

from mtpd_mlx.options.command_line import BROKEN_PIPE
from mtpd_mlx.options.signals import status_of
from mtpd_mlx.options.streams import drop_output
from mtpd_mlx.options.text import GenerateOptions, stops_of, unescaped
from mtpd_mlx.speculative.finite import naming
from mtpd_mlx.speculative.loop import generate
from mtpd_mlx.speculative.protocol import Backend
from mtpd_mlx.speculative.stats import DecodeStats, distinct_n
from mtpd_mlx.text.prompts import Prompt, encode_prompt, read_prompts
from mtpd_mlx.text.streaming import StopMatcher, StreamDecoder
from mtpd_mlx.text.tokenizer import Tokenizer


def run_generate(
    backend: Backend,
    tokenizer: Tokenizer,
    options: GenerateOptions,
    out: TextIO | None = None,
    begin: Callable[[], None] = lambda: None,
) -> int:
    """Generates for each prompt, streams the text and prints statistics. Returns the exit status.
    `begin` is called before every text.

    130 (143, 129) when interrupted, after what was generated so far and its statistics; 141 when nobody reads the output.
    """
    out = sys.stdout if out is None else out
    jobs = encode_all(tokenizer, options, backend.capacity, backend.num_draft_tokens)
    eos = eos_tokens(tokenizer, options.extra_eos_token)
    try:
        status = _run(backend, tokenizer, options, jobs, eos, out, begin)
        print(end="", file=out, flush=True)  # nothing where there is no stdout
    except BrokenPipeError:
        drop_output(out)
        return BROKEN_PIPE
    return status


def _run(
    backend: Backend,
    tokenizer: Tokenizer,
    options: GenerateOptions,
    jobs: list[tuple[Prompt, list[int]]],
    eos: frozenset[int],
    out: TextIO,
    begin: Callable[[], None],
) -> int:
    """The exit status: 0, or that of the signal that interrupted it."""
    total, streams = DecodeStats(backend.num_draft_tokens), []
    status = 0
    for prompt, tokens in jobs:
        if len(jobs) > 1 and not options.json and not options.quiet:
            print(f"[{prompt.id}]", file=out)
        stats = DecodeStats(backend.num_draft_tokens)
        stream = Stream(tokenizer, options, eos, None if options.json else out)
        try:
            backend.rewind_to(0)
            begin()
            with naming([prompt.id]) if len(jobs) > 1 else nullcontext():
                stream.run(backend, tokens, (stats, total))
        except KeyboardInterrupt as stop:
            stream.end("interrupted")
            status = status_of(stop)
        streams.append(stream)
        if options.json:
            print(json.dumps(record(prompt, stream, stats, options), ensure_ascii=False), file=out, flush=True)
        else:
            print(file=out, flush=True)
        if status:
            break
    if not options.json and not options.quiet:
        print(describe(total, streams), file=out, flush=True)
    return status


def record(prompt: Prompt, stream: "Stream", stats: DecodeStats, options: GenerateOptions) -> dict[str, object]:
    """What --json prints of one text."""
    reference = {} if prompt.reference is None else {"reference": prompt.reference}
    return {
        "id": prompt.id,
        "text": stream.text,
        **reference,
        "finish_reason": stream.finish_reason,
        "tokens": stream.tokens,
        "plain": options.plain or options.num_draft_tokens == 0,
        "distinct4": distinct_n(stream.tokens),
        "stats": stats.to_dict(),
    }


def collect_prompts(options: GenerateOptions) -> list[Prompt]:
    """The prompts of --prompts FILE, or the one of --prompt."""
    if options.prompts is not None:
        return read_prompts(options.prompts)
    assert options.prompt is not None
    if options.prompt == "-":
        if sys.stdin is None:
            raise ValueError("--prompt -: standard input is closed")
        try:
            return [Prompt("1", sys.stdin.read())]
        except UnicodeDecodeError as error:
            raise ValueError(f"standard input: not UTF-8 text (byte {error.start})") from error
    return [Prompt("1", unescaped(options.prompt))]


def encode_all(
    tokenizer: Tokenizer, options: GenerateOptions, capacity: int, num_draft_tokens: int
) -> list[tuple[Prompt, list[int]]]:
    """All prompts as tokens, so that the last one's fault is told before the first one's text. ValueError names it."""
    wanted = options.num_draft_tokens
    if not options.plain and wanted is not None and wanted not in (0, num_draft_tokens):
        raise ValueError(f"--num-draft-tokens: got {wanted}, expected {num_draft_tokens} (what this model was opened with)")
    if capacity < 2:
        raise ValueError(f"no room for a prompt and a token: got a context of {capacity} positions, expected at least 2")
    jobs = []
    for prompt in collect_prompts(options):
        tokens = encode_prompt(prompt, tokenizer, chat=not options.ignore_chat_template, system_prompt=options.system_prompt)
        if not 1 <= len(tokens) < capacity:
            raise ValueError(f"{prompt.named}: got {len(tokens)} tokens, expected 1..{capacity - 1}")
        jobs.append((prompt, tokens))
    return jobs


def eos_tokens(tokenizer: Tokenizer, extra: Sequence[str]) -> frozenset[int]:
    """The ids that end a text: the tokenizer's own and those of `extra`. ValueError names what is not a token."""
    ids = {token: tokenizer.token_id(token) for token in extra}
    unknown = [token for token, i in ids.items() if i is None]
    if unknown:
        raise ValueError(f"--extra-eos-token: {unknown[0]!r} is not a token of this tokenizer")
    return tokenizer.eos_token_ids | {i for i in ids.values() if i is not None}


class Stream:
    """One generation: collects tokens and text, prints the text as it becomes certain."""

    def __init__(self, tokenizer: Tokenizer, options: GenerateOptions, eos: frozenset[int], out: TextIO | None):
        self._special = tokenizer.special_tokens() if options.stop else {}
        stops = StopMatcher(stops_of(options), self._special.values())
        self._decoder, self._stops = StreamDecoder(tokenizer), stops
        self._options, self._eos, self._out = options, eos, out
        self.tokens: list[int] = []
        self.text = ""
        self.finish_reason: str | None = None

    def run(self, backend: Backend, prompt: list[int], stats: Sequence[DecodeStats]) -> None:
        """From an empty cache to the end of the text. After an exception, `end` gives out what was held back."""
        options = self._options
        chunks = generate(
            backend,
            prompt,
            max_tokens=options.max_tokens,
            eos_token_ids=self._eos,
            plain=options.plain or options.num_draft_tokens == 0,
            stop=self.see,
        )
        for chunk in chunks:
            self.tokens += chunk.tokens
            for each in stats:
                each.add(chunk)
            if chunk.finish_reason is not None:
                self.end(chunk.finish_reason)

    def end(self, reason: str) -> None:
        self.finish_reason = reason
        self._show(self._stops.add(self._decoder.finish()) + self._stops.finish())

    def see(self, token: int) -> bool:
        """Takes in a token's text; True once a stop string is complete."""
        self._show(self._stops.add(self._decoder.add(token)))
        if token in self._special:
            self._show(self._stops.add_special(self._special[token]))
        return self._stops.stopped

    def _show(self, text: str) -> None:
        self.text += text
        if self._out is not None and text:
            print(text, end="", file=self._out, flush=True)


def describe(stats: DecodeStats, texts: Sequence[Stream]) -> str:
    """The figures at the end. CAR, AR and tau always stand together, with the mean share of distinct 4-grams."""
    v = stats.to_dict()
    distinct4 = sum(distinct_n(text.tokens) for text in texts) / len(texts)
    lines = [
        "=" * 10,
        f"Prompt: {v['prompt_tokens']} tokens, {v['prompt_tokens_per_second']:.1f} tokens/s",
        f"Generation: {v['tokens']} tokens, {v['tokens_per_second']:.1f} tokens/s, distinct-4 {distinct4:.3f}",
    ]
    if full := sum(text.finish_reason == "context" for text in texts):
        lines[-1] += ", finish reason context: the cache is full" + (f" in {full} of {len(texts)}" if len(texts) > 1 else "")
    if v["rounds"]:
        passes = f"{v['plain_steps']} plain steps, {v['tokens_per_pass']:.2f} tokens per pass"
        most = v["num_draft_tokens"] if len(v["chosen"]) < 2 else f"up to {v['num_draft_tokens']}"
        lines.append(f"Rounds: {v['rounds']} of {most} drafts, tau {v['tau']:.3f}, {passes}")
        depths = " ".join(f"{k:5d}" for k in range(1, len(v["car"]) + 1))
        lines.append(f"depth {depths}")
        lines += [f"{name.upper():5s} " + " ".join(f"{x:5.3f}" for x in v[name]) for name in ("car", "ar")]
        if v["draft_share"] is not None and v["verify_share"] is not None:
            lines.append(f"Time: drafting {v['draft_share']:.0%}, verifying {v['verify_share']:.0%}")
    if len(v["chosen"]) > 1:
        kinds = [f"{name} {c['rounds']} ({c['tokens']} tokens)" for name, c in v["chosen"].items()]
        lines.append("Rounds by what they verified: " + ", ".join(kinds))
    return "\n".join(lines)
