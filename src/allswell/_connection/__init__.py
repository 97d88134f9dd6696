"""One backend on one stack, driven by one task: connections and their exchanges."""
