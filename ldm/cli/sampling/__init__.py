"""What the sampling scripts share: flags, the model of a run, jobs of many images, records."""
