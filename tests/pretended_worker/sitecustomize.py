"""Makes imagegen's worker processes pretend to have a card: this folder is on their PYTHONPATH.

Python imports `sitecustomize` at the start of each process; all but the workers are left alone.
"""

import os
import sys

if "imagegen.gpu.worker" in sys.orig_argv:
    from tests.pretend_cuda import install

    install(os.environ)
