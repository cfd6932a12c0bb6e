"""Learning: models, batches, the ZeRO engine, training, evaluation."""
