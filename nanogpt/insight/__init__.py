"""What one looks at after a run, or beside it."""
