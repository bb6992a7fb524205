"""The evaluation as people like to read it: figures, a gallery of cases, and one page that works offline."""
