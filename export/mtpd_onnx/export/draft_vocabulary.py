"""`choose_draft_tokens`: a draft vocabulary chosen at export for heads that were trained on all tokens.
Called by export/export.py.

Verification uses the whole vocabulary as ever, so the text does not depend on the choice.
"""

from collections.abc import Sequence

import numpy as np

from mtpd_mlx.data.dataset import find_source
from mtpd_mlx.data.formats import read_rows, tokenize
from mtpd_mlx.data.packing import add_counts
from mtpd_mlx.text.tokenizer import Tokenizer


def choose_draft_tokens(size: int, data: Sequence[str], tokenizer: Tokenizer, vocab_size: int) -> np.ndarray | None:
    """Ascending ids int64 [size]; None for the whole vocabulary.

    The tokens that end a text, then those that occur most in `data` (files of rows, as `mtpd train` reads them; every token
    counts), then the lowest ids: a tokenizer made by merges numbers its tokens in the order of the merges, the frequent ones
    first. ValueError where `size` does not fit the vocabulary, or on unreadable data.
    """
    if not 1 <= size <= vocab_size:
        raise ValueError(f"--draft-vocab: got {size}, expected 1..{vocab_size} (the base's vocabulary)")
    if size == vocab_size:
        return None
    counts = add_counts([np.zeros(vocab_size, np.int64), *(token_counts(name, tokenizer) for name in data)])
    counts[sorted(tokenizer.eos_token_ids)] = np.iinfo(np.int64).max
    return np.sort(np.argsort(-counts, kind="stable")[:size])


def token_counts(name: str, tokenizer: Tokenizer) -> np.ndarray:
    """How often each token occurs in a file of rows, or in the train.jsonl of a folder, int64 [largest id + 1]."""
    source = find_source(name)
    rows = read_rows(source / "train.jsonl" if source.is_dir() else source)
    documents = tokenize(rows, tokenizer, mask_prompt=False)
    return np.bincount(np.concatenate([d.ids for d in documents])) if documents else np.zeros(0, np.int64)
