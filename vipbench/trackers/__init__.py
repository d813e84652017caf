"""Built-in trackers: one file per experiment tracker, named as on the command line.

Each implements hooks of vipbench.hookspecs. They run in the driver, which does not import torch.
"""
