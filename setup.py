"""Adds the one C extension to what pyproject.toml declares."""

from setuptools import setup

setup(cffi_modules=["shm/build.py:ffibuilder"])
