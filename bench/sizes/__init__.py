"""What an artifact weighs."""
