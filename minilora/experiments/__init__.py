"""The paper's results, measured here: the statistics that every experiment needs."""
