"""Built-in trackers: one file a program that shows runs, named as on the command line.

Each implements hooks of vipbench.hookspecs. They run in the driver, which imports no torch.
"""
