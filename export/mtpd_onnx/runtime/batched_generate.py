"""`mtpd-onnx generate --batch-size`: batches of prompts, their texts in the order of the file."""

import json
import time
from pathlib import Path
from typing import Any

from mtpd_mlx.options.signals import status_of
from mtpd_mlx.options.text import GenerateOptions
from mtpd_mlx.speculative.finite import naming
from mtpd_mlx.speculative.stats import DecodeStats
from mtpd_mlx.text.generate import Stream, describe, encode_all, eos_tokens, record
from mtpd_mlx.text.tokenizer import Tokenizer
from mtpd_onnx.runtime.batched import Text
from mtpd_onnx.runtime.open import open_batched


def run_batches(folder: Path, batch_size: int, options: GenerateOptions, runtime: dict[str, Any]) -> int:
    """Prints every text when its batch is done. The seconds of one text are those of its whole batch. runtime: keywords of
    open_batched. Returns the exit status: that of the signal when interrupted, after the texts so far and their statistics."""
    decoder = open_batched(folder, batch_size, **runtime)
    tokenizer = Tokenizer.from_folder(folder)
    jobs = encode_all(tokenizer, options, decoder.capacity, decoder.num_draft_tokens)
    eos, total, texts = eos_tokens(tokenizer, options.extra_eos_token), DecodeStats(decoder.num_draft_tokens), list[Stream]()
    status = 0
    for start in range(0, len(jobs), batch_size):
        batch = jobs[start : start + batch_size]
        streams = [Stream(tokenizer, options, eos, None) for _ in batch]
        began = time.perf_counter()
        try:
            with naming([prompt.id for prompt, _ in batch]):
                decoder.generate([tokens for _, tokens in batch], options.max_tokens, eos, [stream.see for stream in streams])
        except KeyboardInterrupt as stop:
            status = status_of(stop)
        seconds = time.perf_counter() - began - decoder.prefill_seconds
        for (prompt, tokens), stream, text in zip(batch, streams, decoder.texts, strict=True):
            stream.tokens = text.tokens
            stream.end(text.finish_reason or "interrupted")
            stats = DecodeStats(decoder.num_draft_tokens)
            for each, part in ((stats, 1), (total, len(batch))):
                count(each, text, len(tokens), decoder.prefill_seconds / part, seconds / part)
            texts.append(stream)
            if options.json:
                print(json.dumps(record(prompt, stream, stats, options), ensure_ascii=False), flush=True)
            else:
                print(stream.text if options.quiet or len(jobs) == 1 else f"[{prompt.id}]\n{stream.text}", flush=True)
        if status:
            break
    if not options.json and not options.quiet:
        print(describe(total, texts), flush=True)
    return status


def count(stats: DecodeStats, text: Text, prompt_tokens: int, prefill_seconds: float, seconds: float) -> None:
    if not text.tokens:  # interrupted before the first one
        return
    stats.accepted += text.accepted
    stats.proposed += [stats.num_draft_tokens] * len(text.accepted)
    stats.short_rounds += text.short_rounds
    stats.plain_steps += text.plain_steps
    stats.tokens += len(text.tokens)
    stats.prompts += 1
    stats.prompt_tokens += prompt_tokens
    stats.prompt_seconds += prefill_seconds
    stats.decode_seconds += seconds
