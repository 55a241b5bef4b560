"""Pruning: single weights that become zero, or whole structures that leave."""
