"""`python -m llmcompile` and the console script."""

from llmcompile.cli import main

if __name__ == "__main__":
    main()
