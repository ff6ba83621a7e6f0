"""How it moves: log coordinates, initialization, stiff integrators, trajectories."""
