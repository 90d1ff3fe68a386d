"""`mtpd-onnx generate --batch-size`: batches of prompts, their texts in the order of the file."""

import json
import time
from pathlib import Path
from typing import Any

from mtpd_mlx.speculative.frontend import GenerateOptions, Stream, describe, encode_all, eos_tokens, record
from mtpd_mlx.speculative.stats import DecodeStats
from mtpd_mlx.speculative.tokenizer import Tokenizer
from mtpd_onnx.open import open_batched


def run_batches(folder: Path, batch_size: int, options: GenerateOptions, runtime: dict[str, Any]) -> int:
    """Prints every text when its batch is done. The seconds of one text are those of its whole batch. runtime: keywords of
    open_batched."""
    decoder = open_batched(folder, batch_size, **runtime)
    tokenizer = Tokenizer.from_folder(folder)
    jobs = encode_all(tokenizer, options, decoder.capacity, decoder.num_draft_tokens)
    eos, total, texts = eos_tokens(tokenizer, options.extra_eos_token), DecodeStats(decoder.num_draft_tokens), list[Stream]()
    for start in range(0, len(jobs), batch_size):
        batch = jobs[start : start + batch_size]
        streams = [Stream(tokenizer, options, eos, None) for _ in batch]
        seen = [stream.see for stream in streams]
        began = time.perf_counter()
        done = decoder.generate([tokens for _, tokens in batch], options.max_tokens, eos, seen)
        seconds = time.perf_counter() - began - decoder.prefill_seconds
        for (prompt, tokens), stream, text in zip(batch, streams, done, strict=True):
            stream.tokens = text.tokens
            stream.end(text.finish_reason or "length")
            stats = DecodeStats(decoder.num_draft_tokens)
            for each, part in ((stats, 1), (total, len(batch))):
                each.accepted += text.accepted
                each.tokens += len(text.tokens)
                each.prompts += 1
                each.prompt_tokens += len(tokens)
                each.prompt_seconds += decoder.prefill_seconds / part
                each.decode_seconds += seconds / part
            texts.append(stream)
            if options.json:
                print(json.dumps(record(prompt, stream, stats, options), ensure_ascii=False), flush=True)
            else:
                print(f"[{prompt.id}]\n{stream.text}", flush=True)
    if not options.json and not options.quiet:
        print(describe(total, texts), flush=True)
    return 0
