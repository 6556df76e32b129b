"""``python -m isoloss``."""

from isoloss.cli import main

if __name__ == "__main__":
    main()
