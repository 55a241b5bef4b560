"""How requests come: one after the other, at random, in batches, as prompts; and what each takes."""
