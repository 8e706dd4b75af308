"""surefoot.data."""
