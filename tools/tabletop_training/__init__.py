"""Training of the embedded tabletop model; torch and transformers are needed here and nowhere else."""
