"""What runs: training, evaluation, prediction, and the files they leave."""
