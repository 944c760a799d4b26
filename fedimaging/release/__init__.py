"""From a finished run to a model that a named person releases, that anybody can verify, and whose predictions can be traced."""
