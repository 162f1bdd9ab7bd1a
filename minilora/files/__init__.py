"""Files: arrays and JSON in one .npz, written whole or not at all."""
