"""Numbers of a run: samples against data, likelihoods, bounds, FID."""
