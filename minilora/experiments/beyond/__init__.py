"""What is known since the paper: one file for each question."""
