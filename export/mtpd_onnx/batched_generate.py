"""`mtpd-onnx generate --batch-size`: batches of prompts, their texts in the order of the file."""

import json
import time
from pathlib import Path

from mtpd_mlx.speculative.frontend import GenerateOptions, Stream, describe, encode_all, eos_tokens, record
from mtpd_mlx.speculative.stats import DecodeStats, distinct_n
from mtpd_mlx.speculative.tokenizer import Tokenizer
from mtpd_onnx.open import open_batched


def run_batches(folder: Path, batch_size: int, options: GenerateOptions, provider: str, num_threads: int | None) -> int:
    """Prints every text when its batch is done. The seconds of one text are those of its whole batch."""
    decoder = open_batched(folder, batch_size, provider=provider, num_threads=num_threads)
    tokenizer = Tokenizer.from_folder(folder)
    jobs = encode_all(tokenizer, options, decoder.capacity, decoder.num_draft_tokens)
    eos, total, texts = eos_tokens(tokenizer, options.extra_eos_token), DecodeStats(decoder.num_draft_tokens), []
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
            texts.append(text.tokens)
            if options.json:
                print(json.dumps(record(prompt, stream, stats, options), ensure_ascii=False), flush=True)
            else:
                print(f"[{prompt.id}]\n{stream.text}", flush=True)
    if not options.json and not options.quiet:
        print(describe(total, sum(map(distinct_n, texts)) / len(texts)), flush=True)
    return 0
