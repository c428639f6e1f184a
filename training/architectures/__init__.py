"""One module an architecture: config, build, fit, evaluate."""
