"""Entry for build tools; everything is in pyproject.toml. C libraries are declared here later."""

from setuptools import setup

setup()
