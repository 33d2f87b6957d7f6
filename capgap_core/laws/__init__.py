"""Laws of which teacher a student wants: formulas, fits with intervals, and how they are held against each other."""
