"""Where the runs of a sweep are carried out: this machine, Ray, Slurm."""
