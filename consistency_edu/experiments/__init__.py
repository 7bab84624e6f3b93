"""What makes the numbers of the lessons: benchmarks, sweeps and one file of runs for each chapter that measures; exported from nbs/lab."""
