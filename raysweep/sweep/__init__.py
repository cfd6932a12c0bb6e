"""A sweep file: what it may say, the grid that it declares, and the stages that a point of it means. Pure."""
