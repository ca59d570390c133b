"""The ablation study of stage 3: what every step of the method is worth, on one dataset, from one command."""
