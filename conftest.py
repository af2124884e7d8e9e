"""Load the suite's own plugin for every test below this folder."""

pytest_plugins = ("sdopt.plugin", "pytester")
