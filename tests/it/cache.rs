//! The cache under load and under attack: one fetch for any number of misses, nobody gets another's answer, and the bounds hold.
