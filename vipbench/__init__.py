"""vipbench: few-shot adaptation of CLIP-like models in medical imaging, compared honestly.

Importing this package does not import torch; `vipbench.api` does.
"""

from __future__ import annotations

from vipbench.hookspecs import hookimpl

__version__ = "0.1.0"
__all__ = ["__version__", "hookimpl"]
