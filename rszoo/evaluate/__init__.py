"""Accuracy of a model on data; `rszoo.evaluate_model` is the public function, `rszoo eval` the command."""
