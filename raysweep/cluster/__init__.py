"""Where trials run: Ray Tune over the grid, one TorchTrainer a trial, jobs. It adds *where*, never *what*."""
