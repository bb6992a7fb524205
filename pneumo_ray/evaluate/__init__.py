"""Metrics, calibration and operating points, from labels and scores alone."""
