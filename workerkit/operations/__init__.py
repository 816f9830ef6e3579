"""What an operator can do, as functions with typed results and errors.

The command line parses, calls these and prints; whatever else serves operators calls the same functions. They never
print and never ask: progress goes to a callback, and a result says all that happened.
"""
