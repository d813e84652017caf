"""Files that data and models need: what they are, where they lie, and how they are brought.

Only `Needed.fetch` opens connections.
"""

from __future__ import annotations

from vipbench.fetching.download import FetchError
from vipbench.fetching.hub import HubFile, HubModules
from vipbench.fetching.needed import Needed, WebFile

__all__ = ["FetchError", "HubFile", "HubModules", "Needed", "WebFile"]
