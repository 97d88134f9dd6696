"""The extension. It has the stable ABI: one wheel for CPython 3.11 and all newer releases.

Free-threaded builds have none before 3.15: for each of them there is a wheel of its own.
"""

import sysconfig

from setuptools import Extension, setup

_STABLE = not sysconfig.get_config_var("Py_GIL_DISABLED")

setup(
    ext_modules=[
        Extension(
            "allswell_native._runs",
            ["src/allswell_native/_runs.c"],
            define_macros=[("Py_LIMITED_API", "0x030b0000")] if _STABLE else [],
            py_limited_api=_STABLE,
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if _STABLE else {},
)
