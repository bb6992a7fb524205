"""The batch job: an archive and a model in, one explained row an image out."""
