from fixtures import fresh_random_numbers  # noqa: F401
