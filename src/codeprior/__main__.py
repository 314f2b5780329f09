"""`python -m codeprior`, for machines where nothing can be installed."""

from codeprior.cli import main

main()
