"""The exported graphs: modules, and the plain step, the fused round, texts side by side and the split layout made of them."""
