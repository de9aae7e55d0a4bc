"""`python -m caft.model describe NAME`: what a model costs."""

from caft.cost import main

raise SystemExit(main())
