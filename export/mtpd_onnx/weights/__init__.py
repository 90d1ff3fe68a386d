"""From the tensors of a base and heads to the initialisers of graphs, quantised or not."""
