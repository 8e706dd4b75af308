"""Complete training programs, one package each, and what they share."""
