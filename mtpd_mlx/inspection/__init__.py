"""What a model, a checkpoint or a folder is, from small files and safetensors headers alone: no weights are read."""
