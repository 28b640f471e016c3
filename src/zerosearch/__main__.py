"""`python -m zerosearch COMMAND`."""

from zerosearch.cli import main

if __name__ == "__main__":
    main()
