"""What is known of one cell: record, predictions, metrics, comparability."""
