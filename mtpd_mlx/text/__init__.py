"""Text for people and models: tokenizer, chat template, prompts, streaming, and the generate and chat front ends.
Called by commands, training data and the server."""
