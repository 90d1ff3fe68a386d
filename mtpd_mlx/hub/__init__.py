"""The Hugging Face hub: pull, inspect before pulling, push, and faults in one line. Tokens are huggingface_hub's.
Called by every command that takes a hub id."""
