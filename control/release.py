"""The release that this process is of: broker and agents have to be of one and the same."""

from __future__ import annotations

import importlib.metadata
from typing import Final

RELEASE: Final = importlib.metadata.version("ringway")
