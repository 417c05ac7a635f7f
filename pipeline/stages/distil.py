"""Stage ``distil``: trains the small network that stands in for VGG-19.

Writes ``pipeline/embedded``, or the .safetensors file that its argument names.
"""

import sys
from pathlib import Path

from pipeline.config.params import read_params
from pipeline.distillation.training import distil
from pipeline.errors import command_line
from pipeline.networks.weight_files import EMBEDDED

if __name__ == "__main__":
    output = Path(sys.argv[1]) if sys.argv[1:] else EMBEDDED
    command_line(lambda: distil(read_params(), output))
