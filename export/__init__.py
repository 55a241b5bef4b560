"""Stages that turn a checkpoint into what a runtime opens, and prove it equal."""
