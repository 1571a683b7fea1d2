"""For tools that look for this file. The settings are in `setup.cfg`."""

from setuptools import setup

setup()
