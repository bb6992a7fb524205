"""Where the lungs are on a frontal chest radiograph: a small segmenter, and what follows from its masks."""
