"""Where the time goes: a running service looked at in four layers, from coarse to fine.

What is measured is written to raw files first. Every figure is read out of those files again, and the report is made
from the figures, so that anybody can follow a number back to where it came from.
"""
