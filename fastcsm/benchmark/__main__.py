"""``python -m fastcsm.benchmark``: the same as ``fastcsm bench``."""

import sys

from . import main

sys.exit(main())
