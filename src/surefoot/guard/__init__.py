"""surefoot.guard."""
