"""What a job or a study runs, imported as tinker.experiments."""
