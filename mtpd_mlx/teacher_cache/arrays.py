"""`to_numpy`, `to_mlx`: MLX arrays from and to a cache's numpy arrays; bfloat16 stays in uint16.
Called by teacher_cache/teacher.py and train/step.py."""

import numpy as np

from mtpd_mlx.model.runtime import mx


def to_numpy(array: mx.array) -> np.ndarray:
    return np.array(array.view(mx.uint16) if array.dtype == mx.bfloat16 else array)


def to_mlx(array: np.ndarray, dtype: str) -> mx.array:
    """`dtype` is the name the cache gives, for example CachedBatch.hidden_dtype."""
    return mx.array(array).view(mx.bfloat16) if dtype == "bfloat16" else mx.array(array)
