"""Gates that only a device can show; `make gpu` runs them, with those of the CPU, per backend."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
