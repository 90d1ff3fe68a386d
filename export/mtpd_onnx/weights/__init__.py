"""The tensors of a base and heads as initialisers of graphs, quantised or not.
Called by export/export.py."""
