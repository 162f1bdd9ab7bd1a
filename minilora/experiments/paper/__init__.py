"""What the paper reports: one file for each of its results."""
