"""The mathematics of masked diffusion; knows torch and no network."""
