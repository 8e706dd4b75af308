"""surefoot.recipes."""
