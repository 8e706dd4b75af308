"""Stage 1 on labelled images: the scene's network learns to detect classes that are known."""
