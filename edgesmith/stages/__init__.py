"""Stages: one file a step of a recipe, each artifact + options → artifact, with the key that caches it."""
