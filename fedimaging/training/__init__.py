"""What a hospital does with its own patients: tasks, metrics, local training, evaluation."""
