"""The regression suite: measure, store, judge, report. Needs `pip install sdopt[bench]`."""
