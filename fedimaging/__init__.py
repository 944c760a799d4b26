"""fedimaging: hospitals train one imaging model together; patients are protected by differential privacy.

Importing this package is instant: torch, MONAI and Flower are imported by the modules that use them.
"""

__version__ = "0.1.0"
