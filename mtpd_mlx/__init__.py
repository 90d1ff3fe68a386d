"""MTP-D for MLX and onnxruntime. Importing this package imports nothing heavy: the portable decoder shares it."""

import logging

__version__ = "0.1.0"
logging.getLogger(__name__).addHandler(logging.NullHandler())  # text/messages.py, or the caller's own, shows what is logged
