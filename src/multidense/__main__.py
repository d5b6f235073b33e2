"""`python -m multidense`."""

from multidense.cli import main

if __name__ == "__main__":
    main()
