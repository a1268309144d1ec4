"""How the models were trained, as data: recipes, schedules, the paper's studies, estimates of cost."""
