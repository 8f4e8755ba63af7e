"""Side-by-side timings of dpexp against other ways to do the same training."""
