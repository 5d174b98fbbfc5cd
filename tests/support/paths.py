"""Where things are that tests read or run."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
REPOSITORY = ROOT / "model_repository"
BIN = Path(sys.executable).parent
