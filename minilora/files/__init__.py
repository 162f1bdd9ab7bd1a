"""Files: arrays and JSON in one .npz, written completely or not at all."""
