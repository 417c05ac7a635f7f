"""Neural style transfer (Gatys, Ecker & Bethge, CVPR 2016) as a reproducible experiment."""

import os

__version__ = "0.1.0"

# Has MKL round a matrix product the same way with any number of threads; read when it first works.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
