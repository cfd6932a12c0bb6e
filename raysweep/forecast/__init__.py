"""What is left of a plan, what it will take, and how long on how many workers: before anything runs."""
