"""The hospital's side: its policy, its ledger, its audit log, and the one object that trains on its patients."""
