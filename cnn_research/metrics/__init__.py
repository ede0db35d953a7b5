"""What the field reports, from sums that are added over batches and devices."""
