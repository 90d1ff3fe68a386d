"""`python -m mtpd_onnx`: the same as `mtpd-onnx`."""

import sys

from mtpd_onnx.cli import main

sys.exit(main())
