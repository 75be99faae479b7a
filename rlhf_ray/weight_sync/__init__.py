"""What is sent to the generators after an update: buckets, checksums, transports."""
