"""The self-test: put faults into the suite's own way of work and see which of them it catches.

`pytest benchmarks/ --sdopt-selftest` runs every fault that needs no statistics: broken images
(`images`), levels that silently stopped optimizing (`optimizations`) and a broken harness
(`harness`). Each is a test, and fails if its fault was not caught by the verdict that has to. What
needs many fresh processes, slowdowns and false alarms, is measured by `python -m
studies.power.rates`.
"""
