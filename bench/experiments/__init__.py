"""The experiments: each says what it loads a subject with, which cases it has and what it reads off."""
