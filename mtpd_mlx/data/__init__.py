"""Text files to documents to packed batches, in mlx-lm's data formats. numpy only, except own_text.py.
Called by training, the distillation cache and `mtpd distill-data`."""

from mtpd_mlx.data.dataset import PackedDataset, Splits, load_dataset, load_text
from mtpd_mlx.data.packing import Batch

__all__ = ["Batch", "PackedDataset", "Splits", "load_dataset", "load_text"]
