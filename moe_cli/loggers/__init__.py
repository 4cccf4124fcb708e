"""Where else the metrics of a run go as it trains: TensorBoard, MLflow, Weights & Biases, Trackio. Knows no torch."""
