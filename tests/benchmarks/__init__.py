"""Measurements for the project's own developers: scripts, which the test suite also imports."""
