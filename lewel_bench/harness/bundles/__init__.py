"""Records of other labs: bundles and what may be taken from them."""
