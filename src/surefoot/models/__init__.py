"""surefoot.models."""
