"""A real encoder on real sentences. The user installs both; nothing of them comes with minilora."""
