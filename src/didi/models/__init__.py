"""Networks, their bundles, and foreign checkpoint layouts."""
