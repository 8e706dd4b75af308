"""surefoot.checkpoint."""
