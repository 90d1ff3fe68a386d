"""`run_chat`: a terminal chat whose cache is kept from turn to turn.
Called by `mtpd chat` and `mtpd-onnx chat`."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TextIO

from mtpd_mlx.options.signals import Terminated, status_of
from mtpd_mlx.options.streams import read_line, takes_colour
from mtpd_mlx.speculative.finite import NotFiniteError
from mtpd_mlx.speculative.loop import generate
from mtpd_mlx.speculative.protocol import Backend
from mtpd_mlx.speculative.stats import DecodeStats
from mtpd_mlx.text.answer import Answer
from mtpd_mlx.text.chat_template import Messages
from mtpd_mlx.text.tokenizer import Tokenizer

GREEN, PLAIN = "\033[32m", "\033[0m"
COMMANDS = "commands: q to end, r to start again, h for this help"


class Chat:
    """One conversation over one backend. Without a chat template the texts simply follow one another."""

    def __init__(
        self,
        backend: Backend,
        tokenizer: Tokenizer,
        *,
        max_tokens: int,
        system_prompt: str | None,
        colour: bool,
        cached: Sequence[int] = (),
        stop: Sequence[str] = (),
    ):
        """`cached`: the tokens that the backend holds already; stop: texts that end an answer, and are no part of it."""
        if system_prompt is not None and not tokenizer.has_chat_template:
            raise ValueError("--system-prompt: this tokenizer has no chat template; leave the option out")
        self._backend, self._tokenizer, self._max_tokens, self._colour = backend, tokenizer, max_tokens, colour
        self._stop = stop
        self._system = [] if system_prompt is None else [{"role": "system", "content": system_prompt}]
        self._messages: Messages = list(self._system)
        self._cached = list(cached)  # the tokens that the backend holds
        self.finish_reason: str | None = None  # why the last answer ended
        self._backend.rewind_to(len(cached))

    def restart(self) -> None:
        self._messages, self._cached = list(self._system), []
        self._backend.rewind_to(0)

    def answer(self, text: str, out: TextIO) -> DecodeStats:
        """Streams the answer to `text`. ValueError where the conversation no longer fits the context, or cannot be encoded with
        this text; it is then as it was before."""
        messages: Messages = [*self._messages, {"role": "user", "content": text}]
        tokens = self._encode(messages)
        if not tokens:
            raise ValueError("got a text of no tokens, expected at least one")
        if len(tokens) >= self._backend.capacity:
            raise ValueError(
                f"the conversation has {len(tokens)} tokens, the context {self._backend.capacity}; type r to start again"
            )
        common = min(_common(tokens, self._cached), len(tokens) - 1)
        stats, said = DecodeStats(self._backend.num_draft_tokens), list(tokens)
        answer = ""
        try:
            self._backend.rewind_to(common)
            for piece, drafted, new in self._stream(tokens[common:], stats):
                said += new
                answer += piece
                coloured = f"{GREEN}{piece}{PLAIN}" if drafted and piece and self._colour else piece
                print(coloured, end="", file=out, flush=True)
        finally:  # also when interrupted: what was said stays in the conversation
            self._cached = said[: self._backend.length]
            self._messages = [*messages, {"role": "assistant", "content": answer}]
        print(file=out, flush=True)
        return stats

    def _encode(self, messages: Messages) -> list[int]:
        if self._tokenizer.has_chat_template:
            return self._tokenizer.encode(self._tokenizer.apply_chat_template(messages, True), False)
        return self._tokenizer.encode("\n".join(m["content"] for m in messages))

    def _stream(self, prompt: list[int], stats: DecodeStats) -> Iterator[tuple[str, bool, list[int]]]:
        """(text, was it drafted, tokens) piece by piece."""
        answer, eos = Answer(self._tokenizer, self._stop), self._tokenizer.eos_token_ids
        room = min(self._max_tokens, self._backend.capacity)
        for chunk in generate(self._backend, prompt, max_tokens=room, eos_token_ids=eos, stop=answer.see):
            stats.add(chunk)
            self.finish_reason = chunk.finish_reason
            yield "", False, chunk.tokens
            for piece, drafted in answer.take(chunk.num_drafted):
                yield piece, drafted, []
        yield answer.finish(), False, []


def _common(a: list[int], b: list[int]) -> int:
    """Length of the common beginning."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def summary(stats: DecodeStats, seconds: float, finish_reason: str | None) -> str:
    drafted = f", tau {stats.tau:.2f}" if stats.accepted else ""
    full = ", finish reason context: the cache is full, r starts again" if finish_reason == "context" else ""
    return f"[{stats.tokens} tokens, {stats.tokens_per_second:.1f} tokens/s{drafted}, {seconds:.1f} s{full}]"


def run_chat(
    backend: Backend,
    tokenizer: Tokenizer,
    max_tokens: int,
    *,
    system_prompt: str | None = None,
    show_drafts: bool = False,
    read: Callable[[str], str] = read_line,
    out: TextIO | None = None,
    cached: Sequence[int] = (),
    stop: Sequence[str] = (),
) -> int:
    """Until q or the end of the input. Ctrl-C ends an answer, a second one the chat, another signal both (the status is its
    own then). `cached` and `stop`: as for Chat."""
    out = sys.stdout if out is None else out
    colour = show_drafts and takes_colour(out)
    chat = Chat(backend, tokenizer, max_tokens=max_tokens, system_prompt=system_prompt, colour=colour, cached=cached, stop=stop)
    drafts = "; accepted draft tokens are green" if colour else "; drafts are not shown: no terminal with colours"
    print(COMMANDS + (drafts if show_drafts else ""), file=out)
    while True:
        try:
            text = read(">> ")
        except Terminated as stop:
            return status_of(stop)
        except (EOFError, KeyboardInterrupt):
            print(file=out)
            return 0
        except UnicodeDecodeError as error:
            print(f"error: not UTF-8 text (byte {error.start})", file=out)
            continue
        if text.strip() == "q":
            return 0
        if text.strip() in ("h", ""):
            print(COMMANDS, file=out)
        elif text.strip() == "r":
            chat.restart()
        else:
            began = time.perf_counter()
            try:
                stats = chat.answer(text, out)
                print(summary(stats, time.perf_counter() - began, chat.finish_reason), file=out, flush=True)
            except NotFiniteError:  # the next answer would be no better
                raise
            except ValueError as error:
                print(f"error: {error}", file=out)
            except KeyboardInterrupt as stop:
                print(f"{PLAIN if colour else ''} [interrupted]", file=out)
                if isinstance(stop, Terminated):
                    return status_of(stop)
