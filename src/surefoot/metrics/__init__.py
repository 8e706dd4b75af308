"""surefoot.metrics."""
