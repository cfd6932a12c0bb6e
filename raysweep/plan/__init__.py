"""All trials of some sweeps, the distinct stages that they share, their ids, and the order to do them in. Pure."""
