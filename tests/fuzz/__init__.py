"""Coverage-guided fuzzing of the native parsers: the target, its corpus, and what runs it."""
