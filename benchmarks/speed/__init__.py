"""Benchmarks of vipbench itself; `python -m benchmarks.speed`."""
