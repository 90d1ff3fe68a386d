"""The exported graphs: modules, and the plain step, the fused round, the batched round and the split layout made of them."""
