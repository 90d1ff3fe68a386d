"""What `mtpd generate` and `mtpd-onnx generate` share: flags, prompts, streaming, statistics."""

import argparse
import json
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TextIO

from mtpd_mlx.speculative.loop import generate
from mtpd_mlx.speculative.protocol import Backend
from mtpd_mlx.speculative.stats import DecodeStats, distinct_n
from mtpd_mlx.speculative.streaming import StopMatcher, StreamDecoder
from mtpd_mlx.speculative.tokenizer import Tokenizer


@dataclass(frozen=True)
class GenerateOptions:
    """The options of generation and the only place of their defaults (names as in mlx_lm.generate)."""

    prompt: str | None = None
    prompts: str | None = None
    system_prompt: str | None = None
    max_tokens: int = 100
    num_draft_tokens: int | None = None
    stop: list[str] = field(default_factory=list)
    extra_eos_token: list[str] = field(default_factory=list)
    ignore_chat_template: bool = False
    plain: bool = False
    json: bool = False
    quiet: bool = False


def add_generate_arguments(parser: argparse.ArgumentParser) -> None:
    defaults = GenerateOptions()
    parser.add_argument("-p", "--prompt", help='prompt; "-" reads standard input')
    parser.add_argument("--prompts", metavar="FILE", help="file of prompts (.jsonl or .txt, one per line) instead")
    parser.add_argument("--system-prompt", help="system message for the chat template")
    parser.add_argument(
        "-m", "--max-tokens", type=int, default=defaults.max_tokens, help="tokens at most (default: %(default)s)"
    )
    parser.add_argument("--num-draft-tokens", type=int, help="drafts per round (default: all heads)")
    parser.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="stop before this text (repeatable)"
    )
    parser.add_argument(
        "--extra-eos-token", nargs="+", default=[], metavar="TOKEN", help="further tokens that end the text"
    )
    parser.add_argument("--ignore-chat-template", action="store_true", help="use the prompt as it is")
    parser.add_argument("--plain", action="store_true", help="ordinary decoding, one token per pass")
    parser.add_argument("--json", action="store_true", help="one JSON object per prompt instead of streamed text")
    parser.add_argument("--quiet", action="store_true", help="text only, no statistics")


def options_from(args: argparse.Namespace) -> GenerateOptions:
    options = GenerateOptions(**{f.name: getattr(args, f.name) for f in fields(GenerateOptions)})
    if (options.prompt is None) == (options.prompts is None):
        raise ValueError("give a prompt with --prompt, or a file of them with --prompts")
    return options


@dataclass(frozen=True)
class Prompt:
    """A raw text, or the messages of a conversation to be rendered by the chat template."""

    id: str
    text: str = ""
    messages: list[dict[str, Any]] | None = None


def read_prompts(file: Path) -> list[Prompt]:
    """Rows of a .jsonl file with "prompt" or "messages" (and perhaps "id"), or the lines of a .txt file."""
    try:
        lines = Path(file).read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not UTF-8 text (byte {error.start})") from error
    if Path(file).suffix != ".jsonl":
        prompts = [Prompt(str(n), line) for n, line in enumerate(lines, start=1) if line.strip()]
    else:
        prompts = [_row(file, n, line) for n, line in enumerate(lines, start=1) if line.strip()]
    if not prompts:
        raise ValueError(f"{file}: no prompts in it")
    return prompts


def _row(file: Path, number: int, line: str) -> Prompt:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{file}:{number}: not valid JSON ({str(error).splitlines()[0]})") from error
    text, messages = (row.get("prompt"), row.get("messages")) if isinstance(row, dict) else (None, None)
    if not isinstance(text, str) and not isinstance(messages, list):
        raise ValueError(f'{file}:{number}: expected an object with "prompt" (text) or "messages" (a list)')
    identity = str(row.get("id", number))
    return Prompt(identity, text) if isinstance(text, str) else Prompt(identity, messages=messages)


def encode_prompt(prompt: Prompt, tokenizer: Tokenizer, options: GenerateOptions) -> list[int]:
    """A prompt given on the command line goes through the chat template where there is one, as in mlx_lm.generate."""
    messages = prompt.messages
    if (
        messages is None
        and tokenizer.has_chat_template
        and not options.ignore_chat_template
        and options.prompts is None
    ):
        system = [{"role": "system", "content": options.system_prompt}] if options.system_prompt else []
        messages = [*system, {"role": "user", "content": prompt.text}]
    if messages is None:
        return tokenizer.encode(prompt.text)
    return tokenizer.encode(
        tokenizer.apply_chat_template(messages, add_generation_prompt=True), add_special_tokens=False
    )


