"""One YAML file is one study: what is trained, on which hospitals, under which privacy."""
