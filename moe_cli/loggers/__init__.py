"""Loggers of a run's metrics: TensorBoard, MLflow, Weights & Biases, Trackio. Know no torch."""
