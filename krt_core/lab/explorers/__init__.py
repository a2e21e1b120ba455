"""Views on run folders for JupyterLab: what was forgotten, where the model looks, how a training goes."""