def run_generate(backend: Backend, tokenizer: Tokenizer, options: GenerateOptions, out: TextIO | None = None) -> int:
    """Generates for each prompt, streams the text and prints statistics. Exit status 130 when interrupted."""
    out = out or sys.stdout
    eos = eos_tokens(tokenizer, options.extra_eos_token)
    stats, distinct, interrupted = DecodeStats(backend.num_draft_tokens), [], False
    for prompt in collect_prompts(options):
        backend.rewind_to(0)
        tokens = encode_prompt(prompt, tokenizer, options)
        one = stats if not options.json else DecodeStats(backend.num_draft_tokens)
        stream = Stream(tokenizer, options, eos, None if options.json else out)
        try:
            stream.run(backend, tokens, one)
        except KeyboardInterrupt:
            interrupted = True
        distinct.append(distinct_n(stream.tokens))
        if options.json:
            record = {
                "id": prompt.id,
                "text": stream.text,
                "finish_reason": stream.finish_reason,
                "tokens": stream.tokens,
            }
            print(json.dumps(record | {"distinct4": distinct[-1], "stats": one.to_dict()}), file=out, flush=True)
        else:
            print(file=out)
        if interrupted:
            break
    if not options.json and not options.quiet:
        print(describe(stats, sum(distinct) / len(distinct)), file=out)
    return 130 if interrupted else 0


def collect_prompts(options: GenerateOptions) -> list[Prompt]:
    if options.prompts is not None:
        return read_prompts(Path(options.prompts))
    return [Prompt("1", sys.stdin.read() if options.prompt == "-" else options.prompt or "")]


def eos_tokens(tokenizer: Tokenizer, extra: list[str]) -> frozenset[int]:
    ids = {token: tokenizer.token_id(token) for token in extra}
    unknown = [token for token, i in ids.items() if i is None]
    if unknown:
        raise ValueError(f"--extra-eos-token: {unknown[0]!r} is not a token of this tokenizer")
    return tokenizer.eos_token_ids | {i for i in ids.values() if i is not None}


class Stream:
    """One generation: collects tokens and text, prints the text as it becomes certain."""

    def __init__(self, tokenizer: Tokenizer, options: GenerateOptions, eos: frozenset[int], out: TextIO | None):
        self._decoder, self._stops = StreamDecoder(tokenizer), StopMatcher(options.stop)
        self._options, self._eos, self._out = options, eos, out
        self.tokens: list[int] = []
        self.text = ""
        self.finish_reason: str | None = None

    def run(self, backend: Backend, prompt: list[int], stats: DecodeStats) -> None:
        options = self._options
        stats.begin(len(prompt))
        chunks = generate(
            backend,
            prompt,
            max_tokens=options.max_tokens,
            eos_token_ids=self._eos,
            plain=options.plain,
            stop=self._see if options.stop else None,
        )
        for chunk in chunks:
            stats.add(chunk)
            self.tokens += chunk.tokens
            if not options.stop:
                for token in chunk.tokens:
                    self._see(token)
            self.finish_reason = chunk.finish_reason
        self._show(self._stops.add(self._decoder.finish()) + self._stops.finish())

    def _see(self, token: int) -> bool:
        if token not in self._eos:
            self._show(self._stops.add(self._decoder.add(token)))
        return self._stops.stopped

    def _show(self, text: str) -> None:
        self.text += text
        if self._out is not None and text:
            print(text, end="", file=self._out, flush=True)


def describe(stats: DecodeStats, distinct4: float) -> str:
    """The figures at the end of a generation. CAR, AR and tau always stand together, with the share of distinct 4-grams."""
    values = stats.to_dict()
    lines = [
        "-" * 10,
        f"Prompt: {values['prompt_tokens']} tokens, {values['prompt_tokens_per_second']:.1f} tokens/s",
        f"Generation: {values['tokens']} tokens, {values['tokens_per_second']:.1f} tokens/s, distinct-4 {distinct4:.3f}",
    ]
    if values["rounds"]:
        car, ar = (" ".join(f"{x:.3f}" for x in values[name]) for name in ("car", "ar"))
        lines.append(
            f"Rounds: {values['rounds']}, tau {values['tau']:.3f} tokens/round, plain steps {values['plain_steps']}"
        )
        lines.append(f"CAR by depth: {car}   AR by depth: {ar}")
        if values["draft_share"] is not None:
            lines.append(f"Time: drafting {values['draft_share']:.0%}, verifying {1 - values['draft_share']:.0%}")
    return "\n".join(lines)
