"""The regression suite: measure, store, judge, report. Needs the extra `bench`."""
