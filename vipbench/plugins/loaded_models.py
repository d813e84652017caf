"""Loaded models as sources of the built-in backbones, for those who name no built-in plugin."""

from vipbench.backbones.loading.given import keep_model

__all__ = ["keep_model"]
