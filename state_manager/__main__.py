"""``python -m state_manager`` is ``state-manager``."""

from __future__ import annotations

import sys

from state_manager.cli import main

if __name__ == "__main__":
    sys.exit(main())
