"""Files that ship with the package: model YAMLs, a small checkpoint, data YAMLs, the embedded photos."""

from __future__ import annotations

from pathlib import Path

PHOTOS, DRONES = "mod-open.yaml", "mod-hituav.yaml"  # data YAMLs of the embedded photos and drone images

_PACKAGE = Path(__file__).resolve().parent


def resource_dir(name: str) -> Path:
    """Return the folder `cfg` or `assets`: inside the package when installed from a wheel, beside it in a checkout.

    Raises:
        FileNotFoundError: If neither place has it.
    """
    for root in (_PACKAGE, _PACKAGE.parent):
        if (root / name).is_dir():
            return root / name
    raise FileNotFoundError(f"the folder {name!r} of mod_vision is missing, reinstall the package.")


def is_ours(path: str | Path) -> bool:
    """Return whether a path lies in the package, or in a folder of a checkout that a wheel puts there."""
    place = Path(path).resolve()
    return any(place.is_relative_to(folder) for folder in (_PACKAGE, resource_dir("assets"), resource_dir("cfg")))


def find_file(name: str | Path) -> Path | None:
    """Return the user's own file of this name, else the one that ships under it, else None."""
    return Path(name) if Path(name).is_file() else find_shipped(str(name))


def find_shipped(name: str) -> Path | None:
    """Return the model YAML, checkpoint or data YAML that ships under the bare name `name`, or None."""
    if Path(name).name != name or Path(name).suffix not in (".yaml", ".pt"):
        return None
    assets = resource_dir("assets")
    folders = (resource_dir("cfg") / "models", assets, assets / "open", assets / "hituav")
    return next((folder / name for folder in folders if (folder / name).is_file()), None)
