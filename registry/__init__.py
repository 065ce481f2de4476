"""Evidence, promotion and serving of what the line made."""
