"""A shim for tools that look for setup.py; every fact is in pyproject.toml."""

from setuptools import setup

setup()
