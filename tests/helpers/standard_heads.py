"""Drafts of the standard heads (layout split) over part of a text: what heads that begin in the middle are held against."""

import numpy as np
from mtpd_onnx.runtime.split import SplitModel, cut


def drafts_of_standard_heads(model: SplitModel, first: int, token: int) -> list[int]:
    """Behind its text and `token`, of positions `first`.. at their places, with nothing cached."""
    rows, words = np.arange(first, model.length), [*model._tokens[first + 1 :], token]
    mask = np.where(np.arange(rows.size)[None] > np.arange(rows.size)[:, None], -1e9, 0).astype(np.float32)
    empty = cut(model._head_cache, 0)
    inputs = {"tokens": np.array(words), "positions": rows, "mask": mask, "hidden": model._states[first:]}
    return model._heads.run(None, inputs | empty)[0].tolist()
