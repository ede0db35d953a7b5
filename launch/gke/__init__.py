"""GKE: slices of TPUs, and several of them as one, under a JobSet."""
