"""``state-manager doctor``: what breaks an app with several workers, and what is wrong with its state directory.

findings      what a check says
installation  the checks of the versions, the state directory and its manager
comparing     imports the app in two processes, as gunicorn would, and compares what they tell
probe         such a process: only it, and what is below, import Flask
project       which of the imported modules are the app's own, and where in them a thing is said
libraries     the checks of the extensions that the app has imported
variables     the check of module-level variables that requests change
source        how a function changes them, read from its source

Rule: a wrong alarm costs more than a missed one. Where it cannot tell, it says nothing, or gives advice.
"""
