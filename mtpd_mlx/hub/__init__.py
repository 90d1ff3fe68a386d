"""The Hugging Face hub: pulling (pull.py), looking before pulling (remote.py), pushing (push.py, card.py), and what went wrong
(errors.py). huggingface_hub does the protocol; tokens are its business alone."""
