"""Networks, bundles of networks, and readers of public checkpoint layouts."""
