"""Values of JSON and YAML files as checked dataclasses, and back."""
