"""The offline distillation cache: hidden states and top-N teacher logits of a frozen base.
Called by `mtpd cache` and by training with --cache. Format: docs/internals/formats.md."""
