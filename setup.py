"""Packaging shim: every value comes from settings.ini, so edit that file, not this one."""

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
ini = ConfigParser(delimiters=["="])
ini.read(here / "settings.ini", encoding="utf-8")
cfg = ini["DEFAULT"]


def words(key: str) -> list[str]:
    return cfg.get(key, "").split()


EXTRAS = ("dev", "diffusers", "efficientnet", "tensorboard", "playground")
minor = int(cfg["min_python"].split(".")[1])

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    keywords=words("keywords"),
    author=cfg["author"],
    author_email=cfg["author_email"],
    license="Apache-2.0",
    classifiers=[
        *(f"Programming Language :: Python :: 3.{m}" for m in range(minor, 14)),
        "Typing :: Typed",
    ],
    python_requires=f">={cfg['min_python']}",
    packages=find_packages(include=[cfg["lib_path"], cfg["lib_path"] + ".*"]),
    install_requires=words("requirements"),
    extras_require={name: words(f"{name}_requirements") for name in EXTRAS},
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    entry_points={
        "console_scripts": words("console_scripts"),
        "nbdev": [f"{cfg['lib_path']}={cfg['lib_path']}._modidx:d"],
    },
    include_package_data=True,
    package_data={cfg["lib_path"]: ["py.typed", "pretrained/*/*", "images/*.json"]},
    zip_safe=False,
)
