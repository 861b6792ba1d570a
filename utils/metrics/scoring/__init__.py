"""Everything around the metrics: reading systems' files, run folders, resampling, the Java cross-check."""
