"""From a GGUF file (llama.cpp) to a model folder in Hugging Face layout, without MLX.
Called by `mtpd import-gguf`, the demo and tools/real_model.

reader.py: the file; config.py and rope.py: config.json; quants.py: blocks of weights; tensors.py: which tensor becomes which;
tokenizer.py and tokens.py: the tokenizer's files; write.py: the folder.
"""
