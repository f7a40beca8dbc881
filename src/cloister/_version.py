"""The package's version (SemVer). File and message formats carry versions of their own."""

__version__ = "0.1.0"
