"""The code of fobt; the public names are in `fobt` and its namespaces."""
