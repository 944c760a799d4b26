"""Units, clipping, noise, accounting and the ledger. Nothing here imports Flower, MONAI, YAML or a study."""
