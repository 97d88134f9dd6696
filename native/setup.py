"""The extension. It has the stable ABI: one wheel for CPython 3.11 and all newer releases."""

from setuptools import Extension, setup

setup(
    ext_modules=[Extension("allswell_native._runs", ["src/allswell_native/_runs.c"], py_limited_api=True)],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
