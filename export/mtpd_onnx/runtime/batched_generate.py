"""`run_batches`: batches of prompts (`generate --batch-size`), their texts in the order of the file.
Called by `mtpd-onnx generate`."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from mtpd_mlx.options.signals import status_of
from mtpd_mlx.options.text import GenerateOptions
from mtpd_mlx.speculative.finite import naming
from mtpd_mlx.speculative.sampling import Sampling
from mtpd_mlx.speculative.stats import DecodeStats
from mtpd_mlx.text.generate import Stream, describe, encode_all, eos_tokens, record
from mtpd_mlx.text.tokenizer import Tokenizer
from mtpd_onnx.manifest import read_manifest
from mtpd_onnx.runtime.batched import BatchedDecoder
from mtpd_onnx.runtime.open_rows import open_rows


def run_batches(
    folder: Path, batch_size: int, options: GenerateOptions, sampling: Sampling, lookup: bool, runtime: dict[str, Any]
) -> int:
    """Prints every text when its batch is done. The seconds of one text are those of its whole batch. With a seed the texts
    have the seed and those after it, in the order of the file. runtime: keywords of open_rows. Returns the exit status: that of
    the signal when interrupted, after the texts so far and their statistics."""
    fixed = 0 if options.plain else options.num_draft_tokens
    rows = open_rows(folder, batch_size, num_draft_tokens=fixed, lookup=lookup, measure=False, **runtime)
    decoder = BatchedDecoder(rows, fixed, read_manifest(folder).activations)
    batch_size = decoder.batch_size
    tokenizer = Tokenizer.from_folder(folder)
    jobs = encode_all(tokenizer, options, decoder.capacity, decoder.num_draft_tokens)
    eos, total, texts = eos_tokens(tokenizer, options.extra_eos_token), DecodeStats(decoder.num_draft_tokens), list[Stream]()
    status = 0
    for start in range(0, len(jobs), batch_size):
        batch = jobs[start : start + batch_size]
        streams = [Stream(tokenizer, options, eos, None) for _ in batch]
        try:
            with naming([prompt.id for prompt, _ in batch]):
                seen, prompts = [stream.see for stream in streams], [tokens for _, tokens in batch]
                seeds = [None if sampling.seed is None else sampling.seed + start + i for i in range(len(batch))]
                samplings = [replace(sampling, seed=seed) for seed in seeds]
                decoder.generate(prompts, options.max_tokens, eos, seen, samplings)
        except KeyboardInterrupt as stop:
            status = status_of(stop)
        for (prompt, _), stream, text in zip(batch, streams, decoder.texts, strict=True):
            stream.tokens = text.tokens
            stream.end(text.finish_reason or "interrupted")
            stats = DecodeStats(decoder.num_draft_tokens)
            for chunk, together in text.chunks:
                stats.add(chunk)
                total.add(replace(chunk, seconds=chunk.seconds / together))
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
