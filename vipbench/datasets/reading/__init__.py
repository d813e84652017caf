"""What several datasets share: tables, folders, splits, cards."""
