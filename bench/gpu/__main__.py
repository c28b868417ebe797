"""``python bench/gpu`` in a copy of the tree with nothing installed, or ``python -m fastcsm.bench.gpu``."""

import importlib
import sys
from pathlib import Path

if not __package__:
    sys.dont_write_bytecode = True  # nothing is written beside the sources
    sys.path[0] = str(Path(__file__).resolve().parents[1])
sys.exit(importlib.import_module(f"{__package__ or 'gpu'}.verbs").main())
