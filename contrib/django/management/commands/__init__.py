"""Where does Django look for commands?"""

from __future__ import annotations
