"""The scoring job: from an archive and a model to one explained row per image."""
