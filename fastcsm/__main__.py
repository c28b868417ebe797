"""``python -m fastcsm``: the same as ``fastcsm``."""

import sys

from .cli import main

sys.exit(main())
