from fixtures import fresh_random_numbers, own_cache  # noqa: F401
