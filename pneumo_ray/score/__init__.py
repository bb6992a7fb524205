"""The batch job that scores and explains an archive."""
