"""The offline distillation cache: hidden states and top-N teacher logits of a frozen base (docs/internals/formats.md)."""
