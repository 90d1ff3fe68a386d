"""python -m mtpd_onnx"""

import sys

from mtpd_onnx.cli import main

sys.exit(main())
