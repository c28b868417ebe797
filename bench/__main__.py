"""``python -m fastcsm.bench``: the same as ``fastcsm bench``."""

import sys

from .command import main

sys.exit(main())
