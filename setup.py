"""Maps the source tree onto the installed package.

`kernels/` is installed as `gradalign.kernels` (a package named `kernels` exists elsewhere) and the sources of
`csrc/` as `gradalign/csrc`, so that the native extension can be built at first use.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["gradalign", "gradalign.*"]), "gradalign.kernels"],
    package_dir={"gradalign": "gradalign", "gradalign.kernels": "kernels"},
    package_data={"gradalign": ["py.typed", "cli/*.txt"]},
)
