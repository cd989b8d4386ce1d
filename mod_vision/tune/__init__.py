"""Search for the capacity, router and stages that pay, by Optuna."""

try:
    import optuna as _optuna  # noqa: F401 what the package is built on
except ImportError as error:
    raise ImportError(f'tune needs Optuna: pip install "mod-vision[tune]" ({error}).') from error
