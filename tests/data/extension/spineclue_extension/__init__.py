"""An example of what a package of your own can add to spineclue_v2: trainers, a planner, a stage."""
