"""The stages of the line, and what they need."""
