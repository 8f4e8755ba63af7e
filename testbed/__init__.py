"""What tests and benchmarks share: two hosts on one machine, delayed workers, launches with random kills."""
