from fixtures import fresh_accelerator, fresh_random_numbers, one_thread  # noqa: F401
