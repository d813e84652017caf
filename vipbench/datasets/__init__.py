"""Datasets that vipbench reads; each module registers what it defines."""
