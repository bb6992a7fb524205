"""A new site: recalibration, threshold, triage with guarantees, prevalence, and drift without labels."""
