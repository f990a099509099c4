"""Where the time goes: a running service looked at in four layers, from coarse to fine.

What is measured is written to raw files first. Every figure is read out of those files again, and the report is made
from the figures, so that each number can be traced back to its source.
"""
